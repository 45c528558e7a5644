"""The engine's figures: roofline, time by activation bits, latency by batch."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from robuq_bench.measure.engine_records import ForwardTable, KernelRow, Kernels
from robuq_bench.report.drawing import INK, PALETTE, STYLE, logarithmic, plt, svg
from robuq_bench.report.engine_findings import MODEL, products

UNITS = {"b1": "single bit", "s8": "INT8", "e4m3": "FP8", "bf16": "bf16"}
PAINT = dict(zip(UNITS, PALETTE, strict=False))
SHAPES = {"qkv": "o", "proj": "s", "fc1": "^", "fc2": "D"}
SIZES_DRAWN = {512: 4, 4096: 6.5, 16384: 9}  # M -> marker size
PLAIN = {
    "torch.mm bf16": "bf16",
    "torch._scaled_mm fp8": "FP8",
    **{f"W1.58A{bits}": f"A{bits}" for bits in (1, 2, 3, 4)},
}
TERA = 1e12


def roofline(kernels: Kernels) -> str:
    """Achieved rate against operations per byte of XL's products, under the roofs probed in the same run."""
    title = "Roofline: DiT-XL/2's products, rates probed on this GPU"
    rows = [row for row in kernels.rows if row.kind == "product" and row.size == "XL" and drawn(row)]
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(5.6, 4.4))
        for row in rows:
            axes.plot(
                row.bound.ops / row.bound.bytes,
                row.bound.ops / row.us * 1e6 / TERA,
                SHAPES[row.shape],
                color=PAINT[row.unit],
                markersize=SIZES_DRAWN[row.m],
                alpha=0.75,
                markeredgewidth=0,
            )
        reach = [row.bound.ops / row.bound.bytes for row in rows]
        span = np.geomspace(min(reach) / 2, max(reach) * 2, 80) if reach else np.geomspace(10, 1e4, 80)
        for unit, colour in PAINT.items():
            if rate := kernels.rates.best(unit):
                roof = np.minimum(rate, span * kernels.rates.copy_bytes_per_s) / TERA
                axes.plot(span, roof, color=colour, linewidth=1.3)
                _name_roof(axes, f"{UNITS[unit]} {rate / TERA:,.0f}", span[-1], rate / TERA, below=unit == "e4m3")
        axes.set(xlabel="operations per byte", ylabel="TOP/s (a multiply-accumulate is two)", title=title)
        logarithmic(axes, "x")
        logarithmic(axes, "y")
        return svg(figure, "roofline", title, _roofline_keys())


def drawn(row: KernelRow) -> bool:
    """Plain products of all units at a few sizes."""
    return row.m in SIZES_DRAWN and row.bound.ops is not None and (row.kernel in PLAIN or row.unit == "s8")


def _name_roof(axes: Axes, name: str, x: float, y: float, below: bool) -> None:
    """FP8's name goes below its roof, which may be INT8's as well."""
    place = {"xytext": (0, -2), "va": "top"} if below else {"xytext": (0, 2), "va": "bottom"}
    axes.annotate(name, (x, y), **place, textcoords="offset points", ha="right", fontsize=7)


def _roofline_keys() -> list[Line2D]:
    keys = [Line2D([], [], color=PAINT[unit], linewidth=4, label=name) for unit, name in UNITS.items()]
    keys += [Line2D([], [], color=INK, linestyle="", marker=mark, label=name) for name, mark in SHAPES.items()]
    return keys + [
        Line2D([], [], color=INK, linestyle="", marker="o", markersize=size, label=f"M = {m}")
        for m, size in SIZES_DRAWN.items()
    ]


def bits(kernels: Kernels, m: int = 16384) -> str:
    """Time of XL's plain products at each activation width, beside the libraries."""
    title = f"Product time by activation bits, XL, M = {m}"
    places = {name: i for i, name in enumerate(("A1", "A2", "A3", "A4", "FP8", "bf16"))}
    with plt.style.context(STYLE):
        figure, axes = plt.subplots()
        for colour, (shape, mark) in zip(PALETTE, SHAPES.items(), strict=False):
            found = products(kernels, "XL", shape, m)
            own = {places[label]: found[name].us for name, label in PLAIN.items() if name in found}
            for part in ([x for x in own if x < 4], [x for x in own if x >= 4]):
                part.sort()
                axes.plot(part, [own[x] for x in part], "-" if part and part[0] < 4 else ":", marker=mark, color=colour)
        axes.set_xticks(list(places.values()), list(places))
        axes.set_ylim(bottom=0)
        axes.set(ylabel="µs", title=title)
        keys = [
            Line2D([], [], color=colour, marker=mark, label=shape)
            for colour, (shape, mark) in zip(PALETTE, SHAPES.items(), strict=False)
        ]
        return svg(figure, "engine-bits", title, keys)


def latency(table: ForwardTable) -> str:
    """Median milliseconds of a forward pass of XL against the batch, one line a method."""
    title = f"Forward pass of DiT-{MODEL} by batch"
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in table.rows:
        if row.model == MODEL and row.times:
            lines.setdefault(row.method, []).append((row.batch, row.times.median_ms))
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(figsize=(5.6, 4.4))
        for i, (method, points) in enumerate(lines.items()):
            own = method.startswith("W1.58")
            axes.plot(
                *zip(*sorted(points), strict=True),
                "-" if own else "--",
                marker="o" if own else "s",
                markersize=5,
                color=PALETTE[i % len(PALETTE)],
                label=method,
            )
        axes.set(xlabel="images of one pass", ylabel="ms", title=title)
        logarithmic(axes, "x")
        batches = sorted({batch for points in lines.values() for batch, _ in points})
        axes.set_xticks(batches, [str(batch) for batch in batches])
        logarithmic(axes, "y")
        return svg(figure, "engine-latency", title, axes.get_legend_handles_labels()[0])
