"""Turn a full-precision denoiser into the fake-quantised model of a variant."""

import torch
from torch import Tensor, nn

from robuq_bench.config.recipe import Recipe, Variant
from robuq_bench.models.dit import FusedAttention, layer_type, linears
from robuq_bench.quant.attention import EightBitAttention
from robuq_bench.quant.linear import QuantLinear
from robuq_bench.quant.quantiser import Quantiser
from robuq_bench.seeds import seed


def uniform_bits(model: nn.Module, variant: Variant) -> dict[str, int]:
    """Activation bits per layer when every block linear gets the variant's bits; adaLN has its own fixed bits."""
    adaln = variant.method.adaln
    bits = {"adaln": adaln.activation_bits if adaln else 32}
    return {name: bits.get(layer_type(name), variant.activation_bits) for name in linears(model)}


def convert(model: nn.Module, variant: Variant, bits: dict[str, int], sign_seed: int) -> nn.Module:
    """Replace, in place, the linears that the recipe quantises. `bits`: activation bits per layer (32: none).

    `sign_seed` fixes the random signs of the rotation. Raises BenchError when a rank does not fit a layer.
    """
    method = variant.method
    if method.weight is None and method.activation is None:
        return model
    for name, (parent, attribute, linear) in linears(model).items():
        if layer_type(name) == "adaln" and method.adaln is None:
            continue
        setattr(parent, attribute, _quantised(linear, name, variant, bits[name], sign_seed))
    if method.attention_bits:
        for block in model.transformer_blocks:
            block.attn1.set_processor(FusedAttention(EightBitAttention()))
    return model


def _quantised(linear: nn.Linear, name: str, variant: Variant, bits: int, sign_seed: int) -> QuantLinear:
    method = variant.method
    activation = None if method.activation is None or bits == 32 else Quantiser(method.activation, bits)
    rotated = method.rotation is not None and layer_type(name) in method.rotation.layers
    return QuantLinear(
        linear,
        weight_quantiser=None if method.weight is None else Quantiser(method.weight, variant.weight_bits),
        activation_quantiser=activation,
        rotation=method.rotation.kind if rotated else None,
        signs=_signs(method, name, linear.in_features, sign_seed) if rotated else None,
        low_rank=method.low_rank,
    )


def _signs(method: Recipe, name: str, channels: int, sign_seed: int) -> Tensor | None:
    if not method.rotation.signs:
        return None
    generator = torch.Generator().manual_seed(seed("signs", sign_seed, name))
    return torch.randint(0, 2, (channels,), generator=generator, dtype=torch.int8) * 2 - 1


def quant_linears(model: nn.Module) -> dict[str, QuantLinear]:
    """The quantised linears of a converted model by layer name."""
    return {name: layer for name, (_, _, layer) in linears(model).items() if isinstance(layer, QuantLinear)}
