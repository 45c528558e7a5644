"""Models that the user brings, as diffusers saves them: found in a folder, checked, loaded. Nothing is downloaded."""

import hashlib
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from robuq_bench.errors import BenchError
from robuq_bench.files import read_json

Loaded = TypeVar("Loaded", bound=ModelMixin)


def locate(path: str, part: str) -> Path:
    """The folder with `config.json`: `path` itself, or its subfolder `part` when `path` is a whole pipeline."""
    folder = Path(path).expanduser()
    for place in (folder, folder / part):
        if (place / "config.json").is_file():
            return place
    what = f"no config.json in it or in {part}/" if folder.is_dir() else "no such folder"
    raise BenchError(f"{folder}: {what}; give a folder that diffusers saved, or fetch it with `robuq-bench fetch`")


def configuration(folder: Path) -> dict[str, Any]:
    found = read_json(folder / "config.json")
    if not isinstance(found, dict):
        raise BenchError(f"{folder / 'config.json'}: not a configuration of diffusers; replace it")
    return found


def load(kind: type[Loaded], folder: Path) -> Loaded:
    """The model of class `kind` saved in `folder`, float32. Raises BenchError when files are missing or damaged."""
    try:
        model, info = kind.from_pretrained(
            folder, local_files_only=True, torch_dtype=torch.float32, low_cpu_mem_usage=False, output_loading_info=True
        )
    except Exception as error:  # a foreign library on foreign files: nearly anything
        reason = " ".join(str(error).split())[:200]
        raise BenchError(f"{folder}: cannot be loaded as {kind.__name__} ({reason}); fetch the folder again") from error
    if lacking := sorted(info["missing_keys"]) or [str(key) for key in info["mismatched_keys"]]:
        raise BenchError(  # diffusers would leave them random
            f"{folder}: the weights lack {lacking[0]} or it has another shape ({len(lacking)} in all); fetch it again"
        )
    return model.eval()


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values, whatever files they came from."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().float().contiguous()
        found.update(f"{name}{list(tensor.shape)}".encode())
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def check_digest(found: str, wanted: str | None, where: object) -> None:
    """Raises BenchError unless `found` is `wanted`, or nothing is wanted."""
    if wanted is not None and found != wanted:
        raise BenchError(f"{where}: SHA-256 of the tensors is {found}, the preset wants {wanted}; is it another model?")
