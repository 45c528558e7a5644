"""A trained row, taken apart: its weights, what its low-rank branch carries, how well it meets its activations."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robuq_bench.engine import packed
from robuq_bench.errors import BenchError
from robuq_bench.files import sha256_file
from robuq_bench.measure.inspect_activations import about, noisy
from robuq_bench.measure.inspect_records import Branch, Row, RowLayer, WeightControl
from robuq_bench.models import checkpoint
from robuq_bench.models.checkpoint import Card
from robuq_bench.models.dit import linears, predict
from robuq_bench.quant.convert import quant_linears
from robuq_bench.quant.linear import QuantLinear
from robuq_bench.quant.quantiser import Quantiser
from robuq_bench.seeds import seed
from robuq_bench.train.examples import Examples


def load(packed_path: Path, trained_path: Path) -> tuple[nn.Module, nn.Module, Card]:
    """(packed model, trained model with its full-precision weights, card).

    Raises BenchError when the first was not packed from the second, or the row quantises no weights.
    """
    model, card = packed.load(packed_path)
    tensors, trained_card = checkpoint.load(trained_path, "trained")
    if trained_card.provenance != card.provenance:
        raise BenchError(f"{packed_path}: was not packed from {trained_path}; give the two files of one row")
    if card.variant.method.weight is None:
        raise BenchError(f"{packed_path}: {card.variant.recipe} quantises no weights; give a row of another recipe")
    trained = packed.skeleton(card)
    checkpoint.load_into(trained, tensors, trained_path)
    return model, trained.eval(), card


@dataclass
class _Energies:
    """Sums of squares over all passes: outputs, the main product's and the branch's part, inputs, their error."""

    output: float = 0.0
    main: float = 0.0
    branch: float = 0.0
    inputs: float = 0.0
    error: float = 0.0

    def add(self, layer: QuantLinear, inputs: tuple[Tensor], output: Tensor) -> None:
        hidden = layer.hidden(inputs[0])
        self.inputs += _energy(hidden)
        product = output if layer.bias is None else output - layer.bias
        self.output += _energy(product)
        if layer.down is not None:
            branch = F.linear(F.linear(hidden, layer.down), layer.up)
            self.branch += _energy(branch)
            self.main += _energy(product - branch)
        if layer.activation_quantiser is not None:
            self.error += _energy(layer.activation_quantiser(hidden) - hidden)


def _relative(part: float, whole: float) -> float:
    """part / whole; nothing of nothing is 0. Raises BenchError when there is something of nothing."""
    if whole == 0 != part:
        raise BenchError("all zeros, so that no error is relative to it; is this model trained?")
    return part / whole if part else 0.0


def _energy(x: Tensor) -> float:
    return x.double().square().sum().item()


@torch.no_grad()
def row(
    files: tuple[Path, Path],
    full_precision: nn.Module,
    held_out: Examples,
    times: tuple[float, ...],
    device: str,
    advance: Callable[[], None],
) -> Row:
    """The row of `files` (packed, trained). `advance` is called after each forward pass."""
    model, trained, card = load(*files)
    originals = {name: linear.weight for name, (_, _, linear) in linears(full_precision).items()}
    layers, latent = quant_linears(model.to(device)), quant_linears(trained.to(device))
    energies = {name: _Energies() for name in layers}
    hooks = [layer.register_forward_hook(partial(_see, energies[name])) for name, layer in layers.items()]
    for _, x, time, labels in noisy(held_out, times, device):
        predict(model, x, time, labels)
        advance()
    for hook in hooks:
        hook.remove()
    return Row(
        title=card.variant.method.title,
        recipe=card.variant.recipe,
        variant=card.variant.name,
        seed=card.seed,
        packed=sha256_file(files[0]),
        control=_control(card),
        layers=tuple(
            _layer(name, card.bits[name], layer, latent[name], originals[name], energies[name])
            for name, layer in layers.items()
        ),
    )


def _control(card: Card) -> WeightControl:
    """The row's weight quantiser on normal weights."""
    weight = torch.randn(512, 2048, generator=torch.Generator().manual_seed(seed("control", "weight")))
    values = Quantiser(card.variant.method.weight, card.variant.weight_bits)(weight)
    return WeightControl(
        zero=(values == 0).double().mean().item(), rounding_error=_relative(_energy(values - weight), _energy(weight))
    )


def _see(energies: _Energies, layer: QuantLinear, inputs: tuple[Tensor], output: Tensor) -> None:
    energies.add(layer, inputs, output)


def _layer(
    name: str, bits: int, layer: QuantLinear, latent: QuantLinear, original: Tensor, energies: _Energies
) -> RowLayer:
    weight = layer.weight.double()
    whole = weight if layer.down is None else weight + layer.up.double() @ layer.down.double()
    target = layer.rotate(original if layer.smooth is None else original * layer.smooth)
    with about(name):
        return RowLayer(
            name=name,
            bits=bits,
            minus=(weight < 0).double().mean().item(),
            zero=(weight == 0).double().mean().item(),
            plus=(weight > 0).double().mean().item(),
            rounding_error=_relative(_energy(latent.quantised_weight() - latent.weight), _energy(latent.weight)),
            drift=_relative(_energy(whole - target), _energy(target)),
            activation_error=None if layer.activation_quantiser is None else _relative(energies.error, energies.inputs),
            branch=None if layer.down is None else _branch(layer, whole, energies),
        )


def _branch(layer: QuantLinear, whole: Tensor, energies: _Energies) -> Branch:
    # up @ down has the singular values of the two small triangular factors' product.
    up, down = (torch.linalg.qr(part.double()).R for part in (layer.up, layer.down.T))
    values = torch.linalg.svdvals(up @ down.T)
    return Branch(
        output_share=_relative(energies.branch, energies.output),
        main_share=_relative(energies.main, energies.output),
        weight_share=_relative(values.square().sum().item(), _energy(whole)),
        singular_values=tuple(values.tolist()),
    )
