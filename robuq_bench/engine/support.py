"""Which models the engine can run, and the plain reason for those it cannot."""

from collections.abc import Iterator

import torch
from torch import Tensor

from robuq_bench.config.recipe import LAYER_TYPES
from robuq_bench.engine.kernels import Rotation, block_rotation, full_rotation
from robuq_bench.engine.kernels.packing import RANK
from robuq_bench.engine.layout import layer_shapes
from robuq_bench.errors import BenchError
from robuq_bench.models.checkpoint import Card
from robuq_bench.models.dit import layer_type
from robuq_bench.quant.hadamard import signs_matrix

BITS = (1, 2, 3, 4)


def unsupported(card: Card) -> str | None:
    """Why the engine cannot run the card's model, in words that follow "this model"; None when it can."""
    return next(_reasons(card), None)


def _reasons(card: Card) -> Iterator[str]:
    method = card.variant.method
    weight, activation, rotation = method.weight, method.activation, method.rotation
    if weight is None or activation is None:
        yield "is not quantised in both weights and activations"
        return
    if weight.format != "ternary":
        yield f"has weights of format '{weight.format}'; the engine multiplies ternary ones"
    if weight.granularity == "group" or weight.centre:
        yield "has weight scales by group or with an offset; the engine takes one scale per channel or tensor"
    own_step = (activation.step == "own" or activation.format == "midrise") and activation.stretch == 1
    if activation.format not in ("midrise", "midtread") or activation.scale != "mean_abs" or not own_step:
        yield (
            f"quantises activations as '{activation.format}' with scale '{activation.scale}' and step "
            f"'{activation.step}'; the engine has midrise and midtread with scale mean_abs and their own step"
        )
    if activation.granularity != "token":
        yield f"quantises activations by {activation.granularity}; the engine does it by token"
    if method.adaln is None:
        yield "has adaLN linears in full precision; the engine keeps them ternary"
    if wide := [name for name, bits in card.bits.items() if bits not in BITS]:
        yield f"has {card.bits[wide[0]]}-bit activations in {wide[0]}; the engine has 1 to 4 bits"
    if len({bits for name, bits in card.bits.items() if layer_type(name) == "adaln"}) > 1:
        yield "has adaLN linears of different activation bits; the engine runs all of them at once"
    if rotation is None or set(rotation.layers) != set(LAYER_TYPES):
        yield "does not rotate the inputs of every linear; the engine does"
        return
    if method.smoothing:
        yield "smooths its inputs, which the engine does not"
    if method.low_rank and method.low_rank.largest > RANK:
        yield f"has a low-rank branch of rank {method.low_rank.largest}; the engine goes up to {RANK}"
    for width in sorted({inputs for _, inputs in layer_shapes(card).values()}):
        try:
            kernel_rotation(width, rotation.kind)
        except BenchError as error:
            yield f"has layers {width} wide: {error}"


def kernel_rotation(width: int, kind: str, signs: Tensor | None = None) -> Rotation:
    """The rotation of `quant.hadamard` as the kernels take it; signs int8 [width], on the device it shall run on."""
    if kind == "block-128":
        return block_rotation(width, signs)
    device = torch.device("cpu") if signs is None else signs.device
    return full_rotation(_base(width).to(device), width, signs)


def _base(width: int) -> Tensor:
    """The Hadamard matrix K x K with width = K 2^m, K least, from which the rotation is built."""
    order = width // (width & -width)
    while order < width:
        try:
            return signs_matrix(order)
        except BenchError:
            order *= 2
    return signs_matrix(width)
