"""Generated images on disk: an .npz in ADM's layout (arr_0 images, arr_1 labels) with a JSON card beside the arrays."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robuq_bench.errors import BenchError
from robuq_bench.files import atomic, existing
from robuq_bench.sample.npz import DAMAGED, open_array


@dataclass(frozen=True)
class Samples:
    """uint8 images [N, H, W, C], int64 labels [N], and what they are (status, protocol, hash of the model)."""

    images: np.ndarray
    labels: np.ndarray
    card: dict[str, Any]

    @property
    def diverged(self) -> bool:
        return self.card["status"] == "diverged"


def save(path: str | Path, samples: Samples) -> None:
    card = np.array(json.dumps(samples.card))
    with atomic(path) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, arr_0=samples.images, arr_1=samples.labels, card=card)


def load(path: str | Path, on_disk: bool = False) -> Samples:
    """`on_disk`: leave the images in the file, to be read as they are used.

    Raises BenchError when the file is missing, truncated or not one of ours.
    """
    path = existing(path, "samples")
    try:
        with np.load(path, allow_pickle=False) as archive:
            images = open_array(path) if on_disk else archive["arr_0"]
            return Samples(images, archive["arr_1"], json.loads(str(archive["card"])))
    except DAMAGED as error:
        reason = " ".join(str(error).split())
        raise BenchError(f"{path}: truncated or not a samples file ({reason}); delete it and run again") from error
