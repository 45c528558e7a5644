"""The study's page as text, and its summary in Markdown: verdicts first, then what they rest on."""

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from robuq_bench.measure.engine_records import ForwardTable, Kernels
from robuq_bench.measure.inspect_records import Inspection
from robuq_bench.report import facts
from robuq_bench.report import study_plots as plots
from robuq_bench.report.ablation_plot import ablation_plot
from robuq_bench.report.claims import RULE, load_claims
from robuq_bench.report.comparison import METRIC
from robuq_bench.report.expectations import NOISE, expectations
from robuq_bench.report.ordering import describe, orderings
from robuq_bench.report.page import template
from robuq_bench.report.plots import Curve, loss_curves
from robuq_bench.report.records import Ablation
from robuq_bench.report.study import Study, steps
from robuq_bench.report.study_findings import costs, cut_short, finding_text, headline, lines, verdicts

# Name, axis and label of a figure of quality against time.
OWN = ("deployed", "milliseconds a forward pass, the row's own model", "deployed")
FORWARD = ("forward", "milliseconds a forward pass of DiT-XL/2 at these bits, 64 images, one GPU", "deployed")
KERNEL = ("kernel", "microseconds of a DiT-XL/2 block's products at these bits, 64 images, one GPU", "kernel")
COLOURS = {"holds": "good", "does not hold": "bad"}


def render(
    study: Study,
    ablations: Sequence[Ablation] = (),
    inspection: Inspection | None = None,
    kernels: Kernels | None = None,
    table: ForwardTable | None = None,
) -> str:
    """The page; the same arguments give the same bytes."""
    found = verdicts(study, inspection)
    sources = load_claims().sources
    records = [record for row in study.rows for run in row.runs for record in run.provenance.values()]
    return template("study.html.j2").render(
        title=study.title,
        study=study,
        headline=headline(found),
        cut_short=cut_short(study),
        rule=RULE,
        metric=METRIC,
        verdicts=found,
        sources=sources,
        colours=COLOURS,
        finding_text=finding_text,
        orders=[(order, describe(order)) for order in orderings(study.rows, study.extractors)],
        budgets=[Markup(figure) for figure in _budgets(study)],
        training=[Markup(figure) for figure in _training(study)],
        latencies=[Markup(figure) for figure in _latencies(study, kernels, table)],
        strips=_strips(study),
        ablations=[(one, Markup(ablation_plot(one)) if one.plot else None) for one in ablations],
        expected=list(expectations(ablations)),
        noise=NOISE,
        lines=list(lines(study)),
        costs=list(costs(study)),
        environment=facts.environment([study.floor_provenance, *records]),
        floors=[study.floor_of(name) for name in study.extractors],
    )


def _budgets(study: Study) -> Iterator[str]:
    for variant, groups in plots.budget_groups(study).items():
        for extractor in study.extractors:
            yield plots.budget(study, variant, groups, extractor)


def _training(study: Study) -> Iterator[str]:
    """Losses of the recipes as they stand."""
    own = [row for row in study.rows if row.quantised and not row.changes and study.curves.get(row.key)]
    if own:
        curves = [Curve(row, study.curves[row.key], steps(row)) for row in own]
        yield loss_curves("training", "Quantisation-aware training", curves)


def _latencies(study: Study, kernels: Kernels | None, table: ForwardTable | None) -> Iterator[str]:
    extractor = study.extractors[0]
    drawn = [(plots.deployed_points(study, extractor), OWN)]
    drawn += [(plots.forward_points(study, table, extractor), FORWARD)] if table else []
    drawn += [(plots.kernel_points(study, kernels, extractor), KERNEL)] if kernels else []
    for points, how in drawn:
        if len({point.x for point in points}) > 1:
            yield plots.latency(study, points, extractor, how)


def _strips(study: Study) -> list[tuple[str, str | None, str]]:
    """(name, PNG as a data URI or None, reason why there is none) of real images and of every row that has a strip."""
    names = {"": ("Real, held out", "")} | {row.key: (row.name, row.reason) for row in study.rows}
    shown = [(*name, study.strips[key]) for key, name in names.items() if key in study.strips]
    return [(name, f"data:image/png;base64,{png}" if png else None, reason) for name, reason, png in shown]
