"""What the study says: every claim's verdict, and the rows and costs behind them, as text. Pure."""

from collections import Counter
from collections.abc import Iterator, Sequence

from robuq_bench.measure.inspect_records import Inspection
from robuq_bench.metrics.intervals import t_interval
from robuq_bench.report.claims import closing, load_claims
from robuq_bench.report.comparison import p_text
from robuq_bench.report.records import DASH
from robuq_bench.report.rows import Row
from robuq_bench.report.study import Study, budgets, device_seconds, steps
from robuq_bench.report.verdict import Finding, Measured, Verdict, judge, normality, scores, stability

LISTED = 8  # rows by name that a study which was cut lacks
WORDS = {
    "holds": ("holds", "hold"),
    "does not hold": ("does not hold", "do not hold"),
    "undecided": ("is undecided", "are undecided"),
    "not measured": ("is not measured", "are not measured"),
}


def verdicts(study: Study, inspection: Inspection | None) -> list[Verdict]:
    """Every claim, in the order of the paper's argument."""
    rows, found = {row.key: row for row in study.rows}, inspection and inspection.verdict
    claims = (*load_claims().claims, closing(budgets(study.rows)))
    first = normality(found.answer, found.headline) if found else normality(None, "")
    judged = [judge(claim, rows, study.extractors) for claim in claims]
    return [first, *judged[:-1], stability(rows, study.extractors), judged[-1]]


def headline(found: Sequence[Verdict]) -> str:
    """How many claims came out how."""
    counts = Counter(verdict.judgement for verdict in found)
    parts = [f"{n} {words[n > 1]}" for judgement, words in WORDS.items() if (n := counts[judgement])]
    return f"Of {len(found)} claims, {', '.join(parts)} here."


def cut_short(study: Study) -> str:
    """What was not run, the first `LISTED` rows by name; "" of a whole study."""
    if not study.left_out:
        return ""
    named = [f"{row}: {why}" for row, why in study.left_out.items()]
    count, more = len(named), len(named) - LISTED
    listed = "; ".join(named[:LISTED]) + (f"; and {more} more" if more > 0 else "")
    verbs = "row is missing or lacks" if count == 1 else "rows are missing or lack"
    return f"This study was cut: {count} {verbs} a seed ({listed})."


def measured_text(measured: Measured) -> str:
    """ "12.1 ± 11.0 (EffNetLite0, 3 seeds, p = 0.042)"."""
    gap = measured.difference
    spread = "" if gap.half_width is None else f" ± {gap.half_width:.3g}"
    seeds = f"{len(measured.seeds)} seed{'s' if len(measured.seeds) > 1 else ''}"
    facts = ", ".join(filter(None, (measured.extractor, seeds, p_text(measured.p))))
    return f"{gap.mean:.3g}{spread} ({facts})"


def finding_text(finding: Finding) -> list[str]:
    """What was found, line by line."""
    lines = [measured_text(measured) for measured in finding.measured]
    lines += [finding.reason] if finding.reason else []
    return lines + ([f"no row {' or '.join(finding.missing)}"] if finding.missing else [])


def costs(study: Study) -> Iterator[tuple[str, str]]:
    """(device, minutes by stage)."""
    for device, stages in device_seconds(study).items():
        total = sum(stages.values()) / 60
        parts = ", ".join(f"{stage} {seconds / 60:.1f}" for stage, seconds in stages.items())
        yield device, f"{total:.1f} minutes ({parts})"


def lines(study: Study) -> Iterator[tuple[str, str, str, list[str]]]:
    """(method, bits, QAT steps, scores under each extractor) of every row."""
    for row in study.rows:
        cells = [_cell(row, extractor) for extractor in study.extractors]
        yield row.method, row.bits, str(steps(row) or DASH), cells


def _cell(row: Row, extractor: str) -> str:
    if row.status != "ok":
        return "diverged"
    values = [*scores(row, extractor).values()]
    if not values:
        return DASH
    interval = t_interval(values)
    spread = "" if interval.half_width is None else f" ± {interval.half_width:.1f}"
    return f"{interval.mean:.1f}{spread}"
