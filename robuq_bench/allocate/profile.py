"""How much each block linear minds each activation width: the sensitivity profile that AMPN allocates by."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from robuq_bench.allocate.costs import Linear
from robuq_bench.models.dit import layer_type
from robuq_bench.quant.convert import quant_linears
from robuq_bench.quant.linear import QuantLinear
from robuq_bench.quant.quantiser import Quantiser
from robuq_bench.train.objective import FLOW, Batch, loss
from robuq_bench.train.processes import Process


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Of L layers at W widths. loss: float64 [L, W], rise of the loss when this layer alone changes its width;
    mse: float64 [L, W], error of the layer's output against unquantised inputs, as a share of its mean square;
    base_loss: mean squared velocity error with every layer at the model's own width.
    """

    loss: np.ndarray
    mse: np.ndarray
    base_loss: float


def block_linears(model: nn.Module) -> dict[str, QuantLinear]:
    """The quantised linears whose width is chosen: all but adaLN's."""
    return {name: layer for name, layer in quant_linears(model).items() if layer_type(name) != "adaln"}


def shapes(model: nn.Module, tokens: int) -> list[Linear]:
    """The block linears as sizes, for the cost models."""
    return [Linear(name, *layer.weight.shape, tokens) for name, layer in block_linears(model).items()]


@torch.no_grad()
def sensitivity(
    model: nn.Module,
    batches: Sequence[Batch],
    widths: Sequence[int],
    advance: Callable[[], None] = lambda: None,
    process: Process = FLOW,
) -> Sensitivity:
    """Profile a fake-quantised `model`, in eval mode and left as it was, on fixed `batches` of `process`.

    A layer's loss rise is exactly 0 at the width it has. `advance` is called once per layer and width. Paper-facts
    1.6: the paper measures after about 1000 QAT steps; its functional is unknown, so that both are measured.
    """
    layers = block_linears(model)
    measured = partial(_mean_loss, model, batches, process)
    base, mse = _base(measured, list(layers.values()), widths)
    rise = np.zeros((len(layers), len(widths)))
    for row, layer in enumerate(layers.values()):
        own = layer.activation_quantiser
        for column, bits in enumerate(widths):
            if bits != own.bits:
                with _swapped(layer, replace(own, bits=bits)):
                    rise[row, column] = measured() - base
            advance()
    return Sensitivity(rise, mse, base)


def _base(measured: Callable[[], float], layers: list[QuantLinear], widths: Sequence[int]) -> tuple[float, np.ndarray]:
    """(loss, relative output errors [L, W]) in one pass: each layer meets every width at its own place."""
    error, power = np.zeros((len(layers), len(widths))), np.zeros((len(layers), 1))

    def see(row: int) -> Callable[[QuantLinear, tuple[Tensor]], None]:
        def hook(layer: QuantLinear, inputs: tuple[Tensor]) -> None:
            own = layer.activation_quantiser
            exact = _output(layer, None, inputs[0])
            power[row] += exact.square().mean().item()
            for column, bits in enumerate(widths):
                rough = _output(layer, replace(own, bits=bits), inputs[0])
                error[row, column] += (rough - exact).square().mean().item()

        return hook

    hooks = [layer.register_forward_pre_hook(see(row)) for row, layer in enumerate(layers)]
    try:
        value = measured()
    finally:
        for hook in hooks:
            hook.remove()
    return value, error / power


def _mean_loss(model: nn.Module, batches: Sequence[Batch], process: Process) -> float:
    return sum(loss(model, batch, process).item() for batch in batches) / len(batches)


def _output(layer: QuantLinear, quantiser: Quantiser | None, x: Tensor) -> Tensor:
    """The layer's output under another activation quantiser. Calls no hooks."""
    with _swapped(layer, quantiser):
        return layer.forward(x)


@contextmanager
def _swapped(layer: QuantLinear, quantiser: Quantiser | None) -> Iterator[None]:
    own = layer.activation_quantiser
    layer.activation_quantiser = quantiser
    try:
        yield
    finally:
        layer.activation_quantiser = own
