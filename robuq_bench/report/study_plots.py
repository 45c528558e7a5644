"""The study's figures: quality against training steps, and quality against measured latency."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.lines import Line2D

from robuq_bench.measure.engine_records import ForwardTable, Kernels
from robuq_bench.metrics.extractors import label as named
from robuq_bench.report.comparison import METRIC
from robuq_bench.report.drawing import INK, PALETTE, STYLE, log_if_wide, logarithmic, plt, svg
from robuq_bench.report.plots import level
from robuq_bench.report.rows import Row
from robuq_bench.report.study import Study, steps, without_budget
from robuq_bench.report.verdict import scores

BLOCK = ("qkv", "proj", "fc1", "fc2")
FLOOR = "real images (floor)"
IMAGES, TOKENS = 64, 16384  # of 256 tokens each
BF16_FORWARD, BF16_PRODUCT = "bf16 compiled", "torch.mm bf16"  # as the engine's records call them


@dataclass(frozen=True)
class Point:
    """A row in a plot of quality against time: where it stands, its mean score and half-width, the bits beside it."""

    row: Row
    x: float
    y: float
    bits: str


def budget_groups(study: Study) -> dict[str, dict[str, list[Row]]]:
    """Variant -> recipe without its budget -> rows by rising steps; only recipes that were run at two or more."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in sorted((row for row in study.rows if row.quantised and steps(row)), key=steps):
        found.setdefault(row.variant.name, {}).setdefault(without_budget(row), []).append(row)
    several = {v: {name: rows for name, rows in own.items() if len(rows) > 1} for v, own in found.items()}
    return {variant: own for variant, own in several.items() if own}


def budget(study: Study, variant: str, groups: dict[str, list[Row]], extractor: str) -> str:
    """Quality against QAT steps, a line for each recipe: the mean over seeds, every seed a dot."""
    title = f"{variant}: {named(METRIC, extractor)} by training steps ({study.label})"
    with plt.style.context(STYLE):
        figure, axes = plt.subplots()
        drawn = []
        for colour, rows in zip(PALETTE, groups.values(), strict=False):
            found = [(steps(row), [*values.values()]) for row in rows if (values := scores(row, extractor))]
            drawn += [value for _, values in found for value in values]
            means = [sum(values) / len(values) for _, values in found]
            axes.plot([x for x, _ in found], means, "-", marker="o", color=colour, label=_method(rows[0]))
            dots = [(x, value) for x, values in found if len(values) > 1 for value in values]
            axes.plot([x for x, _ in dots], [y for _, y in dots], ".", color=colour, markersize=4, alpha=0.6)
        drawn += _levels(axes, study, extractor)
        log_if_wide(axes, "y", drawn)
        logarithmic(axes, "x")
        ticks = sorted({steps(row) for rows in groups.values() for row in rows})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set(xlabel="QAT steps", ylabel=f"{named(METRIC, extractor)} (lower is better)", title=title)
        return svg(
            figure, f"budget-{variant}-{extractor}".replace(".", "-"), title, axes.get_legend_handles_labels()[0]
        )


def deployed_points(study: Study, extractor: str) -> list[Point]:
    """Rows whose deployed model was timed: milliseconds of one forward pass."""
    timed = [(row, row.figures["deployed"].mean) for row in study.rows if "deployed" in row.figures]
    return _points(timed, extractor)


def forward_points(study: Study, table: ForwardTable, extractor: str) -> list[Point]:
    """Rows at whose bits the deployed DiT-XL/2 was timed, and full precision in bfloat16: ms for `IMAGES` images."""
    times = {row.method: row.times.median_ms for row in table.rows if row.times and row.key[::2] == ("XL/2", IMAGES)}
    return _points([(row, times[name]) for row in study.rows if (name := _method_timed(row)) in times], extractor)


def _method_timed(row: Row) -> str:
    """What the engine's table calls the row's model; "" when it has none."""
    if not row.quantised:
        return BF16_FORWARD
    return row.variant.name + " mixed" * (row.variant.method.allocation is not None) if on_engine(row) else ""


def kernel_points(study: Study, kernels: Kernels, extractor: str) -> list[Point]:
    """Rows with ternary weights on RobuQ's grid: microseconds of the products of a DiT-XL/2 block at their bits.

    A product's time is the mean over the row's blocks of the measured one at that layer's bits; full precision is
    multiplied in bfloat16 by the library.
    """
    own = [row for row in kernels.rows if (row.kind, row.size, row.m) == ("product", "XL", TOKENS)]
    times = {(row.shape, row.bits): row.us for row in own if row.kernel == f"W1.58A{row.bits}"}
    times |= {(row.shape, 32): row.us for row in own if row.kernel == BF16_PRODUCT}
    timed = [row for row in study.rows if on_engine(row) or not row.quantised]
    return _points([(row, us) for row in timed if (us := _block_us(row, times))], extractor)


def on_engine(row: Row) -> bool:
    """Whether the kernels that were timed are what the row would run on."""
    method = row.variant.method
    weight, activation, rotation = method.weight, method.activation, method.rotation
    if row.status != "ok" or None in (weight, activation, rotation, method.adaln):
        return False
    gaussian = activation.format in ("midrise", "midtread") and activation.scale == "mean_abs"
    return weight.format == "ternary" and gaussian and len(rotation.layers) == len(BLOCK) + 1


def _block_us(row: Row, times: dict[tuple[str, int], float]) -> float | None:
    """Time of a block's four products; None when one was not measured."""
    total = 0.0
    for shape in BLOCK:
        own = [times.get((shape, bits)) for layer, bits in row.runs[0].bits.items() if layer.endswith(f".{shape}")]
        if not own or None in own:
            return None
        total += sum(own) / len(own)
    return total


def _points(timed: Sequence[tuple[Row, float]], extractor: str) -> list[Point]:
    found = []
    for row, x in timed:
        if values := [*scores(row, extractor).values()]:
            widths = [bits for layer, bits in row.runs[0].bits.items() if not layer.endswith(".adaln")]
            bits = f"A{row.variant.activation_bits}" if row.quantised else "bf16"
            bits += "*" if len(set(widths)) > 1 else ""
            found.append(Point(row, x, sum(values) / len(values), bits))
    return found


def latency(study: Study, points: Sequence[Point], extractor: str, how: tuple[str, str, str]) -> str:
    """Quality against time; a line joins the rows that no other undercuts. how: name of the figure, axis, label."""
    name, axis, tag = how
    title = f"{named(METRIC, extractor)} ({study.label}) by time ({tag})"
    methods = list(dict.fromkeys(point.row.method for point in points if not point.row.changes))
    paint = {method: PALETTE[i % len(PALETTE)] for i, method in enumerate(methods)}
    with plt.style.context(STYLE):
        figure, axes = plt.subplots()
        best = front(points)
        axes.plot([p.x for p in best], [p.y for p in best], color=INK, linewidth=0.9, drawstyle="steps-post")
        changed = [point for point in points if point.row.changes]
        axes.plot([p.x for p in changed], [p.y for p in changed], ".", color=INK, alpha=0.35)
        for point in (point for point in points if not point.row.changes):
            axes.plot(point.x, point.y, "o", color=paint[point.row.method])
            below = point.bits.endswith("*")  # two rows of the same average may all but coincide
            place = {"xytext": (5, -10 if below else 4), "textcoords": "offset points", "fontsize": 7}
            axes.annotate(point.bits, (point.x, point.y), **place)
        level(axes, FLOOR, getattr(study.floor_of(extractor), METRIC), ":")
        axes.margins(x=0.12)
        axes.set(xlabel=axis, ylabel=f"{named(METRIC, extractor)} (lower is better)", title=title)
        keys = [Line2D([], [], color=colour, linestyle="", marker="o", label=key) for key, colour in paint.items()]
        keys += [Line2D([], [], color=INK, alpha=0.35, linestyle="", marker=".", label="changed recipes")] * bool(
            changed
        )
        return svg(figure, f"{name}-{extractor}", title, keys)


def front(points: Sequence[Point]) -> list[Point]:
    """The points that none is faster than and at least as good as, by rising time."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, p.y)):
        if not best or point.y < best[-1].y:
            best.append(point)
    return best


def _method(row: Row) -> str:
    """The method's name without its budget."""
    title, changes = row.variant.method.title, without_budget(row).partition(",")[2].replace(",", ", ")
    return f"{title} [{changes}]" if changes else title


def _levels(axes, study: Study, extractor: str) -> list[float]:
    """Lines of full precision and of real images; their heights."""
    floor = getattr(study.floor_of(extractor), METRIC)
    level(axes, FLOOR, floor, ":")
    heights = [floor]
    for row in study.rows:
        if not row.quantised and (values := [*scores(row, extractor).values()]):
            heights.append(sum(values) / len(values))
            level(axes, row.method, heights[-1], "--")
    return heights
