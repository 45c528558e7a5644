"""The packed model: what a row is evaluated and measured as. One safetensors file, loadable on any device.

Quantised weights are integer codes (ternary at 5 trits a byte) with FP16 scales; the low-rank branch, biases and all
else are FP16; random signs are one bit. A full-precision model is kept in FP32.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from robuq_bench.config.recipe import Variant
from robuq_bench.engine.storage import pack, unpack
from robuq_bench.errors import BenchError
from robuq_bench.files import sha256_arrays
from robuq_bench.models import checkpoint, dit
from robuq_bench.models.checkpoint import Card
from robuq_bench.quant.convert import convert, quant_linears
from robuq_bench.quant.formats import Scale
from robuq_bench.quant.quantiser import Quantiser

CODES, STEP, OFFSET, SIGNS, GAIN = ".codes", ".step", ".offset", ".signs", ".gain"


def export(model: nn.Module, card: Card, path: str | Path) -> None:
    """Write the trained fake-quantised `model` as a packed file. Raises BenchError on values FP16 cannot hold."""
    tensors = dict(model.state_dict())
    for prefix, quantiser in _quantised(model).items():
        weight = tensors.pop(f"{prefix}.weight")
        scale = quantiser.scale(weight)
        codes = quantiser.encode(weight, scale).cpu().numpy() - quantiser.grid.low
        tensors[prefix + CODES] = torch.from_numpy(pack(codes, quantiser.grid.levels))
        gain = tensors.pop(prefix + GAIN, None)
        tensors[prefix + STEP] = scale.step if gain is None else scale.step * gain
        if scale.offset is not None:
            tensors[prefix + OFFSET] = scale.offset
        if prefix + SIGNS in tensors:
            tensors[prefix + SIGNS] = torch.from_numpy(np.packbits(tensors[prefix + SIGNS].cpu().numpy() > 0))
    if card.variant.method.weight is not None:
        tensors = {name: _half(name, tensor, path) for name, tensor in tensors.items()}
    facts = {**card.facts, "content": content(tensors)}
    checkpoint.save(path, tensors, replace(card, kind="packed", facts=facts))


def load(path: str | Path) -> tuple[nn.Module, Card]:
    """The model of a packed file, in float32, ready to run. Raises BenchError when the content hash is wrong."""
    tensors, card = checkpoint.load(path, "packed")
    if card.diverged:
        raise BenchError(f"{path}: this row diverged ({card.reason}); there is no model to run")
    if content(tensors) != card.facts.get("content"):
        raise BenchError(f"{path}: content does not match its hash; export this model again")
    model = skeleton(card)
    for layer in quant_linears(model).values():
        layer.gain = None  # folded into the scales
    own = model.state_dict()
    for prefix, quantiser in _quantised(model).items():
        shape = tuple(own[f"{prefix}.weight"].shape)
        needed = [prefix + CODES, prefix + STEP]
        if missing := [name for name in needed if name not in tensors]:
            raise BenchError(f"{path}: damaged packed weights; {missing[0]} is missing")
        codes = unpack(tensors.pop(prefix + CODES).numpy(), quantiser.grid.levels, shape, f"{path}: {prefix}")
        step, offset = tensors.pop(prefix + STEP).float(), tensors.pop(prefix + OFFSET, None)
        scale = Scale(step, step, None if offset is None else offset.float())
        signed = torch.from_numpy(codes.astype(np.int16)) + quantiser.grid.low
        tensors[f"{prefix}.weight"] = quantiser.decode(signed, scale)
        if prefix + SIGNS in tensors:
            bits = np.unpackbits(tensors[prefix + SIGNS].numpy(), count=shape[1])
            tensors[prefix + SIGNS] = torch.from_numpy(bits.astype(np.int8)) * 2 - 1
    checkpoint.load_into(
        model, {name: t.to(own[name].dtype) if name in own else t for name, t in tensors.items()}, path
    )
    for layer in quant_linears(model).values():
        layer.weight_quantiser = None  # the weights lie on their grid already
    return model.eval(), card


def skeleton(card: Card) -> nn.Module:
    """A model of the card's structure with arbitrary weights."""
    return convert(dit.build(card.model, card.shape), _blank(card.variant), card.bits, card.seed)


def content(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of all tensors."""
    names = sorted(tensors)
    arrays = [tensors[name].cpu().numpy() for name in names]
    return sha256_arrays(np.frombuffer("\n".join(names).encode(), dtype=np.uint8), *arrays)


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
