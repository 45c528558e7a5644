"""The engine's headline, goals and forward passes as Markdown, for a README."""

from collections.abc import Iterable, Sequence

from robuq_bench.measure.engine_records import ForwardTable, Kernels
from robuq_bench.report.engine_findings import MODEL, goals, headline
from robuq_bench.report.engine_page import forwards

COLUMNS = {
    "method": "method",
    "batch": "batch",
    "ms": "median, ms",
    "over_bf16": "× bf16 compiled",
    "over_full": "× fp32",
    "peak": "peak memory, MiB",
    "file": "weights stored, MB",
    "error": "relative error",
}


def to_markdown(kernels: Kernels, table: ForwardTable) -> str:
    """Headline, goals, and every forward pass of the largest model; a row without speed says why."""
    judged = [(goal.what, goal.measured, goal.bar, goal.aim, goal.verdict) for goal in goals(kernels, table)]
    rows = [
        [row[key] if key != "ms" or row["status"] == "ok" else f"{row['status']}: {row['reason']}" for key in COLUMNS]
        for row in forwards(table)
        if row["model"] == MODEL
    ]
    parts = [
        headline(table),
        _table(("goal", "measured", "bar", "aim", "verdict"), judged),
        _table(tuple(COLUMNS.values()), rows),
    ]
    return "\n\n".join(parts) + "\n"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
