"""Reads a results folder into rows, and refuses what does not belong together."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robuq_bench.config.preset import Preset
from robuq_bench.config.recipe import LAYER_TYPES, Variant, load_variant
from robuq_bench.errors import BenchError
from robuq_bench.files import sha256_file
from robuq_bench.models.checkpoint import Card, read_card
from robuq_bench.report.records import Bits, Floor, Measure, Metrics, Scores, Train, read_record
from robuq_bench.report.rows import Row, Run, compare, make_row

TRAIN, PACKED, SAMPLES = "train.json", "packed.safetensors", "samples.npz"
BITS, PROFILE = "bits.json", "profile.json"
METRICS, MEASURE, FLOOR = "metrics.json", "measure.json", "reference/floor.json"
TEXT = {"title", "citation", "url", "variants", "paper", "assumptions", "deviates"}  # of a recipe: words about it


@dataclass(frozen=True)
class Results:
    """Every row, the real-vs-real floor, and the sampling settings that all rows share."""

    rows: tuple[Row, ...]
    floor: Floor
    sampling: dict[str, Any]


def read_results(folder: Path, preset: Preset, rows: Iterable[str], weights: bool = True) -> Results:
    """Read "recipe/variant" `rows` of `preset` below `folder`.

    weights: whether the packed models lie there, too. Without them the hashes of what was evaluated and of what was
    measured are checked against each other alone, and the bits are those of bits.json, or the variant's.
    Raises BenchError, one line, for a missing or damaged file, missing provenance, a model other than the one
    evaluated, and rows that cannot stand in one table (other N, sampling or features).
    """
    floor = read_record(folder / FLOOR, Floor)
    settings = {folder / FLOOR: _features(floor.scores, floor.also)}
    found, sampling = [], {}
    for row in rows:
        variant = _variant(row)
        runs = []
        for seed in seeds(preset, variant):
            place = run_folder(folder, variant, seed)
            metrics = read_record(place / METRICS, Metrics)
            bits = _packed_bits(place, variant, seed) if weights else _planned_bits(place, preset, variant)
            runs.append(_run(place, seed, metrics, bits, weights))
            settings[place / METRICS] = _settings(metrics)
            sampling = sampling or metrics.protocol
        found.append(make_row(variant, runs, drawn_by(sampling)))
    check_alike(settings)
    return Results(compare(found), floor, sampling)


def drawn_by(sampling: dict[str, Any]) -> str:
    """Which model drew the images: "simulated" or "deployed"."""
    return sampling.get("denoiser", "simulated")


def seeds(preset: Preset, variant: Variant) -> tuple[int, ...]:
    """Full precision is trained once, every quantised row once for each of its seeds."""
    return preset.seeds_of(f"{variant.recipe}/{variant.name}") if variant.method.training != "none" else (0,)


def _variant(row: str) -> Variant:
    recipe, slash, name = row.rpartition("/")
    if not slash:
        raise BenchError(f"row '{row}': write recipe/variant, for example robuq/W1.58A2")
    return load_variant(recipe, name)


def run_folder(folder: Path, variant: Variant, seed: int) -> Path:
    return folder / variant.recipe / variant.name / f"seed{seed}"


def check_alike(settings: dict[Path, dict[str, Any]]) -> None:
    """Raises BenchError naming the first file whose settings differ from an earlier one's, and the difference.

    Settings that a file does not have (those of a diverged run) are not compared.
    """
    first: dict[str, tuple[Path, Any]] = {}
    for path, values in settings.items():
        for key, value in values.items():
            where, expected = first.setdefault(key, (path, value))
            if value != expected:
                raise BenchError(
                    f"{path}: {key} is {value}, but {expected} in {where}; rows of one table must agree, make one again"
                )


def _packed_bits(place: Path, variant: Variant, seed: int) -> dict[str, int]:
    card = read_card(place / PACKED)
    _check_card(card, variant, seed, place / PACKED)
    return card.bits


def _planned_bits(place: Path, preset: Preset, variant: Variant) -> dict[str, int]:
    """Bits per layer by bits.json, or the variant's in all."""
    if variant.method.allocation:
        return read_record(place / BITS, Bits).bits
    own = dict.fromkeys(LAYER_TYPES, variant.activation_bits)
    own["adaln"] = variant.method.adaln.activation_bits if variant.method.adaln else 32
    return {f"blocks.{i}.{kind}": bits for i in range(preset.model.depth) for kind, bits in own.items()}


def _run(place: Path, seed: int, metrics: Metrics, bits: dict[str, int], weights: bool) -> Run:
    train, measure = read_record(place / TRAIN, Train), read_record(place / MEASURE, Measure)
    _check_hashes(place, metrics, measure, weights)
    stages = {TRAIN: train, METRICS: metrics, MEASURE: measure}
    diverged = [stage for stage in stages.values() if stage.status == "diverged"]
    if not diverged:
        _check_whole(place, train, metrics, measure)
    records = {"train": train.provenance, "sample": metrics.sampled}
    records |= {"evaluate": metrics.provenance, "measure": measure.provenance}
    return Run(
        seed=seed,
        status="diverged" if diverged else "ok",
        reason=diverged[0].reason if diverged else "",
        packed=metrics.packed,
        size=measure.size.bytes if measure.size and not diverged else None,  # a diverged file holds no weights
        scores=None if diverged else metrics.scores,
        also=() if diverged else metrics.also,
        steps=train.plan.get("steps"),
        held_out_loss=None if diverged else train.held_out_loss,
        latency=None if diverged else measure.latency,
        deployed=None if diverged or measure.deployed is None else measure.deployed.latency,
        bits=bits,
        provenance={stage: record for stage, record in records.items() if record},
    )


def _check_hashes(place: Path, metrics: Metrics, measure: Measure, weights: bool) -> None:
    """What is measured is what was evaluated is, where `weights` are, what lies there (design invariant 2)."""
    actual = sha256_file(place / PACKED) if weights else metrics.packed
    for name, claimed in ((METRICS, metrics.packed), (MEASURE, measure.packed)):
        if claimed != actual:
            raise BenchError(
                f"{place / name}: is about another model (SHA-256 {claimed[:8]}…) than {PACKED} beside it "
                f"({actual[:8]}…); make it again"
            )


def _check_card(card: Card, variant: Variant, seed: int, path: Path) -> None:
    """The model is the one its folder says, trained as the recipe says now."""
    given, wanted = (f"{v.recipe}/{v.name} seed {s}" for v, s in ((card.variant, card.seed), (variant, seed)))
    if given != wanted:
        raise BenchError(f"{path}: holds {given}, not {wanted}; train this row again")
    trained, now = (v.method.model_dump(mode="json", exclude=TEXT) for v in (card.variant, variant))
    if changed := [key for key in now if trained[key] != now[key]]:
        raise BenchError(
            f"{path}: trained with another version of recipe '{variant.recipe}' ({', '.join(changed)} changed since); "
            "train this row again"
        )


def _check_whole(place: Path, train: Train, metrics: Metrics, measure: Measure) -> None:
    parts = {
        f"{TRAIN}: held_out_loss": train.held_out_loss,
        f"{METRICS}: scores": metrics.scores,
        f"{MEASURE}: size": measure.size,
    }
    if missing := [name for name, value in parts.items() if value is None]:
        raise BenchError(f"{place}/{missing[0]} is missing though the run did not diverge; make it again")


def _settings(metrics: Metrics) -> dict[str, Any]:
    """What must be equal in all rows: sampling, and features when there are any."""
    sampling = {f"sampling {key}": value for key, value in metrics.protocol.items()}
    if metrics.scores is None:
        return sampling
    return sampling | {"n": metrics.scores.n} | _features(metrics.scores, metrics.also)


def _features(scores: Scores, also: Sequence[Scores]) -> dict[str, Any]:
    return {
        "further extractors": {other.extractor: other.digest for other in also},
        "extractor": scores.extractor,
        "extractor digest": scores.digest,
        "feature protocol": scores.protocol,
        "n_reference": scores.n_reference,
    }
