"""Results of a study that was cut: what is there, and what is not. Only where it is asked for by name."""

from collections.abc import Iterable
from pathlib import Path

from robuq_bench.config.preset import Preset
from robuq_bench.config.recipe import load_variant
from robuq_bench.errors import BenchError
from robuq_bench.report.inputs import (
    MEASURE,
    METRICS,
    PACKED,
    TRAIN,
    Results,
    read_results,
    run_folder,
    seeds,
)
from robuq_bench.report.rows import compare

NOT_RUN = "not run"
FILES = (TRAIN, METRICS, MEASURE)  # weights and images may have stayed behind on another machine


def read_available(folder: Path, preset: Preset, rows: Iterable[str]) -> tuple[Results, dict[str, str]]:
    """(the rows with the seeds that have their records, row -> what of it is missing).

    Raises BenchError as `read_results` does, and when there is no row at all.
    """
    rows, groups, left_out = list(rows), {}, {}
    for row in rows:
        variant = load_variant(*row.rsplit("/", 1))
        wanted = seeds(preset, variant)
        have = tuple(s for s in wanted if all((run_folder(folder, variant, s) / name).exists() for name in FILES))
        if have:
            weights = all((run_folder(folder, variant, s) / PACKED).exists() for s in have)
            groups.setdefault((have, weights), []).append(row)
        if have != wanted:
            lost = ", ".join(str(seed) for seed in wanted if seed not in have)
            left_out[row] = f"seed {lost} {NOT_RUN}" if have else NOT_RUN
    if not groups:
        raise BenchError(f"{folder}: no run of these rows is whole yet")
    parts = [_read(folder, preset, *key, group) for key, group in groups.items()]
    if len({str(part.sampling) for part in parts}) > 1:
        raise BenchError(f"{folder}: rows were sampled in different ways; make them again")
    found = {row.key: row for part in parts for row in part.rows}
    ordered = compare(found[row] for row in rows if row in found)
    return Results(ordered, parts[0].floor, parts[0].sampling), left_out


def _read(folder: Path, preset: Preset, have: tuple[int, ...], weights: bool, rows: list[str]) -> Results:
    only = preset.model_copy(update={"seeds": have, "extra_seeds": have, "more_seeds": {}})
    return read_results(folder, only, rows, weights)
