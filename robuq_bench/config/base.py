"""What recipes and presets share: strict models, one-line validation errors, dotted overrides."""

import difflib
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from robuq_bench.errors import BenchError, unknown


class Model(BaseModel):
    """A frozen block of configuration that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


M = TypeVar("M", bound=Model)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises BenchError naming the line when it is not valid YAML or not a mapping."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise BenchError(f"{path}: not valid YAML ({reason})") from error
    if not isinstance(value, dict):
        raise BenchError(f"{path}: expected a mapping of keys to values, found {type(value).__name__}")
    return value


def find(folder: Path, kind: str, name: str) -> Path:
    """`folder/name.yaml`, or `name` itself when it is a path to a YAML file."""
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise BenchError(f"{name}: no such {kind} file")
        return Path(name)
    path = folder / f"{name}.yaml"
    if not path.is_file():
        if not folder.is_dir():
            raise BenchError(f"{folder}/: no such folder; run from the root of a robuq_bench checkout")
        raise unknown(kind, name, [p.stem for p in folder.glob("*.yaml")], where=f"{folder}/")
    return path


def build(model: type[M], value: dict[str, Any], where: str) -> M:
    """Validate `value` as `model`. Raises BenchError: file, key, what is wrong, allowed values."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise BenchError(f"{where}: {_first(error, model)}") from error


def override(value: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """A copy of `value` with dotted keys replaced: {"activation.scale": "absmax"}.

    A whole block may be replaced or set to null; a key below a null block starts a new one.
    """
    value = dict(value)
    for dotted, new in overrides.items():
        head, _, rest = dotted.partition(".")
        inner = value.get(head) or {}
        if rest and not isinstance(inner, dict):
            raise BenchError(f"'{dotted}': '{head}' is a plain value and has no keys below it")
        value[head] = override(inner, {rest: new}) if rest else new
    return value


def split_items(text: str) -> list[str]:
    """The parts of "robuq,a=1,b=[2,3]" between commas outside brackets."""
    return re.split(r",(?![^\[]*\])", text)


def parse_overrides(text: str, where: str) -> dict[str, Any]:
    """Parse "a.b=1,c=[2,3]" with YAML values. Raises BenchError on an item without '=', and on a key given twice."""
    overrides = {}
    for item in filter(None, split_items(text)):
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise BenchError(f"{where}: '{item}' is not key=value")
        if key.strip() in overrides:
            raise BenchError(f"{where}: '{key.strip()}' is given twice; keep one")
        try:
            overrides[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise BenchError(f"{where}: '{value}' in '{item}' is no YAML value") from error
    return overrides


def _first(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem as one line; further ones are counted."""
    found = error.errors()
    problems = [one for one in found if not any(_inside(other, one) for other in found)]
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")  # misspellings first
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        message = str(unknown("key", key, _keys(model, first["loc"])))
    else:
        given = f", found {first['input']!r}" if first["type"] not in ("missing", "value_error") else ""
        message = (f"{key}: " if key else "") + first["msg"].removeprefix("Value error, ") + given + _nearest(first)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return " ".join(message.split()) + more


def _inside(problem: ErrorDetails, other: ErrorDetails) -> bool:
    """Whether `problem` lies within the value of `other`, which it then explains: no item left, as each was bad."""
    place, outer = problem["loc"], other["loc"]
    return len(place) > len(outer) and place[: len(outer)] == outer


def _nearest(problem: ErrorDetails) -> str:
    """ "; did you mean 'qkv'?" after a misspelt choice."""
    if problem["type"] != "literal_error":
        return ""
    choices = re.findall(r"'([^']+)'", problem["ctx"]["expected"])
    near = difflib.get_close_matches(str(problem["input"]), choices, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def _keys(model: type[BaseModel], location: tuple) -> list[str]:
    """Dotted names of the fields beside an unknown key at `location`."""
    prefix = ""
    for part in location[:-1]:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        inner = _types(field.annotation) if field else []
        if not inner:
            break
        model, prefix = inner[0], f"{prefix}{part}."
    return [prefix + name for name in model.model_fields]


def _types(annotation: Any) -> list[type[BaseModel]]:
    parts = getattr(annotation, "__args__", (annotation,))
    return [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
