"""A drill on this machine's GPUs: does a run shared out over NCCL do what one GPU does, and outlive a lost process?

    robuq-bench warm python tests/cluster/nccl_drill.py --preset gpu --set data.path=PATH --out results/drill.json

One process trains the preset's full-precision model for a while, and several do; several of which one is killed, and
the same command again; several whose lead cannot write. Images are drawn by one process and by several. All run at once
and share the GPUs, so nothing is timed. What was compared is written with its provenance; the exit code is 1 when
something is not as it should be. A CPU preset drills gloo.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

TOLERANCE = 0.02
"""Relative difference of a step's loss, one process against several: bfloat16 sums in another order, step by step."""
OTHERS = ("Traceback", "destroy_process_group", "Guessing device")
"""What a user must not have to read."""


class Drill:
    """Runs of one preset in `folder`, each with locks of its own, so that they share GPUs."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.preset, self.processes, self.folder = args.preset, args.processes, folder
        block = f"train.steps={args.steps},train.warmup=20,train.save_every={args.steps // 6},train.compile=false"
        self.changes = ",".join(filter(None, [args.set, block]))

    def command(self, processes: int, verb: str, **options: object) -> list[str]:
        launched = ["launch", "--processes", str(processes), "--"] if processes > 1 else []
        pairs = (word for key, value in options.items() for word in (f"--{key}", str(value)))
        return [sys.executable, "-m", "robuq_bench.cli", *launched, verb, *pairs]

    def training(self, name: str, processes: int, **other: object) -> list[str]:
        place = self.folder / name
        files = {"model": place / "model.safetensors", "curve": place / "curve.json", "state": place / "state"} | other
        row = {"recipe": "full_precision", "variant": "W32A32", "log": place / "log.txt"}
        return self.command(processes, "train", preset=self.preset, set=self.changes, **row, **files)

    def start(self, name: str, line: list[str], warm: bool = True) -> subprocess.Popen:
        """warm: through the server of `robuq-bench warm`; else the process itself has the GPU, until it is killed."""
        locks = self.folder / name / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"TMPDIR": str(locks)}
        if not warm:
            environment.pop("ROBUQ_BENCH_SERVER", None)
        return subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True)

    def well(self, name: str, line: list[str]) -> None:
        """Run it; it must succeed."""
        process = self.start(name, line)
        said = process.communicate()[1]
        if process.returncode:
            raise SystemExit(f"{name}: exit code {process.returncode}\n{said}")

    def lost(self) -> dict[str, Any]:
        """One process is killed once a state is there; then the same command."""
        line, states = self.training("lost", self.processes), self.folder / "lost/state"
        process = self.start("lost", line, warm=False)
        while not [*states.glob("step*.pt")]:
            if process.poll() is not None:
                raise SystemExit(f"lost: it ended before it could be killed\n{process.stderr.read()}")
            time.sleep(0.01)
        os.kill(process_of_rank(self.processes - 1, states), signal.SIGKILL)
        started = time.monotonic()
        said = process.communicate()[1]
        seconds, kept = time.monotonic() - started, max(path.stem for path in states.glob("step*.pt"))
        self.well("lost", line)
        return {
            "said": own(said),
            "seconds_to_end": seconds,
            "goes_on_from_step": int(kept[4:]),
            "plain": len(own(said)) == 1 and not any(words in said for words in OTHERS),
        }

    def mistake(self) -> dict[str, Any]:
        """The lead alone fails, at its end, while the others wait for it."""
        (self.folder / "file").write_text("")
        line = self.training("mistake", self.processes, curve=self.folder / "file/curve.json")
        process = self.start("mistake", line, warm=False)
        said = process.communicate()[1]
        passed = process.returncode == 2 and len(own(said)) == 1 and not any(words in said for words in OTHERS)
        return {"said": [text.replace(str(self.folder), "FOLDER") for text in own(said)], "passed": passed}

    def drawn(self, trained: Future, processes: int) -> None:
        trained.result()
        packed, name = self.folder / f"{processes}.safetensors", f"drawn{processes}"
        self.well(name, self.command(1, "export", model=self.folder / "one/model.safetensors", packed=packed))
        files = {"packed": packed, "out": self.folder / f"{processes}.npz", "state": self.folder / name / "state"}
        self.well(name, self.command(processes, "sample", preset=self.preset, set=self.changes, **files))


def own(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("robuq-bench:")]


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


def curves(drill: Drill) -> dict[str, Any]:
    """Losses of one process and of several."""
    import numpy as np

    from robuq_bench.files import read_json

    one, several = (read_json(drill.folder / name / "curve.json") for name in ("one", "several"))
    ours, theirs = np.array(several["losses"]), np.array(one["losses"])
    apart = np.abs(ours - theirs) / np.abs(theirs)
    shown = (0, len(ours) // 2, len(ours) - 1)
    return {
        "losses": {str(step): [one["losses"][step], several["losses"][step]] for step in shown},
        "largest_difference": float(apart.max()),
        "median_difference": float(np.median(apart)),
        "held_out_loss": [one["held_out_loss"], several["held_out_loss"]],
        "recording_failed": "cannot be recorded" in (drill.folder / "several/log.txt").read_text(),
        "passed": bool(apart.max() < TOLERANCE),
    }


def resumed(drill: Drill, found: dict[str, Any]) -> dict[str, Any]:
    """Whether a run that lost a process ended as the one that lost none."""
    import torch

    from robuq_bench.files import read_json
    from robuq_bench.models import checkpoint

    whole, cut = (
        checkpoint.load(drill.folder / name / "model.safetensors", "trained")[0] for name in ("several", "lost")
    )
    equal = sum(torch.equal(cut[name], weight) for name, weight in whole.items())
    losses = [read_json(drill.folder / name / "curve.json")["losses"] for name in ("several", "lost")]
    same = losses[0] == losses[1]
    passed = found["plain"] and same and equal == len(whole)
    return {**found, "tensors_equal": [equal, len(whole)], "losses_equal": same, "passed": passed}


def images(drill: Drill) -> dict[str, Any]:
    """Images drawn by one process and by several."""
    import numpy as np

    drawn = []
    for processes in (1, drill.processes):
        with np.load(drill.folder / f"{processes}.npz") as archive:
            drawn.append(archive["arr_0"])
    differing = int((drawn[0] != drawn[1]).reshape(len(drawn[0]), -1).any(1).sum())
    return {"n": len(drawn[0]), "differing": differing, "passed": differing == 0}


def run(drill: Drill) -> dict[str, dict[str, Any]]:
    """All parts, at once."""
    with ThreadPoolExecutor(8) as pool:
        lost, mistake = pool.submit(drill.lost), pool.submit(drill.mistake)
        one, several = (
            pool.submit(drill.well, name, drill.training(name, processes))
            for name, processes in (("one", 1), ("several", drill.processes))
        )
        drawn = [pool.submit(drill.drawn, one, processes) for processes in (1, drill.processes)]
        for part in (several, *drawn):
            part.result()
        found = {"curves": curves(drill), "images": images(drill)}
        return found | {"lost": resumed(drill, lost.result()), "mistake": mistake.result()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="smoke")
    parser.add_argument("--set", default="", help="changes of the preset")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        drill = Drill(args, Path(place))
        found = run(drill)
    from robuq_bench import provenance
    from robuq_bench.config.preset import load_preset
    from robuq_bench.devices import describe
    from robuq_bench.files import write_json

    device = load_preset(args.preset, args.set).device
    facts = {"preset": args.preset, "changes": drill.changes, "processes": args.processes, "tolerance": TOLERANCE}
    record = provenance.collect(describe(device), processes=args.processes)
    write_json(args.out, {**facts, **found, "provenance": record})
    for part, what in found.items():
        print(f"{part}: {what}")
    if failed := [part for part, what in found.items() if not what["passed"]]:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
