"""A row of a preset: a recipe at one bit setting, on the model that the preset trains."""

from pathlib import Path

from robuq_bench.config.hadamard import base
from robuq_bench.config.preset import Preset, Training
from robuq_bench.config.recipe import FOLDER, Variant, load_variant
from robuq_bench.errors import BenchError


def load_row(preset: Preset, expression: str, variant: str, folder: Path = FOLDER) -> Variant:
    """`load_variant`, and refuses what does not fit the preset's model before any work starts.

    Raises BenchError as `load_variant` does, for a rank at or above the size of the layers, and for a full rotation
    of a width that has no Hadamard matrix here.
    """
    found, width = load_variant(expression, variant, folder), preset.model.width
    branch = found.method.low_rank
    if branch and branch.largest >= width:  # every block linear has a side of the model's width and none is smaller
        raise BenchError(
            f"{expression} at {variant}: low_rank.rank {branch.largest} is not below the smaller side of the layers, "
            f"which is {width} in a model of width {width}; the largest rank is {width - 1}"
        )
    if found.method.rotation and found.method.rotation.kind == "full":
        _check_rotation(found, width)
    return found


def training_plan(preset: Preset, variant: Variant) -> Training:
    """The plan a row is trained by: full-precision training, or the preset's QAT as its schedule changes it."""
    if variant.method.training == "none" and preset.train:
        return preset.train
    plan, schedule = preset.qat, variant.method.schedule
    span = schedule.steps * schedule.ema
    return plan.model_copy(
        update={
            "steps": max(round(schedule.steps * plan.steps), 1),
            "warmup": round(schedule.steps * plan.warmup),
            "lr": schedule.lr * plan.lr,
            "ema": plan.ema if span == 1 else max(1 - (1 - plan.ema) / span, 0.0),
        }
    )


def _check_rotation(variant: Variant, width: int) -> None:
    """fc2 has four times the width as input, which is of an order that is built whenever the width is."""
    widths = [4 * width if layer == "fc2" else width for layer in variant.method.rotation.layers]
    missing = [n for n in widths if base(n) is None]
    if missing:
        near = min((n for n in range(4, 2 * width, 4) if base(n)), key=lambda n: abs(n - width))
        raise BenchError(
            f"{variant.recipe} at {variant.name}: no Hadamard matrix of order {missing[0]} is built for rotation.kind "
            f"'full'; take rotation.kind=block-128, or model.width={near}"
        )
