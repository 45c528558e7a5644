"""An ablation as a preset runs it: at the variants that the preset names, without settings that it cannot run."""

from collections.abc import Iterable, Mapping

from robuq_bench.allocate.allocation import check_priced
from robuq_bench.config.ablation import Ablation
from robuq_bench.config.preset import Preset
from robuq_bench.config.row import load_row
from robuq_bench.errors import BenchError


def for_preset(preset: Preset, name: str, ablation: Ablation) -> tuple[Ablation, dict[str, str]]:
    """(what `preset` runs of the ablation `name`, label -> reason of every setting that it leaves out).

    Left out is what has no price: measured time is known only for layers that the engine's table holds. Raises
    BenchError for a recipe or variant that does not load, and when fewer than two settings are left.
    """
    variants = preset.ablations.get(name, ablation.variants)
    refused = {}
    for label, recipe in ablation.settings.items():
        for row in (load_row(preset, recipe, variant) for variant in variants):
            try:
                if row.method.allocation:
                    check_priced(preset, row)
            except BenchError as error:
                refused[label] = str(error)
    kept = {label: recipe for label, recipe in ablation.settings.items() if label not in refused}
    if len(kept) < 2:
        raise BenchError(f"ablation {name}: {next(iter(refused.values()))}")
    return ablation.model_copy(update={"variants": variants, "settings": kept}), refused


def study_rows(preset: Preset, ablations: Mapping[str, Ablation], full: Iterable[str]) -> list[str]:
    """Every "recipe/variant" of a preset's study, once: its rows, those of the full table, and of its ablations.

    Raises BenchError for a row in `seeded` or `more_seeds` that is none of them, and as `for_preset` does.
    """
    plans = [for_preset(preset, name, ablations[name])[0] for name in preset.ablations]
    ablated = [f"{recipe}/{variant}" for plan in plans for _, recipe, variant in plan.rows()]
    rows = dict.fromkeys([*preset.rows, *full, *ablated])
    for name in ("seeded", "more_seeds"):
        if strange := [row for row in getattr(preset, name) if row not in rows]:
            raise BenchError(
                f"{name}: '{strange[0]}' is no row of the preset's study; correct it, or add an ablation with it"
            )
    return list(rows)
