"""A quantised linear of the deployed model, twice: in exact integers with torch alone, and on the GPU kernels.

Both are called as layer(x, modulation=, settled=, epsilon=, epilogue=, gate=, residual=) on tokens x [m, inputs] and
give [m, outputs]. modulation = (scale, shift), each [images, inputs]: LayerNorm without affine, then (1 + scale) . +
shift, first; settled: made long before (see `rotate_quantize`). epilogue: "none"; "gelu" (tanh form); "gate",
gate[image] * y + residual with gate [images, outputs].
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from robuq_bench.config.recipe import Recipe
from robuq_bench.engine.kernels import Rotation, gemm, pack_down, pack_next, pack_weight, rotate_quantize
from robuq_bench.engine.kernels.packing import RANK, empty_sums
from robuq_bench.engine.packed import Layer
from robuq_bench.engine.support import kernel_rotation
from robuq_bench.errors import BenchError
from robuq_bench.quant.hadamard import block_width, rotate
from robuq_bench.quant.quantiser import Quantiser

Modulation = tuple[Tensor, Tensor]
MODULATED = ("qkv", "fc1")
"""Kinds of layers whose tokens are modulated on the way in."""
EXACT = 1 << 24
"""float32 holds every integer up to here, so sums of integers below it are exact in any order."""


class ReferenceLinear:
    """The exact integer reference, float32 around it; agrees with `QuantLinear` to the rounding of float32."""

    def __init__(self, layer: Layer, method: Recipe, device: torch.device):
        self.quantiser = Quantiser(method.activation, layer.bits)
        self.block = block_width(layer.shape[1], method.rotation.kind)
        self.signs = None if layer.signs is None else layer.signs.to(device, torch.float32)
        self.codes = layer.codes().to(device)
        self.sums = self.codes.sum(-1, dtype=torch.float32)
        self.alpha = channel_scale(layer).to(device)
        self.bias = layer.bias.to(device, torch.float32)
        branch = (layer.down, layer.up)
        self.down, self.up = (None if part is None else part.to(device, torch.float32) for part in branch)

    def __call__(
        self,
        x: Tensor,
        *,
        modulation: Modulation | None = None,
        settled: bool = False,
        epsilon: float = 1e-6,
        epilogue: str = "none",
        gate: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        hidden = x if modulation is None else modulate(x, modulation, epsilon)
        hidden = rotate(hidden if self.signs is None else hidden * self.signs, self.block)
        scale = self.quantiser.scale(hidden)
        dot = exact_product(self.quantiser.encode(hidden, scale), self.codes)
        y = scale.step * (dot + self.quantiser.grid.shift * self.sums)
        if scale.offset is not None:
            y = y + scale.offset * self.sums
        y = y * self.alpha + self.bias
        if self.down is not None:
            y = y + (hidden @ self.down.T) @ self.up.T
        if epilogue == "gelu":
            y = F.gelu(y, approximate="tanh")
        if epilogue == "gate":
            y = _per_image(gate, y) * y + residual
        return y


@dataclass(frozen=True)
class Hidden:
    """Tokens between two layers, signed as the second wants them: bfloat16 [m, inputs]; `sums` of its low-rank branch,
    if it has one, as `gemm` leaves them.
    """

    tokens: Tensor
    sums: Tensor | None


class KernelLinear:
    """The same on the GPU: one row-wise kernel and one bit-serial product, bfloat16 in and out.

    feeds: the layer that takes this one's outputs and nobody else does, which then come as `Hidden`. fed: this layer
    takes those.
    """

    def __init__(
        self, layer: Layer, method: Recipe, device: torch.device, feeds: Layer | None = None, fed: bool = False
    ):
        self.bits, self.levels, self.center = layer.bits, method.activation.format, method.activation.centre
        rotation = layer_rotation(layer, method, device)
        self.rotation, self.down, self.feeds = rotation.of_signed() if fed else rotation, None, feeds is not None
        down, up = padded_branch(layer, device)
        if down is not None and fed:
            up = up / pack_next(down, rotation)[1]
        elif down is not None:
            modulated = layer.name.rsplit(".", 1)[-1] in MODULATED
            self.down = pack_down(down, rotation, "modulate" if modulated else "none")
        tensors = (part.to(device) for part in (layer.codes(), channel_scale(layer), layer.bias))
        self.weight = pack_weight(*tensors, up, *next_wants(feeds, method, device))

    def __call__(
        self,
        x: Tensor | Hidden,
        *,
        modulation: Modulation | None = None,
        settled: bool = False,
        epsilon: float = 1e-6,
        epilogue: str = "none",
        gate: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor | Hidden:
        hidden = x if isinstance(x, Hidden) else Hidden(x, None)
        sums = None if self.weight.next_down is None else empty_sums(len(hidden.tokens), hidden.tokens.device)
        tokens = rotate_quantize(
            hidden.tokens,
            self.rotation,
            self.bits,
            pre="none" if modulation is None else "modulate",
            modulation=modulation,
            settled=settled,
            down=self.down,
            center=self.center,
            levels=self.levels,
            epsilon=epsilon,
            clears=sums,
        )
        if hidden.sums is not None:
            tokens = replace(tokens, down=hidden.sums)
        y = gemm(tokens, self.weight, epilogue=epilogue, gate=gate, residual=residual, sums=sums)
        return Hidden(y, sums) if self.feeds else y


def kernel_linears(layers: Mapping[str, Layer], method: Recipe, device: torch.device) -> dict[str, KernelLinear]:
    """A block's linears by kind. fc1's product, which has fc2's tokens in registers, gives them their signs and begins
    fc2's low-rank branch.
    """
    more = {"fc1": {"feeds": layers["fc2"]}, "fc2": {"fed": True}}
    return {kind: KernelLinear(layer, method, device, **more.get(kind, {})) for kind, layer in layers.items()}


def reference_linears(layers: Mapping[str, Layer], method: Recipe, device: torch.device) -> dict[str, ReferenceLinear]:
    """The same for the reference."""
    return {kind: ReferenceLinear(layer, method, device) for kind, layer in layers.items()}


def exact_product(codes: Tensor, ternary: Tensor) -> Tensor:
    """sum_k codes[m, k] ternary[n, k] of int8 tensors, float32 [m, n] holding the exact integers.

    Any order of summation in float32 is exact, because no partial sum can reach 2^24; so BLAS may do it.
    Raises BenchError where it could.
    """
    if codes.shape[-1] * 128 > EXACT:
        raise BenchError(f"{codes.shape[-1]} input channels are too many for exact sums in float32")
    return codes.float() @ ternary.float().T


def modulate(x: Tensor, modulation: Modulation, epsilon: float) -> Tensor:
    """LayerNorm without affine, then (1 + scale) . + shift of each token's image."""
    scale, shift = (_per_image(part, x) for part in modulation)
    return F.layer_norm(x, x.shape[-1:], eps=epsilon) * (1 + scale) + shift


def layer_rotation(layer: Layer, method: Recipe, device: torch.device) -> Rotation:
    """The layer's rotation for the kernels, on `device`."""
    signs = torch.ones(layer.shape[1], dtype=torch.int8) if layer.signs is None else layer.signs
    return kernel_rotation(layer.shape[1], method.rotation.kind, signs.to(device))


def next_wants(layer: Layer | None, method: Recipe, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """The signs and the packed down-projection of the layer that takes an output, for `pack_weight`."""
    if layer is None:
        return None, None
    rotation, (down, _) = layer_rotation(layer, method, device), padded_branch(layer, device)
    return rotation.flips, None if down is None else pack_next(down, rotation)[0]


def padded_branch(layer: Layer, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """(down [16, inputs], up [outputs, 16]) float32, smaller ranks padded with zeros; (None, None) without branch."""
    if layer.down is None:
        return None, None
    missing = RANK - len(layer.down)
    down = F.pad(layer.down.to(device, torch.float32), (0, 0, 0, missing))
    return down, F.pad(layer.up.to(device, torch.float32), (0, missing))


def channel_scale(layer: Layer) -> Tensor:
    """float32 [outputs]."""
    return layer.step.float().expand(layer.shape[0], 1).reshape(-1)


def _per_image(part: Tensor, tokens: Tensor) -> Tensor:
    """[images, n] -> [tokens, n], each row repeated for all tokens of its image."""
    return part.repeat_interleave(len(tokens) // len(part), 0)
