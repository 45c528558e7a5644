"""The packed model: what a row is evaluated and measured as. One safetensors file, loadable on any device.

Quantised weights are integer codes (ternary at 5 trits a byte) with FP16 scales; the low-rank branch, biases and all
else are FP16; random signs are one bit. A full-precision model is kept in FP32.
`read` gives what is stored, integers and scales; `load` the fake-quantised model that it stands for.
Nothing in a file is trusted: types and shapes must be those its card calls for, values finite, scales not negative.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from robuq_bench.config.recipe import Variant
from robuq_bench.engine import storage
from robuq_bench.engine.layout import (
    CODES,
    OFFSET,
    SIGNS,
    STEP,
    check,
    is_quantised,
    layer_shapes,
    module_path,
    weight_quantiser,
)
from robuq_bench.errors import BenchError
from robuq_bench.files import sha256_arrays
from robuq_bench.models import checkpoint, dit
from robuq_bench.models.checkpoint import Card
from robuq_bench.quant.convert import convert, quant_linears
from robuq_bench.quant.formats import Scale
from robuq_bench.quant.quantiser import Quantiser


@dataclass(frozen=True)
class Layer:
    """A quantised linear [outputs, inputs] as stored: y = Qa(h) W^T + (h down^T) up^T + bias, h the rotated input.

    step, offset: float16, broadcastable to the quantiser's groups of the weight. bias [outputs], smooth [inputs],
    down [rank, inputs], up [outputs, rank]: float16. signs: int8 [inputs] of +-1. bits: of the activations, 32 for
    none. Parts that a recipe leaves out are None.
    """

    name: str
    shape: tuple[int, int]
    quantiser: Quantiser
    bits: int
    packed: Tensor
    step: Tensor
    bias: Tensor
    offset: Tensor | None = None
    signs: Tensor | None = None
    smooth: Tensor | None = None
    down: Tensor | None = None
    up: Tensor | None = None

    def codes(self) -> Tensor:
        """The integers of the weight in low..high of the quantiser's grid: [outputs, inputs], int8 (int16: 8 bits)."""
        grid = self.quantiser.grid
        codes = storage.unpack(self.packed.numpy(), grid.levels, self.shape, self.name)
        signed = codes.view(np.int8) if grid.levels <= 128 else codes.astype(np.int16)
        return torch.from_numpy(signed).add_(grid.low)

    def weight(self) -> Tensor:
        """The dequantised weight, float32 [outputs, inputs]."""
        step, offset = self.step.float(), None if self.offset is None else self.offset.float()
        return self.quantiser.decode(self.codes(), Scale(step, step, offset))


@dataclass(frozen=True)
class Stored:
    """A packed file in memory: `layers` by name ("blocks.3.fc2"); `rest`: every other tensor by state-dict name."""

    card: Card
    layers: dict[str, Layer]
    rest: dict[str, Tensor]


def export(model: nn.Module, card: Card, path: str | Path) -> None:
    """Write the trained fake-quantised `model` as a packed file. Raises BenchError on values FP16 cannot hold."""
    tensors = dict(model.state_dict())
    for prefix, quantiser in _quantised(model).items():
        weight = tensors.pop(f"{prefix}.weight")
        scale = quantiser.scale(weight)
        codes = quantiser.encode(weight, scale).cpu().numpy() - quantiser.grid.low
        tensors[prefix + CODES] = torch.from_numpy(storage.pack(codes, quantiser.grid.levels))
        gain = tensors.pop(f"{prefix}.gain", None)
        tensors[prefix + STEP] = scale.step if gain is None else scale.step * gain
        if scale.offset is not None:
            tensors[prefix + OFFSET] = scale.offset
        if prefix + SIGNS in tensors:
            tensors[prefix + SIGNS] = torch.from_numpy(np.packbits(tensors[prefix + SIGNS].cpu().numpy() > 0))
    if card.variant.method.weight is not None:
        tensors = {name: _half(name, tensor, path) for name, tensor in tensors.items()}
    write(path, tensors, card)


def write(path: str | Path, tensors: dict[str, Tensor], card: Card) -> None:
    """Write a packed file of stored tensors. Raises BenchError when `read` would refuse it."""
    _check_values(tensors, path)
    facts = {**card.facts, "content": content(tensors)}
    checkpoint.save(path, tensors, replace(card, kind="packed", facts=facts))


def read(path: str | Path) -> Stored:
    """What a packed file holds. Safe on any file: raises BenchError in one line when it is not whole and sound."""
    tensors, card = checkpoint.load(path, "packed")
    if card.diverged:
        raise BenchError(f"{path}: this row diverged ({card.reason}); there is no model to run")
    check(card, tensors, path)
    if content(tensors) != card.facts.get("content"):
        raise BenchError(f"{path}: content does not match its hash; export this model again")
    _check_values(tensors, path)
    layers = {
        name: _layer(name, shape, card, tensors, path)
        for name, shape in layer_shapes(card).items()
        if is_quantised(card.variant.method, name)
    }
    return Stored(card, layers, tensors)


def load(path: str | Path) -> tuple[nn.Module, Card]:
    """The model of a packed file, in float32, ready to run. Raises BenchError as `read` does."""
    stored = read(path)
    model = skeleton(stored.card)
    tensors = dict(stored.rest)
    for name, layer in stored.layers.items():
        parts = {part: getattr(layer, part) for part in ("bias", "signs", "smooth", "down", "up")} | {
            "weight": layer.weight()
        }
        tensors |= {f"{module_path(name)}.{part}": tensor for part, tensor in parts.items() if tensor is not None}
    for layer in quant_linears(model).values():
        layer.gain = None  # folded into the scales
        layer.weight_quantiser = None  # the weights lie on their grid already
    own = model.state_dict()
    tensors = {name: tensor.to(own[name].dtype) if name in own else tensor for name, tensor in tensors.items()}
    checkpoint.load_into(model, tensors, path)
    return model.eval(), stored.card


def skeleton(card: Card) -> nn.Module:
    """A model of the card's structure with arbitrary weights."""
    return convert(dit.build(card.model, card.shape), _blank(card.variant), card.bits, card.seed)


def content(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of all tensors."""
    names = sorted(tensors)
    arrays = [tensors[name].cpu().numpy() for name in names]
    return sha256_arrays(np.frombuffer("\n".join(names).encode(), dtype=np.uint8), *arrays)


def _layer(name: str, shape: tuple[int, int], card: Card, tensors: dict[str, Tensor], path: str | Path) -> Layer:
    """Take a layer's tensors out of `tensors`."""
    prefix, quantiser = module_path(name), weight_quantiser(card)
    parts = {part: tensors.pop(f"{prefix}.{part}", None) for part in ("bias", "smooth", "down", "up")}
    packed, signs = tensors.pop(prefix + CODES), tensors.pop(prefix + SIGNS, None)
    storage.check(packed.numpy(), quantiser.grid.levels, shape[0] * shape[1], f"{path}: {name}")
    if signs is not None:
        bits = np.unpackbits(signs.numpy(), count=shape[1])
        signs = torch.from_numpy(bits.astype(np.int8)) * 2 - 1
    step, offset = tensors.pop(prefix + STEP), tensors.pop(prefix + OFFSET, None)
    return Layer(name, shape, quantiser, card.bits[name], packed, step, offset=offset, signs=signs, **parts)


def _check_values(tensors: dict[str, Tensor], path: str | Path) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise BenchError(f"{path}: {name!r} holds values that are not finite; export this model again")
        if name.endswith(STEP) and (tensor < 0).any():
            raise BenchError(f"{path}: {name!r} holds negative scales; export this model again")


def _blank(variant: Variant) -> Variant:
    """The variant with a branch that costs no SVD: its values are about to be replaced."""
    low_rank = variant.method.low_rank
    if low_rank is None:
        return variant
    zero = low_rank.model_copy(update={"init": "zero"})
    return variant.model_copy(update={"method": variant.method.model_copy(update={"low_rank": zero})})


def _quantised(model: nn.Module) -> dict[str, Quantiser]:
    """Module path -> weight quantiser of every layer whose weight is quantised."""
    layers = {id(layer): layer for layer in quant_linears(model).values()}
    return {name: m.weight_quantiser for name, m in model.named_modules() if id(m) in layers and m.weight_quantiser}


def _half(name: str, tensor: Tensor, path: str | Path) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    if not torch.isfinite(half).all():
        raise BenchError(f"{path}: '{name}' holds values that FP16 cannot hold; the row has diverged")
    return half
