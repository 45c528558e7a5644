"""Resumable training state: outside Snakemake's outputs, written atomically, the last two kept."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

from robuq_bench.files import atomic, read_json, write_json
from robuq_bench.progress import LOG

KEPT = 2


class State:
    """States of one run in `folder`. `fingerprint` says of which run; a folder of another run is started afresh."""

    def __init__(self, folder: str | Path, fingerprint: str):
        self.folder = Path(folder)
        stamp = self.folder / "fingerprint.json"
        if self._files() and not (stamp.exists() and read_json(stamp) == fingerprint):
            LOG.info("%s: state of another configuration or code; starting afresh", self.folder)
            shutil.rmtree(self.folder)
        write_json(stamp, fingerprint)

    def save(self, step: int, value: dict[str, Any]) -> None:
        # Through Python's own file, so that a full disk is an OSError.
        with atomic(self.folder / f"step{step:08d}.pt") as temporary, open(temporary, "wb") as handle:
            torch.save(value, handle)
        for old in self._files()[:-KEPT]:
            old.unlink()

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """(step, value) of the newest readable state, or None. A damaged file is passed over, and logged."""
        for path in reversed(self._files()):
            try:
                step, value = int(path.stem[4:]), torch.load(path, weights_only=True)
            except (RuntimeError, EOFError, pickle.UnpicklingError, OSError, ValueError) as error:
                LOG.warning("%s: damaged state, passed over (%s)", path, " ".join(str(error).split())[:120])
                continue
            LOG.info("%s: goes on from step %d", self.folder, step)
            return step, value
        return None

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("step*.pt"))


def fingerprint(**facts: Any) -> str:
    """One string that is equal exactly when two runs are the same computation."""
    return json.dumps(facts, sort_keys=True, default=str)
