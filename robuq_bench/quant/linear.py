"""The quantised linear layer: rotate, quantise, multiply, add the low-rank branch (paper-facts 1.2-1.5)."""

import scipy
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robuq_bench.config.recipe import LowRank
from robuq_bench.errors import BenchError
from robuq_bench.quant import fused
from robuq_bench.quant.formats import TINY
from robuq_bench.quant.hadamard import block_width, factors, mix
from robuq_bench.quant.quantiser import Quantiser


def leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(up [m, rank], down [rank, n]), float64: the best approximation of matrix [m, n], singular values halved between.

    From the largest eigenvalues of the smaller Gram matrix: a tenth of the time of a whole decomposition.
    """
    tall = matrix.double() if len(matrix) >= matrix.shape[1] else matrix.double().T
    last = tall.shape[1] - 1
    values, right = scipy.linalg.eigh((tall.T @ tall).cpu().numpy(), subset_by_index=[last - rank + 1, last])
    right = torch.from_numpy(right).flip(1)
    root = torch.from_numpy(values).flip(0).clamp_min(TINY).sqrt().sqrt()
    outer, inner = tall @ right / root, (right * root).T
    return (outer, inner) if tall.shape == matrix.shape else (inner.T, outer.T)


class QuantLinear(nn.Module):
    """y = Qa(h) Qw(W)^T + (h down^T) up^T + bias with h = (x / smooth * signs) H.

    `weight` [out, in] lives in the rotated domain and is trained there: it is the residual that remains when the
    low-rank branch up [out, r] @ down [r, in] is taken away. Parts that a recipe leaves out are None.
    A stored model has no weight quantiser: its weight holds values of the grid already.

    This is the plain path, the reference. Under bfloat16 autocast on a CUDA device robuq_bench.quant.fused computes
    the same, within bfloat16 rounding, for the parts it covers (`fused`).
    """

    def __init__(
        self,
        linear: nn.Linear,
        weight_quantiser: Quantiser | None,
        activation_quantiser: Quantiser | nn.Module | None,
        rotation: str | None = None,
        signs: Tensor | None = None,
        low_rank: LowRank | None = None,
        smooth: Tensor | None = None,
        branch_seed: int = 0,
    ):
        super().__init__()
        self.register_buffer("fused_numbers", torch.zeros(2, 4), persistent=False)
        self.weight_quantiser = weight_quantiser
        self.activation_quantiser = activation_quantiser
        self.width = block_width(linear.in_features, rotation) if rotation else None
        left, right = factors(self.width) if rotation else (None, None)
        self.register_buffer("left", left, persistent=False)
        self.register_buffer("right", right, persistent=False)
        self.register_buffer("signs", signs)
        self.register_buffer("smooth", smooth)
        tables = fused.tables(linear.in_features, self.width)
        self.register_buffer("fused_left", tables and tables[0], persistent=False)
        self.register_buffer("fused_right", tables and tables[1], persistent=False)
        self.bias = linear.bias
        weight = linear.weight.detach()
        rotated = self.rotate(weight if smooth is None else weight * smooth)
        self.weight = nn.Parameter(rotated.to(linear.weight, copy=True))
        gain = weight_quantiser is not None and weight_quantiser.spec.gain
        self.gain = nn.Parameter(torch.ones(1)) if gain else None
        self.down = self.up = None
        if low_rank is not None:
            self._split_off(low_rank, branch_seed)

    def rotate(self, x: Tensor) -> Tensor:
        """(x * signs) H, or `x` itself when the layer is not rotated."""
        if self.width is None:
            return x
        signed = x if self.signs is None else x * self.signs.to(x.dtype)
        return mix(signed, self.left.to(x.dtype), self.right.to(x.dtype))

    def quantised_weight(self) -> Tensor:
        """Dequantised values [out, in] that the matrix product uses."""
        if self.weight_quantiser is None:
            return self.weight
        values = self.weight_quantiser(self.weight)
        return values if self.gain is None else values * self.gain

    def hidden(self, x: Tensor) -> Tensor:
        """Smoothed and rotated input: what the activation quantiser sees."""
        return self.rotate(x if self.smooth is None else x / self.smooth)

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name in ("weight_quantiser", "activation_quantiser"):  # what the fused path knows of them
            self._describe()

    def _describe(self) -> None:
        """Constants of the quantisers in a buffer: layers that differ in bits alone share one compiled graph."""
        pair = [getattr(self, f"{name}_quantiser", None) for name in ("weight", "activation")]
        self.fused_rules = None
        if fused.covers(pair[0], "channel") and fused.covers(pair[1], "token"):
            self.fused_rules = tuple(fused.rule(quantiser) for quantiser in pair)
            self.fused_numbers.copy_(torch.tensor([fused.numbers(quantiser) for quantiser in pair]))

    @property
    def fused(self) -> bool:
        """Whether the fused path covers this layer's parts: rotation, quantisers, branch."""
        return (
            self.fused_rules is not None
            and self.fused_left is not None
            and self.smooth is None
            and self.gain is None
            and (self.down is None or self.width is not None)
        )

    def forward(self, x: Tensor) -> Tensor:
        if fused.active(x) and self.fused:
            return fused.linear(x, self)
        hidden = self.hidden(x)
        inputs = hidden if self.activation_quantiser is None else self.activation_quantiser(hidden)
        output = F.linear(inputs, self.quantised_weight(), self.bias)
        if self.down is None:
            return output
        rows, branch = output.reshape(-1, output.shape[-1]), F.linear(hidden, self.down).reshape(-1, len(self.down))
        return torch.addmm(rows, branch, self.up.T).view(output.shape)  # output + branch up^T

    @torch.no_grad()
    def _split_off(self, branch: LowRank, branch_seed: int) -> None:
        outputs, inputs = self.weight.shape
        if branch.rank >= min(outputs, inputs):
            raise BenchError(
                f"low_rank.rank {branch.rank} is not below the smaller side of a {outputs}x{inputs} layer; lower it"
            )
        if branch.init == "zero":
            generator = torch.Generator().manual_seed(branch_seed)
            down = torch.randn(branch.rank, inputs, generator=generator) / inputs**0.5
            up = torch.zeros(outputs, branch.rank)
        else:
            target = self.weight - self.quantised_weight() if branch.of == "error" else self.weight
            up, down = leading(target, branch.rank)
        self.up, self.down = (nn.Parameter(part.to(self.weight)) for part in (up, down))
        if branch.of == "weight":  # else the branch adds to what the quantised weight keeps
            self.weight -= self.up @ self.down
