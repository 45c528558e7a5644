"""What the page says about methods and provenance, taken from the rows. Pure."""

from collections.abc import Iterable, Sequence
from typing import Any

from robuq_bench.config.base import Model
from robuq_bench.config.recipe import Quantiser, Recipe
from robuq_bench.models.dit import layer_type
from robuq_bench.report.rows import Row
from robuq_bench.report.table import Table

WORDS = {"title", "citation", "url", "variants", "paper", "assumptions"}  # fields of a recipe that describe it
STAGES = ("train", "sample", "evaluate", "measure")
SPELT_OUT = {"training", "weight", "activation", "rotation", "low_rank", "adaln", "attention_bits"}


class Card(Model):
    """A recipe: parts are (name, text) in the order data meets them."""

    method: str
    recipe: str
    citation: str
    url: str | None
    variants: tuple[str, ...]
    parts: tuple[tuple[str, str], ...]
    assumptions: tuple[str, ...]


class Step(Model):
    """One command that was run. seconds: wall time, where the stage recorded it."""

    row: str
    stage: str
    time: str
    seconds: float | None
    device: str
    code: str
    command: str


def cards(rows: Sequence[Row]) -> Iterable[Card]:
    """One card for each recipe expression, whatever the number of its variants."""
    for recipe in dict.fromkeys(row.variant.recipe for row in rows):
        own = [row for row in rows if row.variant.recipe == recipe]
        method = own[0].variant.method
        yield Card(
            method=own[0].method,
            recipe=recipe,
            citation=method.citation,
            url=method.url if (method.url or "").startswith("https://") else None,
            variants=tuple(row.variant.name for row in own),
            parts=tuple(_merged(own)),
            assumptions=method.assumptions,
        )


def _merged(rows: Sequence[Row]) -> Iterable[tuple[str, str]]:
    """The parts of a recipe; where variants differ, each text names its variants."""
    composed = [dict(parts(row.variant.method, row.runs[0].bits)) for row in rows]
    for name in dict.fromkeys(name for one in composed for name in one):
        texts: dict[str, list[str]] = {}
        for row, one in zip(rows, composed, strict=True):
            texts.setdefault(one.get(name, "none"), []).append(row.variant.name)
        same = len(texts) == 1
        yield name, "; ".join(text if same else f"{', '.join(names)}: {text}" for text, names in texts.items())


def parts(method: Recipe, bits: dict[str, int]) -> Iterable[tuple[str, str]]:
    """The composition of a method in words: what every quantised recipe has, then what this one sets besides."""
    if method.training == "none":
        yield "Quantisation", "none"
        return
    rotation, low_rank = method.rotation, method.low_rank
    yield "Weights", _quantiser(method.weight)
    yield "Activations", f"{_quantiser(method.activation)}{_widths(bits)}"
    signs = rotation and ("random signs" if rotation.signs else "no signs")
    yield "Rotation", f"{rotation.kind} Hadamard, {signs}, on {', '.join(rotation.layers)}" if rotation else "none"
    yield "Low-rank branch", f"rank {low_rank.rank}, {low_rank.init} of the {low_rank.of}" if low_rank else "none"
    yield "adaLN activations", f"{method.adaln.activation_bits} bits" if method.adaln else "full precision"
    yield "Attention products", f"{method.attention_bits} bits" if method.attention_bits else "full precision"
    for name, value in _set(method, WORDS | SPELT_OUT):
        yield name.replace("_", " ").capitalize(), _text(value)


def _quantiser(quantiser: Quantiser | None) -> str:
    if quantiser is None:
        return "full precision"
    more = "".join(f", {name} {_text(value)}" for name, value in _set(quantiser, {"estimator"}))
    return (
        f"{quantiser.format} per {quantiser.granularity}, scale {quantiser.scale}, gradient {quantiser.estimator}{more}"
    )


def _set(block: Model, besides: set[str]) -> Iterable[tuple[str, Any]]:
    """(field, value) of the optional fields that do not have their default: new ones show without a change here."""
    for name, field in type(block).model_fields.items():
        if name not in besides and not field.is_required() and getattr(block, name) != field.default:
            yield name, getattr(block, name)


def _text(value: Any) -> str:
    if isinstance(value, Model):
        return ", ".join(f"{name} {_text(part)}" for name, part in value if part is not None)
    if isinstance(value, tuple):
        return "; ".join(map(_text, value)) if any(isinstance(v, Model) for v in value) else "+".join(map(str, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _widths(bits: dict[str, int]) -> str:
    """Mentions the bits of the layers when an allocation gave them different ones."""
    widths = [width for layer, width in bits.items() if layer_type(layer) != "adaln"]
    return f", {min(widths)} to {max(widths)} bits, layer by layer" if len(set(widths)) > 1 else ""


def steps(table: Table) -> Iterable[Step]:
    """Every stage of every run, the reference first."""
    yield _step("real images", "reference", table.floor_provenance)
    for row in table.rows:
        for run in row.runs:
            for stage in filter(run.provenance.get, STAGES):
                yield _step(f"{row.name}, seed {run.seed}", stage, run.provenance[stage])


def _step(row: str, stage: str, record: dict[str, Any]) -> Step:
    return Step(
        row=row,
        stage=stage,
        time=str(record["time"]).replace("+00:00", " UTC").replace("T", " "),
        seconds=record.get("seconds"),
        device=str(record["device"]),
        code=_code(record),
        command=str(record["command"]),
    )


def environment(records: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    """What -> its distinct values over all records, in order of appearance: one each on a clean run."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        machine = record["machine"]
        facts = {
            "Code": f"robuq-bench {record['version']}, {_code(record)}",
            "Python": record["python"],
            "Packages": ", ".join(f"{name} {version}" for name, version in record["packages"].items() if version),
            "Machine": ", ".join(f"{name}: {value}" for name, value in machine.items()),
            "Device": record["device"],
        }
        for name, text in facts.items():
            found.setdefault(name, {})[str(text)] = None
    return {name: list(texts) for name, texts in found.items()}


def _code(record: dict[str, Any]) -> str:
    """Commit, and whether the working tree had changes; outside a checkout, that it was outside."""
    commit = str(record["commit"])
    short = commit[:10] if all(c in "0123456789abcdef" for c in commit) else commit
    return short + (" with uncommitted changes" if record["dirty"] else "")
