"""Run a command whose `robuq-bench` calls start at once: a server imports the stages, and each call is a fork of it.

Importing PyTorch and diffusers takes seconds, a row takes five calls, and a study hundreds of rows. A call computes
what it would compute by itself: a fork shares nothing with other calls but the modules it begins with.
"""

import argparse
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from robuq_bench import provenance
from robuq_bench.cli import SERVER, VERBS, main
from robuq_bench.errors import BenchError

EXAMPLE = "robuq-bench warm snakemake --cores all --config preset=gpu -- reproduce_study"
IMPORTED = ("train", "profile", "allocate", "export", "sample", "evaluate", "measure")
"""Verbs whose modules the server imports; others are imported by the calls themselves."""
LOST = 70  # exit code of a call whose fork died without one


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("command", nargs=argparse.REMAINDER, help="command to run, with its arguments")


def run(args: argparse.Namespace) -> None:
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise BenchError(f"warm: no command to run; for example: {EXAMPLE}")
    _import()
    with tempfile.TemporaryDirectory(prefix="robuq-bench-") as folder, socket.socket(socket.AF_UNIX) as server:
        path = str(Path(folder) / "server")
        server.bind(path)
        server.listen(256)
        try:
            process = subprocess.Popen(command, env=os.environ | {SERVER: path})
        except OSError as error:
            raise BenchError(f"warm: cannot run {command[0]} ({error.strerror})") from error
        sys.exit(_serve(server, process))


def _import() -> None:
    """Import the stages."""
    from robuq_bench.devices import hidden

    with hidden(), contextlib.suppress(ImportError):  # a stage whose packages are missing says so when it is called
        for verb in IMPORTED:
            importlib.import_module(VERBS[verb])
    gc.freeze()  # pages of what is imported stay shared


def _serve(server: socket.socket, process: subprocess.Popen) -> int:
    """Fork for each call until `process` ends; its exit code. Ctrl-C and SIGTERM are the command's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    children: set[int] = set()
    while process.poll() is None:
        if select.select([server], [], [], 0.2)[0]:
            connection, _ = server.accept()
            with connection:
                pid = os.fork()
                if pid == 0:
                    try:
                        server.close()
                        _answer(connection)
                    finally:
                        os._exit(LOST)
                children.add(pid)
        children = {pid for pid in children if os.waitpid(pid, os.WNOHANG) == (0, 0)}
    return process.returncode


def _answer(connection: socket.socket) -> None:
    """Run the call that `connection` asks for in this fork, send its exit code, and end."""
    code, server = LOST, os.getppid()
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        request, files, *_ = socket.recv_fds(connection, 1 << 20, 3)
        for number, file in enumerate(files):
            os.dup2(file, number)
        call = json.loads(request)
        os.chdir(call["folder"])
        os.environ.clear()
        os.environ.update(call["environment"])
        sys.argv = ["robuq-bench", *call["argv"]]
        provenance.STARTED = time.monotonic()
        threading.Thread(target=_watch, args=(connection, server), daemon=True).start()
        code = _by_itself(call["argv"]) if _spoilt() else main(call["argv"])
    except SystemExit as error:  # argparse: --help, a wrong option
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        code = 1
        import traceback

        traceback.print_exc()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller leaves as soon as it has its answer
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
            connection.sendall(bytes([code & 255]))
        os._exit(code & 255)


def _spoilt() -> bool:
    """Whether CUDA was awake before the fork after all, and cannot be used here."""
    import torch

    return torch.cuda._is_in_bad_fork()


def _by_itself(argv: list[str]) -> int:
    """Run the call in a process of its own, as without a server."""
    return subprocess.call([sys.executable, "-m", "robuq_bench.cli", *argv])


def _watch(connection: socket.socket, server: int) -> None:
    """Interrupt this fork when its caller or the server is gone, and end it if it does not listen."""
    while os.getppid() == server and not select.select([connection], [], [], 1.0)[0]:
        pass
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
    os._exit(130)


def forward(argv: list[str]) -> int:
    """Let the server of the environment run this call; its exit code. Raises BenchError when it does not answer."""
    environment = {name: value for name, value in os.environ.items() if name != SERVER}
    call = {"argv": argv, "folder": os.getcwd(), "environment": environment}
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(os.environ[SERVER])
            socket.send_fds(connection, [json.dumps(call).encode()], [0, 1, 2])
            answer = connection.recv(1)
        except OSError as error:
            raise BenchError(f"{SERVER}={os.environ[SERVER]}: no server answers there; unset it") from error
    if not answer:
        raise BenchError("the server's process for this call died (out of memory?); run the same command again")
    return answer[0]
