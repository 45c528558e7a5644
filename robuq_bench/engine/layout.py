"""What a packed file must hold: name, type and shape of every tensor, derived from its card without building a model.

Loading compares a file with this before anything is allocated, so a card or header that lies costs nothing.
"""

from dataclasses import dataclass
from math import gcd, prod

import torch

from robuq_bench.config.recipe import ACTIVATION_BITS, WEIGHT_BITS, Recipe
from robuq_bench.engine.storage import packed_bytes
from robuq_bench.errors import BenchError
from robuq_bench.models.checkpoint import Card
from robuq_bench.models.dit import LINEARS, layer_type
from robuq_bench.quant.quantiser import GROUP, Quantiser

CODES, STEP, OFFSET, SIGNS = ".codes", ".step", ".offset", ".signs"
WIDTHS = {"qkv": (3, 1), "proj": (1, 1), "fc1": (4, 1), "fc2": (1, 4), "adaln": (6, 1)}
"""Layer type -> outputs and inputs in units of the model's width."""
EMBEDDER = "transformer_blocks.0.norm1.emb"
TIME_CHANNELS = 256
MOST_TOKENS = 1 << 14
"""Tokens an image may have: the position embedding is computed, so no stored tensor bounds it."""


@dataclass(frozen=True)
class Field:
    """Type and shape of one stored tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def layer_shapes(card: Card) -> dict[str, tuple[int, int]]:
    """[outputs, inputs] of every linear of the blocks: "blocks.3.fc2" -> (width, 4 width)."""
    width = card.model.width
    return {
        f"blocks.{index}.{kind}": (outputs * width, inputs * width)
        for index in range(card.model.depth)
        for kind, (outputs, inputs) in WIDTHS.items()
    }


def module_path(name: str) -> str:
    """Path of a layer inside the model: "blocks.3.fc2" -> "transformer_blocks.3.ff.net.2"."""
    block, _, kind = name.rpartition(".")
    return f"transformer_{block}.{LINEARS[kind]}"


def is_quantised(method: Recipe, name: str) -> bool:
    return method.weight is not None and (layer_type(name) != "adaln" or method.adaln is not None)


def weight_quantiser(card: Card) -> Quantiser:
    return Quantiser(card.variant.method.weight, card.variant.weight_bits)


def layout(card: Card) -> dict[str, Field]:
    """Name -> field of all tensors of a packed file."""
    kind = torch.float32 if card.variant.method.weight is None else torch.float16
    fields = {name: Field(kind, shape) for name, shape in _outer(card).items()}
    for name, shape in layer_shapes(card).items():
        path = module_path(name)
        if is_quantised(card.variant.method, name):
            fields |= {path + suffix: field for suffix, field in _quantised(card, name, shape).items()}
        else:
            fields |= {f"{path}.weight": Field(kind, shape), f"{path}.bias": Field(kind, shape[:1])}
    return fields


def _outer(card: Card) -> dict[str, tuple[int, ...]]:
    """Shapes of everything outside the blocks' linears."""
    width, patch, channels = card.model.width, card.model.patch, card.shape.channels
    linears = {
        f"{EMBEDDER}.timestep_embedder.linear_1": (width, TIME_CHANNELS),
        f"{EMBEDDER}.timestep_embedder.linear_2": (width, width),
        "pos_embed.proj": (width, channels, patch, patch),
        "proj_out_1": (2 * width, width),
        "proj_out_2": (patch * patch * card.shape.outputs, width),
    }
    shapes = {f"{EMBEDDER}.class_embedder.embedding_table.weight": (card.shape.classes + 1, width)}
    for path, shape in linears.items():
        shapes |= {f"{path}.weight": shape, f"{path}.bias": shape[:1]}
    return shapes


def _quantised(card: Card, name: str, shape: tuple[int, int]) -> dict[str, Field]:
    method, (outputs, inputs), half = card.variant.method, shape, torch.float16
    levels = weight_quantiser(card).grid.levels
    scale = {
        "tensor": (1, 1),
        "channel": (outputs, 1),
        "group": (outputs, inputs // gcd(inputs, GROUP), 1),
    }[method.weight.granularity]
    fields = {CODES: Field(torch.uint8, (packed_bytes(prod(shape), levels),)), STEP: Field(half, scale)}
    fields[".bias"] = Field(half, (outputs,))
    if method.weight.centre or method.weight.format == "asymmetric":
        fields[OFFSET] = Field(half, scale)
    if method.rotation and method.rotation.signs and layer_type(name) in method.rotation.layers:
        fields[SIGNS] = Field(torch.uint8, (-(-inputs // 8),))
    if method.smoothing:
        fields[".smooth"] = Field(half, (inputs,))
    if branch := method.low_rank and method.low_rank.at(layer_type(name)):
        rank = branch.rank
        fields |= {".up": Field(half, (outputs, rank)), ".down": Field(half, (rank, inputs))}
    if method.activation and method.activation.scale == "learned" and card.bits[name] != 32:
        buckets = (method.activation.buckets,)
        fields |= {f".activation_quantiser{suffix}": Field(half, buckets) for suffix in (STEP, OFFSET)}
    return fields


def check(card: Card, tensors: dict[str, torch.Tensor], where: object) -> None:
    """Raises BenchError unless the card makes sense and the tensors are exactly the ones it calls for."""
    _check_card(card, len(tensors), where)
    wanted = layout(card)
    for name in sorted(wanted.keys() | tensors.keys()):
        want, have = wanted.get(name), tensors.get(name)
        if want is None or have is None or Field(have.dtype, tuple(have.shape)) != want:
            there = "absent" if have is None else f"{have.dtype} {list(have.shape)}"
            needed = "absent" if want is None else f"{want.dtype} {list(want.shape)}"
            raise BenchError(f"{where}: damaged packed file: {name!r} is {there}, its card wants {needed}")


def _check_card(card: Card, tensors: int, where: object) -> None:
    """Refuse a card whose mere layout would be too large to write down, or that no model can follow."""
    method, model = card.variant.method, card.model
    if model.depth > tensors:
        raise BenchError(f"{where}: damaged packed file: {model.depth} blocks, but only {tensors} tensors")
    if model.patch > card.shape.size or card.shape.size % model.patch:
        raise BenchError(f"{where}: damaged packed file: size {card.shape.size} is no multiple of patch {model.patch}")
    if (card.shape.size // model.patch) ** 2 > MOST_TOKENS:
        raise BenchError(f"{where}: images of size {card.shape.size} have more than {MOST_TOKENS} tokens")
    if method.low_rank and method.low_rank.largest >= model.width:
        raise BenchError(f"{where}: damaged packed file: rank {method.low_rank.largest} in a width of {model.width}")
    if card.bits.keys() != layer_shapes(card).keys() or not set(card.bits.values()) <= set(ACTIVATION_BITS):
        raise BenchError(f"{where}: damaged packed file: its bits per layer do not fit its {model.depth} blocks")
    if method.weight and (card.variant.weight_bits not in WEIGHT_BITS or card.variant.weight_bits == 32):
        raise BenchError(f"{where}: damaged packed file: weights of {card.variant.weight_bits:g} bits")
    dynamic = method.activation and method.activation.scale != "learned"
    for bits in sorted(set(card.bits.values()) - {32}) if dynamic else ():
        try:
            Quantiser(method.activation, bits)(torch.zeros(1, 2))
        except KeyError:
            raise BenchError(f"{where}: format '{method.activation.format}' has no levels for {bits} bits") from None
