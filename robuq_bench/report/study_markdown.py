"""The study's summary in Markdown: verdicts, orders, expectations, rows, cost."""

from collections.abc import Iterable, Iterator, Sequence

from robuq_bench.errors import BenchError
from robuq_bench.measure.inspect_records import Inspection
from robuq_bench.metrics.extractors import label as named
from robuq_bench.report.claims import RULE
from robuq_bench.report.comparison import METRIC
from robuq_bench.report.expectations import NOISE, expectations
from robuq_bench.report.ordering import Ordering, describe, orderings
from robuq_bench.report.records import DASH, Ablation
from robuq_bench.report.study import Study
from robuq_bench.report.study_findings import costs, cut_short, finding_text, headline, lines, verdicts

MARKS = ("<!-- study -->", "<!-- end of study -->")


def to_markdown(study: Study, ablations: Sequence[Ablation], inspection: Inspection | None) -> str:
    """Verdicts, orders and cost as Markdown."""
    found = verdicts(study, inspection)
    text = [f"# {study.title}: do the paper's claims hold?", "", headline(found), "", *_cut(study), RULE, ""]
    text += ["| claim | the paper | here | verdict |", "|---|---|---|---|"]
    for verdict in found:
        for i, finding in enumerate(verdict.findings):
            claim = f"**{verdict.text}**: {finding.text}" if i == 0 else finding.text
            ours = f"{finding.judgement}" + (f"; claim: **{verdict.judgement}**" if i == 0 else "")
            text.append(f"| {claim} | {finding.paper[0]} | {'; '.join(finding_text(finding)) or DASH} | {ours} |")
    text += ["", "## Order of the rows", "", *_orders(orderings(study.rows, study.extractors))]
    text += ["", "## What might beat RobuQ", "", *([*beat_table(ablations)] or ["Not measured."])]
    text += ["", "## Rows", "", *_rows(study)]
    text += ["", "## Cost", "", *(f"* {device}: {minutes}" for device, minutes in costs(study))]
    return "\n".join(text) + "\n"


def _orders(found: Iterable[Ordering]) -> Iterator[str]:
    for order in found:
        yield f"* {describe(order)}"
        for pair in order.discords:
            theirs, ours = (f"{pair[0]:g}, {pair[1]:g}" for pair in (pair.theirs, [round(x, 1) for x in pair.ours]))
            yield f"  * {pair.better} before {pair.worse}: {theirs}; here {ours}"


def beat_table(ablations: Sequence[Ablation]) -> Iterator[str]:
    """Expected and found, for ablations that expected something; nothing without one."""
    for ablation, found in expectations(ablations):
        yield from (f"{ablation.question} {NOISE}", "", "| change | expected | found | outcome |", "|---|---|---|---|")
        for one in found:
            yield f"| {one.setting} | {one.expected}, {one.because} | {one.found or DASH} | {one.outcome} |"


def _rows(study: Study) -> Iterator[str]:
    yield "| method | W/A | QAT steps | " + " | ".join(named(METRIC, name) for name in study.extractors) + " |"
    yield "|---|---|---:|" + "---:|" * len(study.extractors)
    for method, bits, budget, cells in lines(study):
        yield f"| {method} | {bits} | {budget} | {' | '.join(cells)} |"
    floors = " | ".join(f"{getattr(study.floor_of(name), METRIC):.1f}" for name in study.extractors)
    yield f"| Real held-out images (floor) | {DASH} | {DASH} | {floors} |"


def _cut(study: Study) -> list[str]:
    text = cut_short(study)
    return [text, ""] if text else []


def insert(document: str, text: str) -> str:
    """`document` with what stands between its two marks replaced. Raises BenchError when it has not both."""
    before, opening, rest = document.partition(MARKS[0])
    _, closing, after = rest.partition(MARKS[1])
    if not closing:
        raise BenchError(f"the document has no lines {MARKS[0]} and {MARKS[1]}, between which the study belongs")
    return f"{before}{opening}\n\n{text.strip()}\n\n{closing}{after}"


def findings(study: Study, ablations: Sequence[Ablation], inspection: Inspection | None) -> str:
    """What a page of findings says of the study: verdicts in a line each, then what was expected and found."""
    found = verdicts(study, inspection)
    text = [headline(found), "", *_cut(study), "| claim | verdict | numbers |", "|---|---|---|"]
    for verdict in found:
        numbers = "; ".join(f"{finding.text}: {', '.join(finding_text(finding))}" for finding in verdict.findings)
        text.append(f"| {verdict.text} | **{verdict.judgement}** | {numbers} |")
    return "\n".join([*text, "", *beat_table(ablations)])
