"""The fake-quantised model as a denoiser: in float32, or quickly in bfloat16."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from robuq_bench.engine.graphs import Graphs
from robuq_bench.models.fused import fused
from robuq_bench.quant.frozen import freeze


class Quick:
    """A model under bfloat16 autocast; on a GPU by the fused kernels, as one CUDA graph for each batch size.

    Called as diffusers' DiT is; input and output are float32.
    """

    def __init__(self, model: nn.Module, device: str):
        self.model, self.device = model, device
        self._run = Graphs(self._fused) if device == "cuda" else self._forward
        if device == "cuda":
            freeze(model)

    def __call__(self, x: Tensor, timestep: Tensor, class_labels: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=self._run(x, timestep, class_labels))

    def _fused(self, *given: Tensor) -> Tensor:
        with fused(self.model):
            return self._forward(*given)

    def _forward(self, x: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16):
            return self.model(x, timestep=timestep, class_labels=labels).sample.float()


def denoiser(model: nn.Module, precision: str, device: str) -> nn.Module | Quick:
    """`model` on the device, in "float32" or "bfloat16"."""
    model = model.to(device)
    return Quick(model, device) if precision == "bfloat16" else model
