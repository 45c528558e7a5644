"""A recipe: one quantisation method as data. Methods differ by these values, never by a branch on their name."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from robuq_bench.config.base import Model, build, find, override, parse_overrides, read_yaml
from robuq_bench.config.checks import check_bits, check_parts
from robuq_bench.config.quantiser import Quantiser
from robuq_bench.errors import BenchError, unknown

FOLDER = Path("baselines")
LayerType = Literal["qkv", "proj", "fc1", "fc2", "adaln"]
LAYER_TYPES = get_args(LayerType)
WEIGHT_BITS = (1.58, 2, 3, 4, 8, 32)
ACTIVATION_BITS = (1, 2, 3, 4, 6, 8, 32)


class Rotation(Model):
    """Hadamard rotation of the inputs of linear layers."""

    kind: Literal["full", "block-128"] = Field(description="one transform over all channels, or blocks of 128")
    signs: bool = Field(description="multiply by a random sign per channel first")
    layers: tuple[LayerType, ...] = Field(
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
    ranks: dict[LayerType, Annotated[int, Field(ge=0)]] = Field(
        {}, description="layer types with a rank of their own; 0: no branch there"
    )

    @property
    def largest(self) -> int:
        """Rank of the widest branch."""
        return max(self.rank, *self.ranks.values(), 0)

    def at(self, layer_type: str) -> "LowRank | None":
        """The branch of layers of `layer_type`; None where they have none."""
        rank = self.ranks.get(layer_type, self.rank)
        return self.model_copy(update={"rank": rank, "ranks": {}}) if rank else None


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
    layers: tuple[LayerType, ...] = Field(
        min_length=1, description="layer types whose weights are trained; learned activation ranges always are"
    )


class Schedule(Model):
    """What QAT does otherwise than the preset plans: for experiments with budgets, never between rows of one table."""

    steps: float = Field(1, gt=0, description="factor of the steps; warm-up and the span of the EMA follow")
    lr: float = Field(1, gt=0, description="factor of the learning rate")
    ema: float = Field(1, gt=0, description="factor of the EMA's span in steps, 1 / (1 - decay)")
    warm_bits: Literal[3, 4, 6, 8] | None = Field(
        None, description="activation bits at first, of the layers that end with fewer; null: their own at once"
    )
    warm_share: float = Field(0.25, gt=0, lt=1, description="warm_bits: share of the steps that has them")

    @property
    def plain(self) -> bool:
        """Whether it is the preset's plan unchanged."""
        return self == Schedule()

    @model_validator(mode="after")
    def _fits(self) -> "Schedule":
        if self.warm_share != 0.25 and self.warm_bits is None:
            raise ValueError("warm_share: nothing is warmed without warm_bits; set those, too")
        return self


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
    distil_share: float = Field(
        1, gt=0, le=1, description="loss distil: share of that output in the target; rest: data"
    )
    schedule: Schedule = Field(Schedule(), description="budget, learning rate and bits during QAT")
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
    def _fits(self) -> "Recipe":
        for variant in self.variants:
            parse_variant(variant)
        check_parts(self)
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
    return _whole(read_yaml(path), path)


def _whole(raw: dict[str, Any], path: Path) -> Recipe:
    """The recipe in a file. What its training does differently must be said there, as it is printed beside the row."""
    recipe = build(Recipe, raw, str(path))
    if (recipe.phases or recipe.loss != "flow" or not recipe.schedule.plain) and not recipe.deviates:
        raise BenchError(f"{path}: deviates: say how this recipe's training differs (it sets loss, phases or schedule)")
    return recipe


def load_variant(expression: str, variant: str, folder: Path = FOLDER) -> Variant:
    """Resolve "recipe[,key=value...]" at `variant`: the file, then the variant's overrides, then the given ones.

    Raises BenchError for an unknown recipe, variant or key, or parts that do not fit together.
    """
    name, _, changes = expression.partition(",")
    path = find(folder, "recipe", name)
    raw = read_yaml(path)
    recipe = _whole(raw, path)
    if variant not in recipe.variants:
        raise unknown("variant", variant, recipe.variants, where=str(path))
    raw = override(raw, recipe.variants[variant])
    raw = override(raw, parse_overrides(changes, where=expression))
    where = f"{path} at {variant}" + (f" with {changes}" if changes else "")
    method = build(Recipe, raw, where)
    weight_bits, activation_bits = parse_variant(variant)
    try:
        check_bits(method, variant, weight_bits, activation_bits)
    except ValueError as error:
        raise BenchError(f"{where}: {error}") from error
    return Variant(
        recipe=expression, name=variant, weight_bits=weight_bits, activation_bits=activation_bits, method=method
    )


def full_rows(folder: Path = FOLDER) -> list[str]:
    """Every "recipe/variant" of the recipes in `folder`, wide weights first."""
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    rows = [f"{name}/{variant}" for name in names for variant in load_recipe(name, folder).variants]
    return sorted(rows, key=lambda row: [-bits for bits in parse_variant(row.rpartition("/")[2])])
