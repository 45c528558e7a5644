"""Run a verb in several processes of this machine, one a GPU, which share its work out: SHARED says which verbs can.

The environment is torchrun's, which does the same over several machines; this reports a lost process in one line.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO, NoReturn

from robuq_bench.errors import BenchError

EXAMPLE = "robuq-bench launch --processes 8 -- train --preset paper --recipe robuq --variant W1.58A2 ..."
SHARED = ("train", "sample", "latents", "evaluate", "step-cost")
GRACE = 10.0  # seconds that the others have to end by themselves after one has failed
POLL = 0.1


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", type=int, required=True, help="one GPU each, where the preset asks for GPUs")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- VERB ...", help="the verb and its options")


def run(args: argparse.Namespace) -> None:
    """Raises SystemExit when the first process has failed, and has said why."""
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command or command[0] not in SHARED:
        raise BenchError(f"launch: give one of {', '.join(SHARED)} after --")
    if args.processes < 1:
        raise BenchError(f"launch: --processes {args.processes}: give at least one")
    with ExitStack() as stack:
        # The first process speaks for all; what the others say is kept, should one of them fail alone.
        said = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(args.processes - 1)]
        signal.signal(signal.SIGTERM, _stop)
        processes = start(command, args.processes, said)
        try:
            failed = first_to_fail(processes)
        except BaseException:  # told to stop: so are they, or they would go on alone and keep their GPUs
            for process in processes:
                process.terminate()
            raise
        finally:
            end(processes)
    if failed is not None:
        raise reported(failed, processes, said)


def start(command: Sequence[str], count: int, said: Sequence[IO[str]]) -> list[subprocess.Popen]:
    """The processes, in torchrun's environment; all but the first write to the files `said`."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}  # a mistake is one line, not that and what NCCL says of leaving it
    found = []
    for rank in range(count):
        facts = {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
        output = {"stdout": said[rank - 1], "stderr": said[rank - 1]} if rank else {}
        line = [sys.executable, "-m", "robuq_bench.cli", *command]
        found.append(subprocess.Popen(line, env=quiet | os.environ | facts, **output))
    return found


def first_to_fail(processes: Sequence[subprocess.Popen]) -> int | None:
    """Rank of the process that failed first, or None when all have ended well."""
    while True:
        codes = [process.poll() for process in processes]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed:
            return failed[0]
        if all(code == 0 for code in codes):
            return None
        time.sleep(POLL)


def _stop(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


def end(processes: Sequence[subprocess.Popen]) -> None:
    """Wait a little for the rest, then end it."""
    deadline = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()


def reported(rank: int, processes: Sequence[subprocess.Popen], said: Sequence[IO[str]]) -> BaseException:
    """What to raise after process `rank` failed."""
    code, first = processes[rank].returncode, processes[0].returncode
    if first > 0:  # it has printed its line: the same mistake, or that it lost the others
        return SystemExit(first)
    of = f"process {rank} of {len(processes)}"
    if code < 0:
        name = signal.Signals(-code).name
        return BenchError(f"{of} was lost ({name}); what was saved is kept: run the same command again")
    said[rank - 1].seek(0)
    lines = said[rank - 1].read().splitlines()
    error = BenchError(f"{of}: {lines[-1] if lines else 'failed'}")
    error.code = code
    return error
