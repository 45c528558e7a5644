"""The page as text: everything inline, nothing fetched from anywhere."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from robuq_bench import __version__
from robuq_bench.report import facts, findings, plots
from robuq_bench.report.ablation_plot import ablation_plot
from robuq_bench.report.allocation_plots import pareto, sensitivity
from robuq_bench.report.allocations import Allocated, averages, sentences, widths
from robuq_bench.report.anchors import Verdict, outcome
from robuq_bench.report.formats import FLOOR
from robuq_bench.report.records import DASH, Ablation
from robuq_bench.report.rows import QUALITY
from robuq_bench.report.table import Column, Table


@dataclass(frozen=True)
class Strip:
    """One line of the image grid: PNG bytes, or the reason why there are none."""

    name: str
    png: bytes | None
    reason: str = ""


def render(
    table: Table,
    strips: Sequence[Strip],
    classes: Sequence[str],
    curves: Sequence[plots.Curve],
    ablations: Sequence[Ablation],
    allocations: Sequence[Allocated],
    anchors: Sequence[Verdict] = (),
) -> str:
    """The page of a preset; the same arguments give the same bytes. classes: names of the grid's columns."""
    records = [r for row in table.rows for run in row.runs for r in run.provenance.values()]
    return template("page.html.j2").render(
        title=table.title,
        preset=table.preset,
        table=table,
        headings=[_heading(column, table) for column in table.columns],
        quality=QUALITY,
        floor_name=FLOOR,
        headline=_unbroken(findings.headline(table)),
        sentences=[_unbroken(sentence) for sentence in findings.by_bits(table)],
        verdicts=list(findings.verdicts(table)),
        strips=[(strip, _data_uri(strip.png)) for strip in strips],
        classes=classes,
        losses=_loss_figures(curves),
        trends=_trend_figures(table),
        allocations=[_allocation(allocated, f"allocation-{i}") for i, allocated in enumerate(allocations)],
        ablations=_with_figures(ablations),
        anchors=anchors,
        anchored=outcome(anchors) if anchors else None,
        cards=list(facts.cards(table.rows)),
        environment=facts.environment([table.floor_provenance, *records]),
        steps=list(facts.steps(table)),
    )


def render_ablations(preset: str, title: str, ablations: Sequence[Ablation]) -> str:
    """A page of ablations alone. title: of the preset."""
    return template("ablations.html.j2").render(
        title=title,
        preset=preset,
        ablations=_with_figures(ablations),
        environment=facts.environment([ablation.provenance for ablation in ablations]),
    )


def template(name: str) -> Template:
    """A template of this room. What it is rendered with must name every variable it uses."""
    environment = Environment(
        loader=PackageLoader("robuq_bench.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"dash": DASH, "version": __version__}
    return environment.get_template(name)


def _unbroken(sentence: str) -> str:
    """No line break within "1.2 ± 0.3" and "p = 0.01"."""
    return re.sub(" ([±=<]) ", "\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", sentence)


def _heading(column: Column, table: Table) -> dict[str, str]:
    """A column title in two lines: FD over EffNetLite0."""
    suffix = f"-{table.floor.extractor}"
    main = column.title.replace(suffix, "")
    return {"main": main, "sub": table.floor.extractor if suffix in column.title else ""}


def _data_uri(png: bytes | None) -> str | None:
    return None if png is None else "data:image/png;base64," + base64.b64encode(png).decode()


def _loss_figures(curves: Sequence[plots.Curve]) -> list[Markup]:
    """Full precision and QAT apart; rows that were not trained have no curve."""
    kinds = {"loss-full": ("Full-precision training", False), "loss-qat": ("Quantisation-aware training", True)}
    figures = []
    for name, (title, quantised) in kinds.items():
        own = [c for c in curves if c.row.quantised == quantised and (c.losses or c.row.status == "diverged")]
        figures += [plots.loss_curves(name, title, own)] if own else []
    return [Markup(figure) for figure in figures]  # matplotlib escapes its text


def _trend_figures(table: Table) -> list[Markup]:
    if not any(row.figures for row in table.rows):
        return []
    arguments = (table.rows, table.floor.FD, table.name("FD"))
    return [Markup(draw(*arguments)) for draw in (plots.quality_and_bits, plots.quality_and_size)]


def _allocation(allocated: Allocated, name: str) -> dict[str, Any]:
    """What the page shows of one allocation; ids of its figures start with `name`."""
    figures = [pareto(allocated, name), *(sensitivity(allocated, measure, name) for measure in ("loss", "mse"))]
    return {
        "name": allocated.row.name,
        "seed": allocated.row.runs[0].seed,
        "sentences": list(sentences(allocated)),
        "widths": widths(allocated),
        "averages": averages(allocated),
        "figures": [Markup(figure) for figure in figures],
    }


def _with_figures(ablations: Sequence[Ablation]) -> list[tuple[Ablation, Markup | None]]:
    return [(ablation, Markup(ablation_plot(ablation)) if ablation.plot else None) for ablation in ablations]
