"""An ablation: one question, answered by the same recipe with one thing changed, each setting a row of its own.

Named ones stand in workflows/ablations.yaml; a sweep is one made up on the command line.
"""

import re
from itertools import product
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, field_validator, model_validator

from robuq_bench.config.base import Model, build, read_yaml, split_items
from robuq_bench.config.recipe import FOLDER, load_variant
from robuq_bench.errors import BenchError, unknown

PATH = Path("workflows/ablations.yaml")
EXAMPLE = "robuq_uniform,low_rank.rank=0|4|16/W1.58A2"


class Ablation(Model):
    """`settings`: label -> recipe expression, each run at every variant; the first is what the others stand against.

    expected: what was predicted of settings before they were run: "better, why".
    """

    title: str
    question: str
    variants: tuple[str, ...] = Field(min_length=1)
    settings: dict[str, str] = Field(min_length=2)
    expected: dict[str, Annotated[str, StringConstraints(pattern="^(better|same|worse), ")]] = Field({})

    @field_validator("settings")
    @classmethod
    def _told_apart(cls, settings: dict[str, str]) -> dict[str, str]:
        names: dict[str, str] = {}
        for label in settings:
            if (other := names.setdefault(slug(label), label)) != label:
                raise ValueError(f"'{other}' and '{label}' would both be the target {slug(label)}; reword one")
        return settings

    @model_validator(mode="after")
    def _of_settings(self) -> "Ablation":
        if unknown_labels := self.expected.keys() - self.settings.keys():
            raise ValueError(f"expected: '{min(unknown_labels)}' is no setting")
        return self

    def rows(self) -> list[tuple[str, str, str]]:
        """(label, recipe expression, variant), settings first."""
        return [(label, recipe, variant) for variant in self.variants for label, recipe in self.settings.items()]

    def targets(self) -> dict[str, list[str]]:
        """Slug of a setting -> its "recipe/variant" rows: each can be run by name, ablation_rotation_none."""
        return {
            slug(label): [f"{recipe}/{variant}" for variant in self.variants] for label, recipe in self.settings.items()
        }


def slug(label: str) -> str:
    """The label as part of a target's name: "proj + fc2, full width" -> "proj_fc2_full_width"."""
    return re.sub("[^a-z0-9.]+", "_", label.lower()).strip("_")


def load_ablations(path: Path = PATH) -> dict[str, Ablation]:
    """Every ablation by name. Raises BenchError with file and key."""
    if not path.is_file():
        raise BenchError(f"{path}: no such file; run from the root of a robuq_bench checkout")
    return {name: build(Ablation, raw, f"{path}: {name}") for name, raw in read_yaml(path).items()}


def load_ablation(name: str, path: Path = PATH) -> Ablation:
    ablations = load_ablations(path)
    if name not in ablations:
        raise unknown("ablation", name, ablations, str(path))
    return ablations[name]


def parse_sweep(text: str, folder: Path = FOLDER) -> tuple[str, Ablation]:
    """(name, ablation) of "recipe,key=value|value|.../variant|...": every value, or every combination of several keys.

    The first combination is the reference. The name holds recipe, keys and variants, not the values: a sweep with
    more values goes on where the last one ended. Raises BenchError for what is no sweep and, as `load_variant` does,
    for an unknown recipe, variant or key and values that do not fit.
    """
    where = f"sweep '{text}'"
    expression, slash, variants = text.rpartition("/")
    recipe, *items = split_items(expression)
    if not slash or not recipe:
        raise BenchError(f"{where}: write recipe,key=value|value/variant, for example {EXAMPLE}")
    fixed = [item for item in items if "|" not in item]
    swept = [_choices(item, where) for item in items if "|" in item]
    if not swept:
        raise BenchError(f"{where}: names no values to choose from; separate them by |, for example {EXAMPLE}")
    settings = {
        ", ".join(chosen): ",".join([recipe, *fixed, *chosen]) for chosen in product(*(choices for _, choices in swept))
    }
    names, keys = variants.split("|"), [key for key, _ in swept]
    raw = {
        "title": f"Sweep of {', '.join(keys)}",
        "question": f"What do other values of {' and '.join(keys)} change in {','.join([recipe, *fixed])}?",
        "variants": names,
        "settings": {label: _shortest(whole, names, folder) for label, whole in settings.items()},
    }
    name = re.sub("[^A-Za-z0-9._]+", "-", "-".join(["sweep", recipe, *fixed, *keys, *names]))
    return name, build(Ablation, raw, where)


def _choices(item: str, where: str) -> tuple[str, list[str]]:
    """(key, ["key=a", "key=b"]) of "key=a|b". Raises BenchError when a value is missing or stands twice."""
    key, _, values = item.partition("=")
    choices = [value.strip() for value in values.split("|")]
    if not all(choices) or len(set(choices)) < len(choices):
        raise BenchError(f"{where}: '{item}' needs values that are there and differ, as in low_rank.rank=0|4|16")
    return key, [f"{key}={value}" for value in choices]


def _shortest(expression: str, variants: list[str], folder: Path) -> str:
    """The expression without overrides that change nothing, so that a row that exists already is not run again."""
    recipe, *items = split_items(expression)

    def methods(kept: list[str]) -> list:
        return [load_variant(",".join([recipe, *kept]), variant, folder).method for variant in variants]

    wanted = methods(items)
    for item in items:
        if methods(without := [other for other in items if other != item]) == wanted:
            items = without
    return ",".join([recipe, *items])
