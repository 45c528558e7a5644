"""Checkpoints: safetensors with one JSON record of what the tensors are. Nothing here unpickles."""

import errno
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from robuq_bench.config.base import build as validated
from robuq_bench.config.preset import DiT
from robuq_bench.config.recipe import Variant
from robuq_bench.errors import BenchError
from robuq_bench.files import atomic, existing
from robuq_bench.models.dit import Shape

SCHEMA = 1
KEY = "robuq_bench"
DAMAGED = (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError)
"""What reading a damaged or foreign file may raise (RuntimeError: a type torch cannot hold, or endless nesting)."""


@dataclass(frozen=True)
class Card:
    """What a checkpoint holds. `status`: "ok", or "diverged" with the reason; `bits`: activation bits per layer."""

    kind: str
    preset: str
    variant: Variant
    seed: int
    model: DiT
    shape: Shape
    bits: dict[str, int]
    status: Literal["ok", "diverged"]
    reason: str
    facts: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def diverged(self) -> bool:
        return self.status == "diverged"


def save(path: str | Path, tensors: dict[str, Tensor], card: Card) -> None:
    """Write tensors and card to one safetensors file, atomically."""
    record = {**asdict(card), "schema": SCHEMA}
    record |= {"variant": card.variant.model_dump(mode="json"), "model": card.model.model_dump(mode="json")}
    text = json.dumps(record, allow_nan=False)
    # One entry, hash first: safetensors writes several in an order that changes from run to run.
    metadata = {KEY: f"{hashlib.sha256(text.encode()).hexdigest()} {text}"}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:
            if "os error 28" in str(error):  # what `atomic` knows as a full disk
                raise OSError(errno.ENOSPC, str(error)) from error
            raise


def read_card(path: str | Path) -> Card:
    """The card alone, without reading tensors."""
    path = existing(path, "checkpoint")
    try:
        with safe_open(path, framework="pt") as handle:
            return _card(handle.metadata(), path)
    except DAMAGED as error:
        raise _damaged(path, error) from error


def load(path: str | Path, kind: str) -> tuple[dict[str, Tensor], Card]:
    """Tensors and card of a checkpoint of `kind`. Raises BenchError when damaged or of another kind."""
    path = existing(path, "checkpoint")
    try:
        with safe_open(path, framework="pt") as handle:
            card = _card(handle.metadata(), path)
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
    except DAMAGED as error:
        raise _damaged(path, error) from error
    if card.kind != kind:
        raise BenchError(f"{path}: holds a {card.kind} model, a {kind} one is needed here")
    return tensors, card


def load_into(model: torch.nn.Module, tensors: dict[str, Tensor], where: str | Path) -> None:
    """Strict load. Raises BenchError naming the first tensor that does not fit: a checkpoint of another model."""
    own = model.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        if name not in tensors or name not in own or own[name].shape != tensors[name].shape:
            mine, theirs = (list(t[name].shape) if name in t else "absent" for t in (own, tensors))
            raise BenchError(
                f"{where}: checkpoint of another model: '{name}' is {theirs} there and {mine} in this preset"
            )
    model.load_state_dict(tensors)


def _card(metadata: dict[str, str] | None, path: Path) -> Card:
    if not metadata or KEY not in metadata:
        raise BenchError(f"{path}: not a checkpoint of this project (no '{KEY}' record)")
    seal, _, text = metadata[KEY].partition(" ")
    if hashlib.sha256(text.encode()).hexdigest() != seal:
        raise _damaged(path, "its record does not match its hash")
    return _parsed(json.loads(text), path)


def _parsed(record: dict[str, Any], path: Path) -> Card:
    if record.pop("schema", None) != SCHEMA:
        raise BenchError(f"{path}: written by another version of this project; delete it and run again")
    record["variant"] = validated(Variant, record["variant"], str(path))
    record["model"] = validated(DiT, record["model"], str(path))
    return TypeAdapter(Card).validate_python(record)


def _damaged(path: Path, error: Exception | str) -> BenchError:
    reason = " ".join(str(error).split())
    return BenchError(f"{path}: truncated or damaged checkpoint ({reason}); delete it and run again")
