"""What every figure shares: one style, colours, and byte-stable SVG text in the page's own ink (light or dark)."""

import html
import io
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

STYLE = Path(__file__).with_name("style.mplstyle")
INK = "#0a0b0c"  # becomes currentColor in the SVG
PALETTE = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999"),  # Okabe & Ito
    *("#aa4466", "#999933", "#44aa99"),  # P. Tol
)
MARKERS = {1.58: "o", 2: "^", 3: "s", 4: "D", 8: "v", 32: "*"}  # by weight bits
WIDE, MANY = 4, 20  # ratios of largest to smallest value from which an axis is logarithmic, and its ticks few


def log_if_wide(axes: Axes, which: str, values: Sequence[float]) -> None:
    """A logarithmic axis ("x" or "y") when `values` are positive and far apart."""
    if values and min(values) > 0 and max(values) / min(values) >= WIDE:
        logarithmic(axes, which)


def logarithmic(axes: Axes, which: str) -> None:
    """Plain numbers as ticks; call it when everything is drawn."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log"})
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if high / low < MANY else (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def svg(figure: Figure, name: str, title: str, handles: Sequence) -> str:
    """The figure as an <svg> element whose ids start with `name`; a legend below when there is much to tell apart."""
    if len(handles) > 1:
        figure.set_figheight(figure.get_figheight() + 0.19 * -(-len(handles) // 2))
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    plt.close(figure)
    text = re.sub(r"<metadata>.*?</metadata>", "", out.getvalue(), flags=re.DOTALL)
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)
