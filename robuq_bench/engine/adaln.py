"""The adaLN modulations of all blocks at once, from one conditioning vector per image."""

from collections.abc import Iterator

import torch
from torch import Tensor

from robuq_bench.config.recipe import Recipe
from robuq_bench.engine.kernels.adaln import AdalnLayer, modulations, pack_adaln
from robuq_bench.engine.layers import ReferenceLinear, channel_scale, layer_rotation, padded_branch
from robuq_bench.engine.packed import Layer

Modulations = Iterator[tuple[Tensor, ...]]
"""For each block, in order, shift, scale, gate of the attention and of the MLP: six tensors [B, width]."""


class ReferenceModulations:
    """modulations(silu(conditioning) [B, width] float32) -> Modulations in float32, by exact integers."""

    def __init__(self, layers: list[Layer], method: Recipe, device: torch.device):
        self.linears = [ReferenceLinear(layer, method, device) for layer in layers]

    def __call__(self, conditioning: Tensor) -> Modulations:
        return (linear(conditioning).chunk(6, -1) for linear in self.linears)


class KernelModulations:
    """The same on the GPU, views of a bfloat16 tensor [blocks, B, 6 width]."""

    def __init__(self, layers: list[Layer], method: Recipe, device: torch.device):
        activation = method.activation
        packed = [_packed(layer, method, device) for layer in layers]
        self.stack = pack_adaln(packed, layers[0].bits, activation.format, activation.centre)

    def __call__(self, conditioning: Tensor) -> Modulations:
        return (block.chunk(6, -1) for block in modulations(conditioning, self.stack))


def _packed(layer: Layer, method: Recipe, device: torch.device) -> AdalnLayer:
    down, up = padded_branch(layer, device)
    ternary, bias = layer.codes().to(device), layer.bias.to(device, torch.float32)
    return AdalnLayer(layer_rotation(layer, method, device), ternary, channel_scale(layer).to(device), bias, up, down)
