"""A stored model made ready to draw images in bfloat16 on a GPU: weights are prepared once, not at every call."""

import torch
from torch import Tensor, nn

from robuq_bench.models.dit import linears
from robuq_bench.quant import fused
from robuq_bench.quant.linear import QuantLinear


class FrozenLinear(nn.Module):
    """`layer`, whose weights lie on their grid already, by the kernels of robuq_bench.quant.fused.

    bfloat16: joint [outputs, inputs + extra] = [W | up | bias | 0], thin [rank, inputs] = down H^T s. The input x meets
    [Q((x s) H) | x thin^T | 1 | 0], so that branch and bias are columns of one product. No gradients.
    """

    def __init__(self, layer: QuantLinear):
        super().__init__()
        (outputs, inputs), quantiser = layer.weight.shape, layer.activation_quantiser
        self.rank = 0 if layer.up is None else layer.up.shape[1]
        self.extra = max(16, 1 << self.rank.bit_length())
        parts = [layer.weight, *([] if layer.up is None else [layer.up])]
        parts.append(layer.weight.new_zeros(outputs, 1) if layer.bias is None else layer.bias[:, None])
        parts.append(layer.weight.new_zeros(outputs, self.extra - self.rank - 1))
        self.joint = torch.cat([part.detach() for part in parts], 1).to(torch.bfloat16)
        self.rotation = (layer.signs, layer.fused_left, layer.fused_right)
        self.thin = fused.rotate(layer.down.detach(), None, *self.rotation, inputs, True) if self.rank else None
        self.numbers = torch.tensor(fused.numbers(quantiser), device=layer.weight.device)
        self.statistic, _ = fused.rule(quantiser)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16).contiguous()
        if len(self.rotation[2]):
            branch = rows @ self.thin.T if self.rank else None
            ready, _ = fused.rotate_quantise(
                rows, branch, *self.rotation, self.rank, self.extra, self.numbers, self.statistic, 0
            )
        else:
            ready, _ = fused.quantise_rows(rows, rows, None, None, 0, self.extra, True, self.numbers, self.statistic, 0)
        return (ready @ self.joint.T).view(*x.shape[:-1], -1)


def freeze(model: nn.Module) -> nn.Module:
    """Replace, in place, those quantised linears of a loaded model on a GPU that the kernels cover."""
    for parent, attribute, layer in linears(model).values():
        if isinstance(layer, QuantLinear) and _covered(layer):
            setattr(parent, attribute, FrozenLinear(layer))
    return model


def _covered(layer: QuantLinear) -> bool:
    return (
        layer.weight_quantiser is None
        and fused.covers(layer.activation_quantiser, "token")
        and layer.fused_left is not None
        and layer.smooth is None
        and (layer.down is None or layer.width is not None)
    )
