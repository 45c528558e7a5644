"""Turn a full-precision denoiser into the fake-quantised model of a variant."""

import torch
from torch import Tensor, nn

from robuq_bench.config.recipe import Quantiser as Spec
from robuq_bench.config.recipe import Recipe, Variant
from robuq_bench.models.dit import FusedAttention, layer_type, linears
from robuq_bench.quant.attention import EightBitAttention
from robuq_bench.quant.linear import QuantLinear
from robuq_bench.quant.quantiser import Quantiser
from robuq_bench.quant.timed import TimedQuantiser, watch_time
from robuq_bench.seeds import seed


def uniform_bits(model: nn.Module, variant: Variant) -> dict[str, int]:
    """Activation bits per layer when every block linear gets the variant's bits; adaLN has its own fixed bits."""
    adaln = variant.method.adaln
    bits = {"adaln": adaln.activation_bits if adaln else 32}
    return {name: bits.get(layer_type(name), variant.activation_bits) for name in linears(model)}


def convert(
    model: nn.Module,
    variant: Variant,
    bits: dict[str, int],
    sign_seed: int,
    input_ranges: dict[str, Tensor] | None = None,
) -> nn.Module:
    """Replace, in place, the linears that the recipe quantises. `bits`: activation bits per layer (32: none).

    `sign_seed` fixes the random signs of the rotation. `input_ranges`: max|x| per input channel of each layer, for
    recipes that smooth; without them nothing is smoothed yet (a skeleton to load into).
    Raises BenchError when a rank does not fit a layer.
    """
    method = variant.method
    if method.weight is None and method.activation is None:
        return model
    for name, (parent, attribute, linear) in linears(model).items():
        if layer_type(name) == "adaln" and method.adaln is None:
            continue
        smooth = _smooth(method, linear, None if input_ranges is None else input_ranges[name])
        setattr(parent, attribute, _quantised(linear, name, variant, bits[name], sign_seed, smooth))
    if method.attention_bits:
        for block in model.transformer_blocks:
            block.attn1.set_processor(FusedAttention(EightBitAttention()))
    if method.activation is not None and method.activation.scale == "learned":
        watch_time(model)
    return model


def _activation(spec: Spec, bits: int) -> Quantiser | TimedQuantiser:
    return TimedQuantiser(bits, spec.buckets) if spec.scale == "learned" else Quantiser(spec, bits)


def _quantised(
    linear: nn.Linear, name: str, variant: Variant, bits: int, sign_seed: int, smooth: Tensor | None
) -> QuantLinear:
    method = variant.method
    activation = None if method.activation is None or bits == 32 else _activation(method.activation, bits)
    rotated = method.rotation is not None and layer_type(name) in method.rotation.layers
    return QuantLinear(
        linear,
        weight_quantiser=None if method.weight is None else Quantiser(method.weight, variant.weight_bits),
        activation_quantiser=activation,
        rotation=method.rotation.kind if rotated else None,
        signs=_signs(method, name, linear.in_features, sign_seed) if rotated else None,
        low_rank=method.low_rank and method.low_rank.at(layer_type(name)),
        smooth=smooth,
        branch_seed=seed("branch", sign_seed, name),
    )


def _smooth(method: Recipe, linear: nn.Linear, inputs: Tensor | None) -> Tensor | None:
    """Factor [in] that inputs are divided by and weights multiplied with (SmoothQuant, arXiv 2211.10438, eq. 4)."""
    if method.smoothing is None:
        return None
    if inputs is None:
        return torch.ones(linear.in_features)
    strength = method.smoothing.strength
    weights = linear.weight.detach().abs().amax(0).clamp_min(1e-5)
    return inputs.to(weights).clamp_min(1e-5) ** strength / weights ** (1 - strength)


def _signs(method: Recipe, name: str, channels: int, sign_seed: int) -> Tensor | None:
    if not method.rotation.signs:
        return None
    generator = torch.Generator().manual_seed(seed("signs", sign_seed, name))
    return torch.randint(0, 2, (channels,), generator=generator, dtype=torch.int8) * 2 - 1


def quant_linears(model: nn.Module) -> dict[str, QuantLinear]:
    """The quantised linears of a converted model by layer name."""
    return {name: layer for name, (_, _, layer) in linears(model).items() if isinstance(layer, QuantLinear)}
