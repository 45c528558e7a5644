"""A drill on this machine's GPUs: does a run shared out over NCCL do what one GPU does, and outlive a lost process?

    robuq-bench warm python tests/cluster/nccl_drill.py --preset gpu --set data.path=PATH --out results/drill.json

One process trains the preset's full-precision model for a while, then two do; then two of which one is killed, and the
same command again; then two whose lead cannot write. Images are drawn by one process and by two. What was compared is
written with its provenance; the exit code is 1 when something is not as it should be. A CPU preset drills gloo.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robuq_bench import provenance
from robuq_bench.cli import SERVER
from robuq_bench.config.preset import load_preset
from robuq_bench.devices import describe
from robuq_bench.files import read_json, write_json
from robuq_bench.models import checkpoint

TOLERANCE = 0.02
"""Relative difference of a step's loss, one process against several: bfloat16 sums in another order, step by step."""
BAD_LINES = ("Traceback", "destroy_process_group", "Guessing device")


class Drill:
    def __init__(self, args: argparse.Namespace, folder: Path):
        self.preset, self.processes, self.folder = args.preset, args.processes, folder
        block = f"train.steps={args.steps},train.warmup=20,train.save_every={args.steps // 6},train.compile=false"
        self.changes = ",".join(filter(None, [args.set, block]))

    def command(self, processes: int, *words: object) -> list[str]:
        launched = ["launch", "--processes", str(processes), "--"] if processes > 1 else []
        return [sys.executable, "-m", "robuq_bench.cli", *launched, *map(str, words)]

    def training(self, name: str, processes: int, **other: object) -> list[str]:
        place = self.folder / name
        place.mkdir(exist_ok=True)
        files = {"model": place / "model.safetensors", "curve": place / "curve.json", "state": place / "state"} | other
        options = (word for key, value in files.items() for word in (f"--{key}", value))
        row = ("--recipe", "full_precision", "--variant", "W32A32")
        return self.command(processes, "train", "--preset", self.preset, "--set", self.changes, *row, *options)

    def trained(self, name: str, processes: int) -> float:
        """Seconds of a training that must succeed."""
        seconds, code, said = ran(self.training(name, processes))
        if code:
            raise SystemExit(f"{name}: exit code {code}\n{said}")
        return seconds

    def curves(self) -> dict[str, Any]:
        seconds = [self.trained("one", 1), self.trained("several", self.processes)]
        one, several = (read_json(self.folder / name / "curve.json") for name in ("one", "several"))
        ours, theirs = np.array(several["losses"]), np.array(one["losses"])
        apart = np.abs(ours - theirs) / np.abs(theirs)
        held_out = [one["held_out_loss"], several["held_out_loss"]]
        return {
            "losses": {
                str(step): [one["losses"][step], several["losses"][step]] for step in (0, len(ours) // 2, len(ours) - 1)
            },
            "largest_difference": float(apart.max()),
            "median_difference": float(np.median(apart)),
            "held_out_loss": held_out,
            "seconds": seconds,
            "passed": bool(apart.max() < TOLERANCE),
        }

    def lost(self) -> dict[str, Any]:
        """One process is killed once a state is there; the same command ends as if it had not been."""
        line = self.training("lost", self.processes)
        process = subprocess.Popen(line, env=cold(), stderr=subprocess.PIPE, text=True)
        states = self.folder / "lost/state"
        while not [*states.glob("step*.pt")]:
            if process.poll() is not None:
                raise SystemExit(f"lost: it ended before it could be killed\n{process.stderr.read()}")
            time.sleep(0.01)
        os.kill(process_of_rank(self.processes - 1, states), signal.SIGKILL)
        started = time.monotonic()
        _, errors = process.communicate()
        seconds = time.monotonic() - started
        kept = max(path.stem for path in states.glob("step*.pt"))
        self.trained("lost", self.processes)
        expected, actual = (self.weights(name) for name in ("several", "lost"))
        equal = sum(torch.equal(actual[name], weight) for name, weight in expected.items())
        losses = [read_json(self.folder / name / "curve.json")["losses"] for name in ("several", "lost")]
        return {
            "said": own(errors),
            "seconds_to_end": seconds,
            "goes_on_from_step": int(kept[4:]),
            "tensors_equal": [equal, len(expected)],
            "losses_equal": losses[0] == losses[1],
            "passed": equal == len(expected) and losses[0] == losses[1] and len(own(errors)) == 1 and clean(errors),
        }

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return checkpoint.load(self.folder / name / "model.safetensors", "trained")[0]

    def mistake(self) -> dict[str, Any]:
        """The lead alone fails, at the end, while the others wait for it."""
        (self.folder / "file").write_text("")
        line = self.training("mistake", self.processes, curve=self.folder / "file/curve.json")
        seconds, code, said = ran(line, env=cold())
        passed = code == 2 and len(own(said)) == 1 and clean(said)
        return {
            "said": [line.replace(str(self.folder), "FOLDER") for line in own(said)],
            "seconds": seconds,
            "passed": passed,
        }

    def images(self) -> dict[str, Any]:
        """Drawn by one process and by several."""
        packed = self.folder / "packed.safetensors"
        model = self.folder / "one/model.safetensors"
        subprocess.run(self.command(1, "export", "--model", model, "--packed", packed), check=True)
        drawn, seconds = [], []
        for processes in (1, self.processes):
            out, state = self.folder / f"{processes}.npz", self.folder / f"images{processes}"
            options = ("--packed", packed, "--out", out, "--state", state)
            line = self.command(processes, "sample", "--preset", self.preset, "--set", self.changes, *options)
            taken, code, said = ran(line)
            if code:
                raise SystemExit(f"images: exit code {code}\n{said}")
            with np.load(out) as archive:
                drawn.append(archive["arr_0"])
            seconds.append(taken)
        differing = int((drawn[0] != drawn[1]).reshape(len(drawn[0]), -1).any(1).sum())
        return {"n": len(drawn[0]), "differing": differing, "seconds": seconds, "passed": differing == 0}


def ran(line: list[str], **options: Any) -> tuple[float, int, str]:
    """(seconds, exit code, what it wrote to stderr) of a command."""
    started = time.monotonic()
    done = subprocess.run(line, stderr=subprocess.PIPE, text=True, **options)
    return time.monotonic() - started, done.returncode, done.stderr


def own(errors: str) -> list[str]:
    return [line for line in errors.splitlines() if line.startswith("robuq-bench:")]


def clean(errors: str) -> bool:
    return not any(words in errors for words in BAD_LINES)


def cold() -> dict[str, str]:
    """An environment without the warm server: what is killed, or ends badly, must be the process that has the GPU."""
    return {name: value for name, value in os.environ.items() if name != SERVER}


def process_of_rank(rank: int, folder: Path) -> int:
    """Id of the process of that rank among those that work with `folder`."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            environment = (place / "environ").read_bytes().split(b"\0")
            if f"RANK={rank}".encode() in environment and str(folder).encode() in (place / "cmdline").read_bytes():
                return int(place.name)
        except OSError:
            continue
    raise SystemExit(f"no process of rank {rank} to kill")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="smoke")
    parser.add_argument("--set", default="", help="changes of the preset")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    args = parser.parse_args()
    device = load_preset(args.preset, args.set).device
    with tempfile.TemporaryDirectory() as place:
        drill = Drill(args, Path(place))
        record: dict[str, Any] = {
            "preset": args.preset,
            "changes": drill.changes,
            "processes": args.processes,
            "backend": f"nccl {'.'.join(map(str, torch.cuda.nccl.version()))}" if device == "cuda" else "gloo",
            "tolerance": TOLERANCE,
        }
        for part in ("curves", "images", "lost", "mistake"):
            record[part] = getattr(drill, part)()
            record["provenance"] = provenance.collect(describe(device), processes=args.processes)
            write_json(args.out, record)
            print(f"{part}: {record[part]}", flush=True)
    if failed := [name for name, found in record.items() if isinstance(found, dict) and found.get("passed") is False]:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
