"""The two activation-activation products of attention at 8 bits (precision map, paper-facts 1.1)."""

import torch
from torch import Tensor

from robuq_bench.config.recipe import Quantiser as Spec
from robuq_bench.quant import fused, fused_attention
from robuq_bench.quant.quantiser import Quantiser, _Round


class EightBitAttention:
    """softmax(Q K^T / sqrt(d)) V with fake-quantised operands.

    Q, K: absmax per token; V: absmax per channel over tokens, so that its scale leaves the sum over tokens; the
    probabilities: 0..255 with the fixed step 1/255. Shapes [B, heads, T, d]. This is the plain path, the reference;
    under bfloat16 autocast on a CUDA device robuq_bench.quant.fused_attention computes the same.
    """

    def __init__(self):
        self.quantiser = Quantiser(Spec(format="midtread", granularity="token", scale="absmax"), 8)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if fused.active(query) and fused_attention.covers(query, key, value):
            return fused_attention.attend(query, key, value)
        scores = self.quantiser(query) @ self.quantiser(key).transpose(-1, -2)
        probabilities = torch.softmax(scores / query.shape[-1] ** 0.5, dim=-1)
        probabilities = _Round.apply(probabilities, torch.round(probabilities.detach() * 255) / 255, None)
        return probabilities @ self.quantiser(value.transpose(-1, -2)).transpose(-1, -2)
