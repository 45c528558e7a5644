"""A recipe: one quantisation method as data. Methods differ by these values, never by a branch on their name."""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from robuq_bench.config.base import Model, build, find, override, parse_overrides, read_yaml
from robuq_bench.config.quantiser import Quantiser
from robuq_bench.errors import BenchError, unknown

FOLDER = Path("baselines")
LAYER_TYPES = ("qkv", "proj", "fc1", "fc2", "adaln")
WEIGHT_BITS = (1.58, 2, 3, 4, 8, 32)
ACTIVATION_BITS = (1, 2, 3, 4, 6, 8, 32)
LLOYD_MAX_BITS = 4  # the widest table of levels
PARTS = ("rotation", "low_rank", "smoothing", "adaln", "allocation", "attention_bits", "phases")  # of quantised models


class Rotation(Model):
    """Hadamard rotation of the inputs of linear layers."""

    kind: Literal["full", "block-128"] = Field(description="one transform over all channels, or blocks of 128")
    signs: bool = Field(description="multiply by a random sign per channel first")
    layers: tuple[Literal["qkv", "proj", "fc1", "fc2", "adaln"], ...] = Field(
        LAYER_TYPES, min_length=1, description="layer types; on the command line joined by +: proj+fc2"
    )

    @field_validator("layers", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        return value.split("+") if isinstance(value, str) else value


class LowRank(Model):
    """Full-precision branch beside each quantised linear."""

    rank: int = Field(gt=0)
    init: Literal["svd", "zero"] = Field("svd", description="zero: down from a normal draw, up = 0")
    of: Literal["weight", "error"] = Field(
        "weight", description="what the SVD approximates: the rotated weight, or its quantisation error"
    )


class Smoothing(Model):
    """Move outliers of the inputs into the weights: x / s, W s with s = max|x|^strength / max|W|^(1 - strength)."""

    strength: float = Field(0.5, ge=0, le=1)


class AdaLN(Model):
    """The adaLN modulation linears: their weights follow `weight`, their activation bits are fixed."""

    activation_bits: Literal[2, 3, 4, 6, 8, 32] = 4


class Allocation(Model):
    """Activation bits per block linear by dynamic programming (AMPN, paper-facts 1.6); adaLN keeps its own.

    The variant's activation bits are the budget: their cost-weighted average over these layers is at most that.
    """

    cost: Literal["average_bits", "macs", "bitops", "latency"] = Field(
        "macs", description="what the budget counts: bits, bits x MACs, bit operations, or measured time"
    )
    sensitivity: Literal["loss", "mse"] = Field(
        "loss", description="what is minimised: the sum of loss increases, or of relative output errors"
    )
    profile_steps: int = Field(100, ge=0, description="QAT steps before the profile; 0: right after conversion")
    candidates: tuple[Literal[1, 2, 3, 4, 6, 8], ...] = Field(
        (1, 2, 3, 4), min_length=2, description="widths to choose from; on the command line joined by +: 2+3+4"
    )
    latency_table: str | None = Field(
        None, description="cost latency: JSON of `engine-kernels`; null: this machine's, else the committed one"
    )

    @field_validator("candidates", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return [int(bits) if bits.isdigit() else bits for bits in value.split("+")]

    @model_validator(mode="after")
    def _fits(self) -> "Allocation":
        if list(self.candidates) != sorted(set(self.candidates)):
            raise ValueError("candidates: write each width once, in rising order")
        if self.latency_table is not None and self.cost != "latency":
            raise ValueError(f"latency_table: cost '{self.cost}' reads none; only cost 'latency' does")
        return self


class Phase(Model):
    """A part of the QAT budget in which only some layers are trained."""

    share: float = Field(gt=0, le=1, description="of the preset's QAT steps")
    layers: tuple[Literal["qkv", "proj", "fc1", "fc2", "adaln"], ...] = Field(
        min_length=1, description="layer types whose weights are trained; learned activation ranges always are"
    )


class PaperNumber(Model):
    """One number quoted from the literature, never compared across protocols."""

    variant: str
    metric: Literal["FID", "sFID", "IS", "Precision"]
    value: float
    setting: str
    source: str


class Recipe(Model):
    """One method, as in `baselines/*.yaml`."""

    title: str = Field(description="name in tables")
    citation: str
    url: str | None = None
    training: Literal["none", "ptq", "qat"] = Field(
        description="none: the full-precision checkpoint as it is; ptq: quantised without training"
    )
    weight: Quantiser | None = None
    activation: Quantiser | None = None
    rotation: Rotation | None = None
    low_rank: LowRank | None = None
    smoothing: Smoothing | None = None
    adaln: AdaLN | None = None
    allocation: Allocation | None = Field(None, description="bits per layer; null: the variant's bits in all")
    attention_bits: Literal[8] | None = Field(None, description="operands of QK^T and PV; null: full precision")
    loss: Literal["flow", "distil"] = Field("flow", description="distil: match the full-precision model's output")
    phases: tuple[Phase, ...] = Field((), description="selective finetuning, in this order; empty: train everything")
    deviates: str = Field("", description="how training differs from the other rows', printed beside the row")
    variants: dict[str, dict[str, Any]] = Field(description="bit settings, each with overrides of this recipe")
    paper: tuple[PaperNumber, ...] = ()
    assumptions: tuple[str, ...] = Field(description="what the paper does not say and we chose")

    @field_validator("low_rank", mode="before")
    @classmethod
    def _none_of_rank_0(cls, value: Any) -> Any:
        """Rank 0 is no branch, so that ranks can be swept from there."""
        return None if isinstance(value, dict) and value.get("rank") == 0 else value

    @model_validator(mode="after")
    def _whole(self) -> "Recipe":
        for variant in self.variants:
            parse_variant(variant)
        _check_parts(self)
        return self


class Variant(Model):
    """A recipe at one bit setting: what a training run needs to know about its method."""

    recipe: str = Field(description="recipe expression, such as robuq or robuq,activation.scale=absmax")
    name: str = Field(description="variant, such as W1.58A2")
    weight_bits: float
    activation_bits: int
    method: Recipe


def parse_variant(text: str) -> tuple[float, int]:
    """(weight bits, activation bits) of "W1.58A2". Raises ValueError naming the allowed widths."""
    match = re.fullmatch(r"W(\d+(?:\.\d+)?)A(\d+)", text)
    if not match or float(match[1]) not in WEIGHT_BITS or int(match[2]) not in ACTIVATION_BITS:
        weights, activations = (", ".join(map(str, bits)) for bits in (WEIGHT_BITS, ACTIVATION_BITS))
        raise ValueError(f"'{text}' is no variant; write W<{weights}>A<{activations}>, for example W1.58A2")
    return float(match[1]), int(match[2])


def load_recipe(name: str, folder: Path = FOLDER) -> Recipe:
    """The recipe `name` (or a path to a YAML file). Raises BenchError with file, key and allowed values."""
    path = find(folder, "recipe", name)
    return build(Recipe, read_yaml(path), str(path))


def load_variant(expression: str, variant: str, folder: Path = FOLDER) -> Variant:
    """Resolve "recipe[,key=value...]" at `variant`: the file, then the variant's overrides, then the given ones.

    Raises BenchError for an unknown recipe, variant or key, or parts that do not fit together.
    """
    name, _, changes = expression.partition(",")
    path = find(folder, "recipe", name)
    raw = read_yaml(path)
    recipe = build(Recipe, raw, str(path))
    if variant not in recipe.variants:
        raise unknown("variant", variant, recipe.variants, where=str(path))
    raw = override(raw, recipe.variants[variant])
    raw = override(raw, parse_overrides(changes, where=expression))
    where = f"{path} at {variant}" + (f" with {changes}" if changes else "")
    method = build(Recipe, raw, where)
    weight_bits, activation_bits = parse_variant(variant)
    try:
        _check_bits(method, variant, weight_bits, activation_bits)
    except ValueError as error:
        raise BenchError(f"{where}: {error}") from error
    return Variant(
        recipe=expression, name=variant, weight_bits=weight_bits, activation_bits=activation_bits, method=method
    )


def _check_parts(method: Recipe) -> None:
    """What holds at every bit setting. Raises ValueError for a combination that the code cannot run, or would run
    without a part of it."""
    if method.training == "none":
        _check_untouched(method)
        return
    _check_quantisers(method)
    _check_training(method)
    _check_branch(method)
    _check_layers(method)
    if method.allocation:
        _check_allocation(method, method.allocation)


def _check_bits(method: Recipe, name: str, weight_bits: float, activation_bits: int) -> None:
    """What depends on the bits of the variant `name`. Raises ValueError."""
    ternary = method.weight is not None and method.weight.format == "ternary"
    if method.training != "none" and ternary != (weight_bits == 1.58):
        raise ValueError("weight.format 'ternary' goes with W1.58 and no other weight bits")
    if (activation_bits == 32) != (method.activation is None):
        raise ValueError("activation must be null exactly when the variant says A32")
    if (weight_bits == 32) != (method.weight is None):
        raise ValueError("weight must be null exactly when the variant says W32")
    adaln = method.adaln.activation_bits if method.adaln else 32
    if method.activation is None and adaln != 32:
        raise ValueError(f"adaln.activation_bits {adaln} needs an activation quantiser; at A32 it must be 32")
    widths = method.allocation.candidates if method.allocation else (activation_bits,)
    _check_levels("weight", method.weight, (weight_bits,))
    _check_levels("activation", method.activation, (*widths, adaln))
    if method.allocation:
        _check_budget(name, activation_bits, widths)


def _check_untouched(method: Recipe) -> None:
    if method.weight or method.activation:
        raise ValueError("training 'none' takes no weight or activation quantiser")
    if unused := [name for name in PARTS if getattr(method, name)]:
        raise ValueError(
            f"training 'none' is full precision and takes no {unused[0]}; leave it out, or take training 'qat'"
        )


def _check_quantisers(method: Recipe) -> None:
    weight, activation = method.weight, method.activation
    if not weight:
        raise ValueError(f"training '{method.training}' needs a weight quantiser")
    if weight.granularity == "token":
        raise ValueError("weight.granularity: weights have no tokens; allowed: tensor, channel, group")
    if weight.scale == "learned":
        raise ValueError("weight.scale: 'learned' is for activations; weights take gain: true")
    if not activation:
        return
    if activation.format == "ternary":
        raise ValueError(
            "activation.format: 'ternary' is for weights; allowed: midrise, midtread, asymmetric, lloyd_max"
        )
    if activation.granularity == "channel":
        raise ValueError("activation.granularity: allowed: tensor, token, group")
    if activation.gain:
        raise ValueError("activation.gain: only weights take a trained gain")


def _check_training(method: Recipe) -> None:
    if method.training == "ptq":
        trained = {"phases": method.phases, "loss 'distil'": method.loss != "flow", "weight.gain": method.weight.gain}
        if without := [name for name, wanted in trained.items() if wanted]:
            raise ValueError(f"training 'ptq' trains nothing, so {without[0]} has no effect; take training 'qat'")
    if method.phases and abs(sum(phase.share for phase in method.phases) - 1) > 1e-9:
        raise ValueError("phases: the shares must add up to 1")
    if (method.phases or method.loss != "flow") and not method.deviates:
        raise ValueError("deviates: say how this recipe's training differs (it sets loss or phases)")


def _check_branch(method: Recipe) -> None:
    branch = method.low_rank
    if branch is None or branch.init != "zero":
        return
    if branch.of == "error":
        raise ValueError("low_rank.of: a branch with init 'zero' approximates nothing; take init 'svd'")
    if method.training == "ptq":
        raise ValueError("low_rank.init: 'zero' stays zero without training; take init 'svd'")


def _check_layers(method: Recipe) -> None:
    """A list of layers must name one that is quantised, which adaLN is only when `adaln` is set."""
    if method.rotation and method.adaln is None and set(method.rotation.layers) == {"adaln"}:
        raise ValueError(
            "rotation.layers: adaln matches no quantised layer, as the recipe has adaln: null; "
            "set adaln.activation_bits, or name qkv, proj, fc1 or fc2"
        )


def _check_allocation(method: Recipe, allocation: Allocation) -> None:
    if method.training != "qat" or not method.activation:
        raise ValueError("allocation chooses activation bits: it needs training 'qat' and an activation quantiser")
    if method.activation.scale == "learned":
        raise ValueError("allocation: scale 'learned' is calibrated for one width; choose a dynamic scale")
    if allocation.cost == "latency" and method.weight.format != "ternary":
        raise ValueError("allocation.cost: 'latency' is measured for ternary weights alone; use macs")


def _check_levels(name: str, quantiser: Quantiser | None, widths: tuple[float, ...]) -> None:
    """Raises ValueError when the format has no levels for one of the `widths`."""
    if quantiser is None:
        return
    form, widths = quantiser.format, [bits for bits in widths if bits != 32]
    if form == "lloyd_max" and max(widths) > LLOYD_MAX_BITS:
        raise ValueError(f"{name}.format 'lloyd_max' has levels for 1 to {LLOYD_MAX_BITS} bits, not {max(widths):g}")
    if min(widths) == 1 and form != "midrise":
        raise ValueError(f"{name}.format '{form}' has no 1-bit levels; take format 'midrise', or leave out the 1")


def _check_budget(name: str, bits: int, candidates: tuple[int, ...]) -> None:
    """The variant's activation bits are the budget: some candidate must be within it, and one at or above it."""
    if candidates[0] > bits:
        raise ValueError(
            f"allocation.candidates {list(candidates)}: no choice averages {bits} bits, as {name} asks: all are above; "
            f"add a width of at most {bits}, such as {_joined(bits, candidates)}"
        )
    if candidates[-1] < bits:
        raise ValueError(
            f"allocation.candidates {list(candidates)}: no choice averages {bits} bits, as {name} asks: all are below; "
            f"add a width of at least {bits}, such as {_joined(bits, candidates)}"
        )


def _joined(bits: int, candidates: tuple[int, ...]) -> str:
    return "+".join(map(str, sorted({bits, *candidates})))
