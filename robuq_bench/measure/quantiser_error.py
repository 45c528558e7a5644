"""Error of activation quantisers on the trained full-precision model, without any training."""

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robuq_bench import provenance
from robuq_bench.config.preset import load_preset, preset_arguments
from robuq_bench.config.recipe import Quantiser as Spec
from robuq_bench.config.recipe import Variant, load_variant
from robuq_bench.devices import describe, expect, use
from robuq_bench.errors import BenchError
from robuq_bench.files import write_json
from robuq_bench.models import checkpoint, dit
from robuq_bench.progress import Bar
from robuq_bench.quant.convert import convert, quant_linears, uniform_bits
from robuq_bench.quant.linear import QuantLinear
from robuq_bench.train.examples import Examples, examples
from robuq_bench.train.held_out import held_out_loss

EXAMPLE = "robuq-bench quantiser-error --preset quick --model fp.safetensors --out quantizer_error.json"
BITS = (2, 3, 4)
IMAGES = 512
SETTINGS = {
    "min-max": Spec(format="asymmetric", granularity="token", scale="minmax"),
    "absmax": Spec(format="midtread", granularity="token", scale="absmax"),
    "absmean": Spec(format="midtread", granularity="token", scale="absmean"),
    "Gaussian mid-rise": Spec(format="midrise", granularity="token", scale="mean_abs"),
    "Gaussian mid-rise, RMS": Spec(format="midrise", granularity="token", scale="rms"),
    "Gaussian mid-rise, centred": Spec(format="midrise", granularity="token", scale="mean_abs", centre=True),
    "Gaussian mid-tread": Spec(format="midtread", granularity="token", scale="mean_abs"),
    "Gaussian mid-tread, mid-rise step": Spec(format="midtread", granularity="token", scale="mean_abs", step="midrise"),
    "Lloyd-Max": Spec(format="lloyd_max", granularity="token", scale="mean_abs"),
}
COLUMNS = [
    {"key": "quantiser", "title": "Activation quantiser", "format": ""},
    {"key": "bits", "title": "Bits", "format": "d"},
    {"key": "relative_mse", "title": "Relative MSE of rotated inputs", "format": ".4f"},
    {"key": "held_out_loss", "title": "Held-out loss", "format": ".4f"},
]
PLOT = {
    "x": "bits",
    "y": "relative_mse",
    "series": "quantiser",
    "xlabel": "activation bits",
    "ylabel": "relative MSE of rotated inputs",
    "log": True,
}


def arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    parser.add_argument("--model", type=Path, required=True, help="full-precision checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")


def run(args: argparse.Namespace) -> None:
    preset = load_preset(args.preset, args.set)
    expect(preset.device, preset.threads)
    tensors, card = checkpoint.load(args.model, "trained")
    if card.diverged:
        raise BenchError(f"{args.model}: this model diverged ({card.reason}); there is nothing to measure")
    model = dit.build(card.model, card.shape)
    checkpoint.load_into(model, tensors, args.model)
    _, held_out = examples(preset)
    held_out = held_out.first(IMAGES)
    device = use(preset.device, preset.threads)
    rows = list(compare(model.eval(), held_out, device))
    full_precision, _ = held_out_loss(model.to(device), held_out, device)
    record = {
        "name": "quantizer_error",
        "title": "Activation quantisers on the trained model",
        "question": "How much do rotated activations lose to each quantiser, before any training?",
        "sentence": sentence(rows, full_precision),
        "columns": COLUMNS,
        "rows": rows,
        "plot": PLOT,
        "label": "simulated",
        "provenance": provenance.collect(describe(device)),
    }
    write_json(args.out, record)


def compare(model: nn.Module, held_out: Examples, device: str) -> Iterator[dict[str, Any]]:
    """A row per quantiser and bit-width: error of the block linears' inputs, and the loss it leads to.

    Weights stay in full precision and every block linear is rotated as in RobuQ, so that nothing but the
    activation quantiser differs. `model` is on the CPU, where models are converted, and stays there.
    """
    with Bar("activation quantisers", len(SETTINGS) * len(BITS)) as bar:
        for name, spec in SETTINGS.items():
            for bits in BITS:
                probed = convert(copy.deepcopy(model), activations_only(spec, bits), _bits(model, spec, bits), 0)
                with torch.no_grad(), _Errors(probed.to(device)) as errors:
                    value, _ = held_out_loss(probed, held_out, device)
                bar.advance()
                yield {
                    "quantiser": name,
                    "bits": bits,
                    "relative_mse": errors.mean(),
                    "held_out_loss": value,
                }


def activations_only(spec: Spec, bits: int) -> Variant:
    """RobuQ's rotation with `spec` for activations; weights, branch and attention as they are."""
    variant = load_variant("robuq", "W1.58A4")
    changes = {"weight": None, "low_rank": None, "adaln": None, "attention_bits": None, "activation": spec}
    return variant.model_copy(update={"activation_bits": bits, "method": variant.method.model_copy(update=changes)})


def _bits(model: nn.Module, spec: Spec, bits: int) -> dict[str, int]:
    return uniform_bits(model, activations_only(spec, bits))


def sentence(rows: list[dict[str, Any]], full_precision: float) -> str:
    """What the numbers show at the lowest bit-width."""
    lowest = min(row["bits"] for row in rows)
    ranked = sorted((row for row in rows if row["bits"] == lowest), key=lambda row: row["held_out_loss"])
    best, worst = ranked[0], ranked[-1]
    return (
        f"At {lowest} bits, {best['quantiser']} loses least (held-out loss {best['held_out_loss']:.4f} against "
        f"{full_precision:.4f} in full precision, relative MSE {best['relative_mse']:.3f}) and "
        f"{worst['quantiser']} most ({worst['held_out_loss']:.4f}, {worst['relative_mse']:.3f})."
    )


class _Errors:
    """Relative squared error of every quantised linear's input while the context is open."""

    def __init__(self, model: nn.Module):
        self.layers = quant_linears(model).values()
        self.values: list[float] = []

    def __enter__(self) -> "_Errors":
        self.hooks = [layer.register_forward_pre_hook(self._see) for layer in self.layers]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _see(self, layer: QuantLinear, inputs: tuple[torch.Tensor]) -> None:
        hidden = layer.hidden(inputs[0])
        error = (layer.activation_quantiser(hidden) - hidden).square().mean()
        self.values.append((error / hidden.square().mean()).item())

    def mean(self) -> float:
        return sum(self.values) / len(self.values)
