"""The two activation-activation products of attention at 8 bits (precision map, paper-facts 1.1)."""

import torch
from torch import Tensor

from robuq_bench.config.recipe import Quantiser as Spec
from robuq_bench.quant import fused, fused_attention
from robuq_bench.quant.quantiser import Quantiser, _Round


class EightBitAttention:
    """softmax(Q K^T / sqrt(d)) V with fake-quantised operands.

    Q, K: absmax per token; V: absmax per channel over tokens, so that its scale leaves the sum over tokens; the
    probabilities: 0..255 with the fixed step 1/255. Shapes [B, heads, T, d]. The call is the plain path, the reference;
    `joint`, under bfloat16 autocast on a CUDA device, computes the same by robuq_bench.quant.fused_attention.
    """

    def __init__(self):
        self.quantiser = Quantiser(Spec(format="midtread", granularity="token", scale="absmax"), 8)

    def joint(self, operands: Tensor) -> Tensor:
        """Output [B, heads, T, d] of queries, keys and values in one tensor [3, B, heads, T, d]."""
        if fused.active(operands) and fused_attention.covers(*operands.shape[-2:]):
            return fused_attention.attend(operands)
        return self(*operands)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = self.quantiser(query) @ self.quantiser(key).transpose(-1, -2)
        probabilities = torch.softmax(scores / query.shape[-1] ** 0.5, dim=-1)
        probabilities = _Round.apply(probabilities, torch.round(probabilities.detach() * 255) / 255, None)
        return probabilities @ self.quantiser(value.transpose(-1, -2)).transpose(-1, -2)
