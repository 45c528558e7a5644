"""A recipe: one quantisation method as data. Methods differ by these values, never by a branch on their name."""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from robuq_bench.config.base import Model, build, find, override, parse_overrides, read_yaml
from robuq_bench.errors import BenchError, unknown

FOLDER = Path("baselines")
LAYER_TYPES = ("qkv", "proj", "fc1", "fc2", "adaln")
WEIGHT_BITS = (1.58, 2, 3, 4, 8, 32)
ACTIVATION_BITS = (1, 2, 3, 4, 6, 8, 32)

# Which scale rules make sense for which set of levels (robuq_bench.quant.formats says what each does).
SCALES = {
    "ternary": ("conditional_mean", "absmean", "mean_abs", "rms"),
    "midrise": ("mean_abs", "rms", "absmax"),
    "midtread": ("mean_abs", "rms", "absmax", "absmean"),
    "asymmetric": ("minmax",),
}


class Quantiser(Model):
    """A quantiser as a composition: format x granularity x scale x estimator."""

    format: Literal["ternary", "midrise", "midtread", "asymmetric"] = Field(description="set of levels")
    granularity: Literal["tensor", "channel", "token"] = Field(description="what shares one scale")
    scale: Literal["mean_abs", "rms", "absmax", "absmean", "minmax", "conditional_mean"] = Field(
        description="how the scale is found from the values"
    )
    centre: bool = Field(False, description="subtract the mean of each group first and add it back")
    step: Literal["own", "midrise"] = Field(
        "own",
        description="Gaussian-optimal step of the format's own levels, or the mid-rise table whatever the levels",
    )
    estimator: Literal["ste", "clipped", "trust"] = Field("ste", description="gradient through rounding")

    @model_validator(mode="after")
    def _composition(self) -> "Quantiser":
        if self.scale not in SCALES[self.format]:
            raise ValueError(
                f"format '{self.format}' takes scale {' | '.join(SCALES[self.format])}, not '{self.scale}'"
            )
        return self


class Rotation(Model):
    """Hadamard rotation of the inputs of linear layers."""

    kind: Literal["full", "block-128"] = Field(description="one transform over all channels, or blocks of 128")
    signs: bool = Field(description="multiply by a random sign per channel first")
    layers: tuple[Literal["qkv", "proj", "fc1", "fc2", "adaln"], ...] = Field(LAYER_TYPES, min_length=1)


class LowRank(Model):
    """Full-precision branch beside each quantised linear."""

    rank: int = Field(gt=0)
    init: Literal["svd", "zero"] = Field(
        "svd", description="svd: of the rotated weight; zero: A from a normal draw, B = 0"
    )


class AdaLN(Model):
    """The adaLN modulation linears: their weights follow `weight`, their activation bits are fixed."""

    activation_bits: Literal[2, 3, 4, 6, 8, 32] = 4


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
    training: Literal["none", "qat"] = Field(description="none: the full-precision checkpoint as it is")
    weight: Quantiser | None = None
    activation: Quantiser | None = None
    rotation: Rotation | None = None
    low_rank: LowRank | None = None
    adaln: AdaLN | None = None
    attention_bits: Literal[8] | None = Field(None, description="bits of the QK^T and PV operands; null: full precision")
    variants: dict[str, dict[str, Any]] = Field(description="bit settings, each with overrides of this recipe")
    paper: tuple[PaperNumber, ...] = ()
    assumptions: tuple[str, ...] = Field(description="what the paper does not say and we chose")

    @model_validator(mode="after")
    def _whole(self) -> "Recipe":
        for variant in self.variants:
            parse_variant(variant)
        if self.training == "none" and (self.weight or self.activation):
            raise ValueError("training 'none' takes no weight or activation quantiser")
        if self.training == "qat" and not self.weight:
            raise ValueError("training 'qat' needs a weight quantiser")
        if self.weight and self.weight.granularity == "token":
            raise ValueError("weight.granularity: weights have no tokens; allowed: tensor, channel")
        if self.activation and self.activation.granularity == "channel":
            raise ValueError("activation.granularity: allowed: tensor, token")
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
    if activation_bits == 1 and method.activation.format != "midrise":
        raise BenchError(f"{where}: 1-bit activations need format 'midrise'")
