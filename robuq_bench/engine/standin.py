"""A packed file of random weights in the true format: for timing a size nobody has trained. Speed minds no values."""

from pathlib import Path

import torch
from torch import Tensor

from robuq_bench import provenance
from robuq_bench.config.preset import DiT
from robuq_bench.config.recipe import Variant
from robuq_bench.engine.layout import CODES, EMBEDDER, SIGNS, STEP, Field, layout
from robuq_bench.engine.packed import write
from robuq_bench.engine.storage import TRITS
from robuq_bench.errors import BenchError
from robuq_bench.models.checkpoint import Card
from robuq_bench.models.dit import Shape
from robuq_bench.seeds import seed

MODULATION = 0.3
"""Typical size of adaLN's shifts, scales and gates: every block counts, so that agreement means something."""
BRANCH = 0.3
"""Typical size of the low-rank branch's output beside the ternary one's."""


def standin(spec: DiT, shape: Shape, variant: Variant, bits: dict[str, int], path: str | Path) -> None:
    """Write a random model of `variant` with ternary weights. `bits`: of the activations, by layer name.

    Weights keep the size of activations about constant from layer to layer. The same arguments give the same tensors.
    Raises BenchError when the variant's weights are not ternary.
    """
    if variant.method.weight is None or variant.method.weight.format != "ternary":
        raise BenchError(f"{variant.recipe}/{variant.name}: a stand-in has ternary weights; choose a W1.58 variant")
    facts = {"weights": "random"}
    card = Card("packed", "stand-in", variant, 0, spec, shape, bits, "ok", "", facts, provenance.collect())
    tensors = {name: _values(name, field, spec.width) for name, field in layout(card).items()}
    write(path, tensors, card)


def _values(name: str, field: Field, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed("standin", name))
    if name.endswith(CODES):
        return torch.randint(0, 3**TRITS, field.shape, dtype=torch.uint8, generator=generator)
    if name.endswith(SIGNS):
        return torch.randint(0, 256, field.shape, dtype=torch.uint8, generator=generator)
    if name.endswith(STEP):
        # Two thirds of random trits are not zero, so this makes outputs as large as inputs.
        size = (1.5 / _inputs(name, width)) ** 0.5 * (MODULATION if "norm1.linear" in name else 1.0)
        return (size * (1 + 0.1 * torch.randn(field.shape, generator=generator))).abs().to(field.dtype)
    values = torch.randn(field.shape, generator=generator)
    return (values * _size(name, field.shape)).to(field.dtype)


def _inputs(name: str, width: int) -> int:
    return 4 * width if "ff.net.2" in name else width


def _size(name: str, shape: tuple[int, ...]) -> float:
    """Standard deviation of a float tensor."""
    if name.endswith(".bias"):
        return 0.1
    if name.endswith(".up"):
        scale = MODULATION if "norm1.linear" in name else 1.0
        return BRANCH * scale / shape[1] ** 0.5
    if name.startswith(f"{EMBEDDER}.class_embedder"):
        return 1.0
    inputs = 1
    for side in shape[1:]:
        inputs *= side
    return inputs**-0.5
