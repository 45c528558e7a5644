"""Train one row: full precision from scratch, or quantisation-aware from a full-precision checkpoint."""

import argparse
from pathlib import Path

import torch
from torch import nn

from robuq_bench import provenance
from robuq_bench.config.preset import Preset, Training, load_preset, preset_arguments
from robuq_bench.config.recipe import Variant
from robuq_bench.config.row import load_row
from robuq_bench.data import ImageSet
from robuq_bench.devices import describe, use
from robuq_bench.errors import BenchError, Diverged
from robuq_bench.files import sha256_file, write_json
from robuq_bench.models import checkpoint, dit
from robuq_bench.quant.convert import convert, uniform_bits
from robuq_bench.train.bits import check_profiled, check_wanted, read_bits
from robuq_bench.train.calibrate import fit_timed, input_ranges
from robuq_bench.train.images import images
from robuq_bench.train.loop import Outcome, train
from robuq_bench.train.objective import held_out_loss, to_signal
from robuq_bench.train.state import State, fingerprint

EXAMPLE = """robuq-bench train --preset quick --recipe robuq --variant W1.58A2 --start fp.safetensors \\
    --model robuq.safetensors --curve robuq.json --state state/robuq"""


def arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    parser.add_argument("--recipe", required=True, help="name in baselines/, with overrides: robuq,low_rank.rank=4")
    parser.add_argument("--variant", required=True, help="such as W1.58A2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="full-precision checkpoint that QAT starts from")
    parser.add_argument("--bits", type=Path, help="bits per layer of a recipe that allocates (`robuq-bench allocate`)")
    parser.add_argument("--model", type=Path, required=True, help="checkpoint to write")
    parser.add_argument("--curve", type=Path, required=True, help="loss of every step, JSON, to write")
    parser.add_argument("--state", type=Path, required=True, help="folder for resumable state")
    parser.add_argument(
        "--record-divergence",
        action="store_true",
        help="write a checkpoint marked 'diverged' and exit 0, so that the table can show the row as such",
    )


def run(args: argparse.Namespace) -> None:
    preset = load_preset(args.preset, args.set)
    variant = load_row(preset, args.recipe, args.variant)
    check_wanted(variant, args.bits)
    plan = preset.train if variant.method.training == "none" else preset.qat
    device = use(preset.device, plan.threads)
    train_set, held_out = images(preset)
    model, bits = prepare(preset, variant, train_set, args.seed, args.start, args.bits)
    state = State(
        args.state,
        fingerprint(
            code=provenance.code_digest(__name__),
            preset=preset.model_dump(include={"data", "model", "device"}),
            plan=plan,
            variant=variant,
            seed=args.seed,
            data=train_set.digest,
            start=sha256_file(args.start) if args.start else None,
            bits=bits,
            torch=torch.__version__,
        ),
    )
    model.to(device)
    label = f"train {args.recipe} {args.variant} seed {args.seed}"
    status, reason, facts = "ok", "", {}
    try:
        check_profiled(args.bits)
        if variant.method.training == "ptq":
            outcome = Outcome({}, [])
        else:
            outcome = fit(model, preset, variant, plan, train_set, args.seed, args.start, state, label, device)
        facts = _finish(model, outcome, held_out, device, label)
        losses = outcome.losses
    except torch.OutOfMemoryError as error:
        key = "train" if plan is preset.train else "qat"
        raise BenchError(
            f"{label}: the GPU's memory does not hold a batch of {plan.batch}; try --set {key}.batch={plan.batch // 2} "
            "(the same for all rows)"
        ) from error
    except Diverged as error:
        if not args.record_divergence:
            raise
        status, reason, losses = "diverged", str(error), []
    facts |= {"train_images": len(train_set), "data": train_set.digest, "plan": plan.model_dump()}
    card = checkpoint.Card(
        kind="trained",
        preset=args.preset,
        variant=variant,
        seed=args.seed,
        model=preset.model,
        shape=dit_shape(train_set),
        bits=bits,
        status=status,
        reason=reason,
        facts=facts,
        provenance=provenance.collect(describe(device)),
    )
    checkpoint.save(args.model, model.state_dict() if status == "ok" else {}, card)
    curve = {"status": status, "reason": reason, "losses": losses, **facts, "provenance": card.provenance}
    write_json(args.curve, curve)
    state.clear()


def dit_shape(image_set: ImageSet) -> dit.Shape:
    return dit.Shape(image_set.images.shape[1], image_set.images.shape[3], len(image_set.classes))


def prepare(
    preset: Preset,
    variant: Variant,
    train_set: ImageSet,
    run_seed: int,
    start: Path | None,
    bits_file: Path | None = None,
) -> tuple[nn.Module, dict[str, int]]:
    """The model to train, and its activation bits per layer: those of the file, or the variant's in all.

    Raises BenchError when the start or the file does not fit.
    """
    if (variant.method.training == "none") != (start is None):
        needs = "starts from scratch, so --start is out of place" if start else "needs --start, a trained checkpoint"
        raise BenchError(f"recipe '{variant.recipe}' {needs}")
    shape = dit_shape(train_set)
    model = full_precision(preset, shape, start) if start else dit.build(preset.model, shape, init_seed=run_seed)
    bits = uniform_bits(model, variant)
    if bits_file is not None:
        bits = read_bits(bits_file, variant, bits)
    signal, labels = to_signal(train_set.images), torch.from_numpy(train_set.labels)
    smooths = variant.method.smoothing is not None
    ranges = input_ranges(model, signal, labels, len(train_set.classes)) if smooths else None
    convert(model, variant, bits, run_seed, ranges)
    fit_timed(model, signal, labels)
    return model, bits


def full_precision(preset: Preset, shape: dit.Shape, start: Path) -> nn.Module:
    """The full-precision model of a checkpoint. Raises BenchError when it is another model or diverged."""
    tensors, card = checkpoint.load(start, "trained")
    if card.diverged:
        raise BenchError(f"{start}: the full-precision model diverged ({card.reason}); nothing can start from it")
    model = dit.build(preset.model, shape)
    checkpoint.load_into(model, tensors, start)
    return model


def fit(
    model: nn.Module,
    preset: Preset,
    variant: Variant,
    plan: Training,
    train_set: ImageSet,
    run_seed: int,
    start: Path | None,
    state: State,
    label: str,
    device: str,
) -> Outcome:
    """Train a prepared model as the recipe says, for the steps of `plan`. Raises Diverged."""
    signal, labels = to_signal(train_set.images), torch.from_numpy(train_set.labels)
    teacher = _teacher(preset, train_set, start, device) if variant.method.loss == "distil" else None
    phases = variant.method.phases
    no_class = len(train_set.classes)
    return train(model, signal, labels, no_class, plan, run_seed, state, label, device, teacher, phases)


def _teacher(preset: Preset, train_set: ImageSet, start: Path, device: str) -> nn.Module:
    return full_precision(preset, dit_shape(train_set), start).to(device).eval().requires_grad_(False)


def _finish(model: nn.Module, outcome: Outcome, held_out: ImageSet, device: str, label: str) -> dict[str, float]:
    """Load the averaged weights and measure the held-out loss. Raises Diverged when it is no better than zero."""
    model.load_state_dict(outcome.weights, strict=False)
    model.eval()
    value, trivial = held_out_loss(model, held_out, device)
    if not value < trivial:
        raise Diverged(f"{label}: held-out loss {value:.4g} is no better than predicting zero ({trivial:.4g})")
    return {"held_out_loss": value, "trivial_loss": trivial}
