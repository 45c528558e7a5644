"""Inputs of every block linear of the full-precision model, as they are and rotated, at many times."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from robuq_bench.config.recipe import load_variant
from robuq_bench.errors import BenchError
from robuq_bench.measure.inspect_records import ROTATIONS, Activations, Layer, View
from robuq_bench.measure.inspect_statistics import Histogram, Totals, floors, view
from robuq_bench.models.dit import linears, predict
from robuq_bench.quant.convert import convert, quant_linears, uniform_bits
from robuq_bench.seeds import seed
from robuq_bench.train.examples import Examples
from robuq_bench.train.objective import noised

BATCH = 64
CONTROL_TOKENS = 8192
RECIPES = {
    "full": "robuq",
    "block-128": "robuq,rotation.kind=block-128",
    "unsigned": "robuq,rotation.signs=false",
}

Rotate = Callable[[Tensor], Tensor]


def rotations(model: nn.Module, sign_seed: int) -> dict[str, dict[str, Rotate]]:
    """Rotation -> layer name -> function of the layer's input [..., n]: RobuQ's, with the signs of a row's seed."""
    found = {"none": dict.fromkeys(linears(model), _unrotated)}
    device = next(model.parameters()).device  # conversion itself is the CPU's
    for kind, recipe in RECIPES.items():
        variant = load_variant(recipe, "W1.58A4")
        bare = variant.method.model_copy(update={"weight": None, "low_rank": None, "attention_bits": None})
        variant = variant.model_copy(update={"method": bare})
        layers = quant_linears(
            convert(copy.deepcopy(model).cpu(), variant, uniform_bits(model, variant), sign_seed).to(device)
        )
        found[kind] = {name: layer.hidden for name, layer in layers.items()}
    return found


def _unrotated(x: Tensor) -> Tensor:
    return x


def noisy(held_out: Examples, times: tuple[float, ...], device: str) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """(index of the time, noisy images x [B, C, H, W], times [B], labels [B]): every image at every time, fixed noise.

    Noise is added as in training.
    """
    for index, time in enumerate(times):
        for start in range(0, len(held_out), BATCH):
            part = slice(start, start + BATCH)
            signal = held_out.signal[part]
            noise = torch.randn(signal.shape, generator=torch.Generator().manual_seed(seed("inspect", index, start)))
            spread = torch.full((len(signal),), time)
            batch = noised(signal, held_out.labels[part], noise, spread, held_out.process).to(device)
            yield index, batch.x, batch.time, batch.labels


def passes(images: int, times: int) -> int:
    """Forward passes that `noisy` leads to."""
    return times * -(-images // BATCH)


@contextmanager
def about(layer: str) -> Iterator[None]:
    """A BenchError raised inside begins with the layer's name."""
    try:
        yield
    except BenchError as error:
        raise BenchError(f"{layer}: {error}") from error


class _Watch:
    """Counts every linear's input in, at the time of index `time`, while the context is open."""

    def __init__(self, model: nn.Module, times: int, sign_seed: int):
        self.layers = {name: linear for name, (_, _, linear) in linears(model).items()}
        self.rotations = rotations(model, sign_seed)
        keys = [(name, kind) for name in self.layers for kind in self.rotations]
        self.totals = {key: [Totals() for _ in range(times)] for key in keys}
        self.histograms = {key: Histogram(self.layers[key[0]].in_features) for key in keys}
        self.time = 0

    def __enter__(self) -> "_Watch":
        self.hooks = [layer.register_forward_pre_hook(partial(self._see, name)) for name, layer in self.layers.items()]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _see(self, name: str, layer: nn.Module, inputs: tuple[Tensor]) -> None:
        tokens = inputs[0].reshape(-1, inputs[0].shape[-1])
        for kind, rotate in self.rotations.items():
            rotated = rotate[name](tokens)
            with about(name):
                self.totals[name, kind][self.time].add(rotated)
            self.histograms[name, kind].add(rotated)

    def view(self, name: str, kind: str) -> View:
        return view(self.totals[name, kind], self.histograms[name, kind])


@torch.no_grad()
def activations(
    model: nn.Module,
    held_out: Examples,
    times: tuple[float, ...],
    sign_seed: int,
    device: str,
    advance: Callable[[], None],
) -> Activations:
    """What the inputs of every block linear of `model` look like. `advance` is called after each forward pass."""
    with _Watch(model, len(times), sign_seed) as watch:
        for watch.time, x, time, labels in noisy(held_out, times, device):
            predict(model, x, time, labels)
            advance()
    layers = [
        Layer(name=name, width=layer.in_features, views={kind: watch.view(name, kind) for kind in ROTATIONS})
        for name, layer in watch.layers.items()
    ]
    widths = sorted({layer.width for layer in layers})
    return Activations(
        images=len(held_out),
        times=times,
        sign_seed=sign_seed,
        floors=floors(),
        controls={width: control(width) for width in widths},
        layers=tuple(layers),
    )


def control(width: int, tokens: int = CONTROL_TOKENS) -> View:
    """Tokens that are exactly N(0, 1), measured in the same way: what the statistics say when the claim is true."""
    totals, histogram = Totals(), Histogram(width)
    generator = torch.Generator().manual_seed(seed("control", width))
    for _ in range(0, tokens, BATCH * 16):
        x = torch.randn(BATCH * 16, width, generator=generator)
        totals.add(x)
        histogram.add(x)
    return view([totals], histogram)
