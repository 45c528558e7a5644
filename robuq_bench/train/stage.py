"""Train one row: full precision from scratch, or quantisation-aware from a full-precision checkpoint."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from robuq_bench import provenance
from robuq_bench.config.preset import Preset, Training, load_preset, preset_arguments
from robuq_bench.config.recipe import Variant
from robuq_bench.config.row import load_row, training_plan
from robuq_bench.devices import describe, expect, held_seconds, release, use
from robuq_bench.errors import BenchError, Diverged
from robuq_bench.files import sha256_file, write_json
from robuq_bench.models import checkpoint, dit, pretrained
from robuq_bench.quant.convert import convert, uniform_bits
from robuq_bench.quant.warm import WarmBits
from robuq_bench.train.bits import check_profiled, check_wanted, read_bits
from robuq_bench.train.calibrate import fit_timed, input_ranges
from robuq_bench.train.distributed import ALONE, World, together
from robuq_bench.train.examples import Examples, examples
from robuq_bench.train.held_out import held_out_loss
from robuq_bench.train.loop import Outcome, train
from robuq_bench.train.objective import Teacher
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
    plan = training_plan(preset, variant)
    expect(preset.device, plan.threads)
    train_set, held_out = examples(preset)
    model, bits, source = prepare(preset, variant, train_set, args.seed, args.start, args.bits)
    facts = {"train_images": train_set.count, "data": train_set.digest, "plan": plan.model_dump(), **source}
    same = fingerprint(
        code=provenance.code_digest(__name__),
        preset=preset.model_dump(include={"data", "latents", "objective", "model", "device"}),
        plan=plan,
        variant=variant,
        seed=args.seed,
        data=train_set.digest,
        start=sha256_file(args.start) if args.start else None,
        bits=bits,
        torch=torch.__version__,
    )
    device = use(preset.device, plan.threads)
    fit_timed(model.to(device), train_set.signal, train_set.labels, train_set.process)
    label = f"train {args.recipe} {args.variant} seed {args.seed}"
    status, reason, losses = "ok", "", []
    with together(device) as world:
        state = world.lead_first(lambda: State(args.state, same))
        try:
            check_profiled(args.bits)
            outcome = Outcome({}, [])
            if is_trained(preset, variant):
                with fitting(label, plan, "train" if plan is preset.train else "qat", world):
                    work = (model, preset, variant, plan, train_set, args.seed, args.start, state, label, device)
                    outcome = fit(*work, world)
            facts |= _finish(model, outcome, held_out, device, label)
            losses = outcome.losses
        except Diverged as error:
            if not args.record_divergence:
                raise
            status, reason, losses = "diverged", str(error), []
        model.cpu()
        release()
        if world.leads:
            card = checkpoint.Card(
                kind="trained",
                preset=args.preset,
                variant=variant,
                seed=args.seed,
                model=preset.model,
                shape=train_set.shape,
                bits=bits,
                status=status,
                reason=reason,
                facts=facts,
                provenance=provenance.collect(describe(device), device_seconds=held_seconds(), processes=world.size),
            )
            checkpoint.save(args.model, model.state_dict() if status == "ok" else {}, card)
            curve = {"status": status, "reason": reason, "losses": losses, **facts, "provenance": card.provenance}
            write_json(args.curve, curve)
            state.clear()
        world.wait()


def is_trained(preset: Preset, variant: Variant) -> bool:
    """Whether there is anything to train: not after training, and not where a published model is taken as it is."""
    return variant.method.training != "ptq" and not (variant.method.training == "none" and preset.pretrained)


@contextmanager
def fitting(label: str, plan: Training, key: str, world: World) -> Iterator[None]:
    """Raises BenchError when the GPU's memory does not hold what a step takes at a time."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        count = plan.micro_batch or plan.batch // world.size
        raise BenchError(
            f"{label}: the GPU's memory does not hold a batch of {count}; try --set {key}.micro_batch="
            f"{max(count // 2, 1)} (gradients still add up to {plan.batch} images a step)"
        ) from error


def prepare(
    preset: Preset,
    variant: Variant,
    train_set: Examples,
    run_seed: int,
    start: Path | None,
    bits_file: Path | None = None,
) -> tuple[nn.Module, dict[str, int], dict[str, str]]:
    """(the model to train; its activation bits per layer, those of the file or the variant's in all; where it is from).

    Time-aware ranges are yet to be fitted (train.calibrate.fit_timed), on the device that trains.
    Raises BenchError when the start or the file does not fit.
    """
    if (variant.method.training == "none") != (start is None):
        needs = "starts from scratch, so --start is out of place" if start else "needs --start, a trained checkpoint"
        raise BenchError(f"recipe '{variant.recipe}' {needs}")
    source = {}
    if start:
        model = full_precision(preset, train_set.shape, start)
    elif preset.pretrained:
        model, source["pretrained"] = pretrained.load(preset.pretrained, preset.model, train_set.shape)
    else:
        model = dit.build(preset.model, train_set.shape, init_seed=run_seed)
    bits = uniform_bits(model, variant)
    if bits_file is not None:
        bits = read_bits(bits_file, variant, bits)
    data = (train_set.signal, train_set.labels, train_set.shape.classes, train_set.process)
    ranges = input_ranges(model, *data) if variant.method.smoothing is not None else None
    convert(model, variant, bits, run_seed, ranges)
    return model, bits, source


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
    train_set: Examples,
    run_seed: int,
    start: Path | None,
    state: State,
    label: str,
    device: str,
    world: World = ALONE,
) -> Outcome:
    """Train a prepared model as the recipe says, for the steps of `plan`. Raises Diverged."""
    method, signal, labels = variant.method, train_set.signal, train_set.labels
    teacher = _teacher(preset, train_set, start, device, method.distil_share) if method.loss == "distil" else None
    no_class = train_set.shape.classes
    warm = WarmBits(model, method.schedule)
    learning = (teacher, method.phases, warm, train_set.process, world)
    return train(model, signal, labels, no_class, plan, run_seed, state, label, device, *learning)


def _teacher(preset: Preset, train_set: Examples, start: Path, device: str, share: float) -> Teacher:
    model = full_precision(preset, train_set.shape, start).to(device).eval().requires_grad_(False)
    return Teacher(model, share)


def _finish(model: nn.Module, outcome: Outcome, held_out: Examples, device: str, label: str) -> dict[str, float]:
    """Load the averaged weights and measure the held-out loss. Raises Diverged when it is no better than zero."""
    model.load_state_dict(outcome.weights, strict=False)
    model.eval()
    size = 1000 if device == "cuda" else 128  # a GPU waits for launches, a CPU for memory
    value, trivial = held_out_loss(model, held_out, device, size)
    if not value < trivial:
        raise Diverged(f"{label}: held-out loss {value:.4g} is no better than predicting zero ({trivial:.4g})")
    return {"held_out_loss": value, "trivial_loss": trivial}
