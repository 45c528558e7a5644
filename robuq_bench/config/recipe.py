"""A recipe: one quantisation method as data. Methods differ by these values, never by a branch on their name."""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from robuq_bench.config.base import Model, build, find, override, parse_overrides, read_yaml
from robuq_bench.errors import BenchError, unknown

FOLDER = Path("baselines")
LAYER_TYPES = ("qkv", "proj", "fc1", "fc2", "adaln")
WEIGHT_BITS = (1.58, 2, 3, 4, 8, 32)
ACTIVATION_BITS = (1, 2, 3, 4, 6, 8, 32)

# Which scale rules make sense for which set of levels (robuq_bench.quant.formats says what each does).
SCALES = {
    "ternary": ("conditional_mean", "least_squares", "absmean", "mean_abs", "rms"),
    "midrise": ("mean_abs", "rms", "absmax"),
    "midtread": ("mean_abs", "rms", "absmax", "absmean"),
    "asymmetric": ("minmax", "learned"),
    "lloyd_max": ("mean_abs", "rms"),
}


class Quantiser(Model):
    """A quantiser as a composition: format x granularity x scale x estimator."""

    format: Literal["ternary", "midrise", "midtread", "asymmetric", "lloyd_max"] = Field(description="set of levels")
    granularity: Literal["tensor", "channel", "token", "group"] = Field(
        description="what shares one scale; group: 64 neighbouring channels of a row or token"
    )
    scale: Literal["mean_abs", "rms", "absmax", "absmean", "minmax", "conditional_mean", "least_squares", "learned"] = (
        Field(description="how the scale is found from the values; learned: calibrated, then trained")
    )
    buckets: int = Field(1, gt=0, description="scale learned: intervals of time with a range of their own")
    threshold: float = Field(0.5, gt=0, description="scale conditional_mean: ternary zero below this share of mean|w|")
    centre: bool = Field(False, description="subtract the mean of each group first and add it back")
    step: Literal["own", "midrise"] = Field(
        "own",
        description="Gaussian-optimal step of the format's own levels, or the mid-rise table whatever the levels",
    )
    estimator: Literal["ste", "clipped", "trust"] = Field("ste", description="gradient through rounding")
    gain: bool = Field(False, description="weights: a trained factor per layer on the quantised values, from 1")

    @model_validator(mode="after")
    def _composition(self) -> "Quantiser":
        if self.scale == "learned" and (self.granularity != "tensor" or self.centre):
            raise ValueError("scale 'learned' is static: it takes granularity 'tensor' and no centring")
        if self.step == "midrise" and self.format not in ("midrise", "midtread"):
            raise ValueError(f"step 'midrise' is for formats midrise and midtread, not '{self.format}'")
        if self.format == "lloyd_max" and self.estimator == "trust":
            raise ValueError("format 'lloyd_max' has no single step, so estimator 'trust' does not apply")
        if self.scale not in SCALES[self.format]:
            raise ValueError(
                f"format '{self.format}' takes scale {' | '.join(SCALES[self.format])}, not '{self.scale}'"
            )
        return self


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
        None, description="cost latency: JSON of the engine's benchmark; null: the committed one"
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

    @model_validator(mode="after")
    def _whole(self) -> "Recipe":
        for variant in self.variants:
            parse_variant(variant)
        if self.training == "none" and (self.weight or self.activation):
            raise ValueError("training 'none' takes no weight or activation quantiser")
        if self.training != "none" and not self.weight:
            raise ValueError(f"training '{self.training}' needs a weight quantiser")
        if self.weight and self.weight.granularity == "token":
            raise ValueError("weight.granularity: weights have no tokens; allowed: tensor, channel, group")
        if self.activation and self.activation.format == "ternary":
            raise ValueError(
                "activation.format: 'ternary' is for weights; allowed: midrise, midtread, asymmetric, lloyd_max"
            )
        if self.activation and self.activation.granularity == "channel":
            raise ValueError("activation.granularity: allowed: tensor, token, group")
        if self.weight and self.weight.scale == "learned":
            raise ValueError("weight.scale: 'learned' is for activations; weights take gain: true")
        if self.phases and abs(sum(phase.share for phase in self.phases) - 1) > 1e-9:
            raise ValueError("phases: the shares must add up to 1")
        if (self.phases or self.loss != "flow") and not self.deviates:
            raise ValueError("deviates: say how this recipe's training differs (it sets loss or phases)")
        if self.activation and self.activation.gain:
            raise ValueError("activation.gain: only weights take a trained gain")
        if self.allocation:
            _allocatable(self, self.allocation)
        return self


class Variant(Model):
    """A recipe at one bit setting: what a training run needs to know about its method."""

    recipe: str = Field(description="recipe expression, such as robuq or robuq,activation.scale=absmax")
    name: str = Field(description="variant, such as W1.58A2")
    weight_bits: float
    activation_bits: int
    method: Recipe


def _allocatable(method: Recipe, allocation: Allocation) -> None:
    """Raises ValueError when the other parts of the recipe leave nothing to allocate."""
    if method.training != "qat" or not method.activation:
        raise ValueError("allocation chooses activation bits: it needs training 'qat' and an activation quantiser")
    if method.activation.scale == "learned":
        raise ValueError("allocation: scale 'learned' is calibrated for one width; choose a dynamic scale")
    if 1 in allocation.candidates and method.activation.format != "midrise":
        raise ValueError("allocation.candidates: 1-bit activations need format 'midrise'; leave out the 1 otherwise")
    if allocation.cost == "latency" and method.weight.format != "ternary":
        raise ValueError("allocation.cost: 'latency' is measured for ternary weights alone; use macs")


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
    method = build(Recipe, raw, f"{path} at {variant}" + (f" with {changes}" if changes else ""))
    weight_bits, activation_bits = parse_variant(variant)
    _consistent(method, weight_bits, activation_bits, f"{path} at {variant}")
    return Variant(
        recipe=expression, name=variant, weight_bits=weight_bits, activation_bits=activation_bits, method=method
    )


def _consistent(method: Recipe, weight_bits: float, activation_bits: int, where: str) -> None:
    ternary = method.weight is not None and method.weight.format == "ternary"
    if method.training != "none" and ternary != (weight_bits == 1.58):
        raise BenchError(f"{where}: weight.format 'ternary' goes with W1.58 and no other weight bits")
    if (activation_bits == 32) != (method.activation is None):
        raise BenchError(f"{where}: activation must be null exactly when the variant says A32")
    if (weight_bits == 32) != (method.weight is None):
        raise BenchError(f"{where}: weight must be null exactly when the variant says W32")
    for name, quantiser, bits in (
        ("weight", method.weight, weight_bits),
        ("activation", method.activation, activation_bits),
    ):
        if quantiser is not None and quantiser.format == "lloyd_max" and bits > 4:
            raise BenchError(f"{where}: {name}.format 'lloyd_max' has levels for 1 to 4 bits, not {bits:g}")
    if activation_bits == 1 and method.activation.format != "midrise":
        raise BenchError(f"{where}: 1-bit activations need format 'midrise'")
    widths = method.allocation.candidates if method.allocation else (activation_bits,)
    if not widths[0] <= activation_bits <= widths[-1]:
        raise BenchError(f"{where}: no choice of allocation.candidates {list(widths)} averages {activation_bits} bits")
