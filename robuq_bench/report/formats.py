"""The table as text: CSV, Markdown and LaTeX. Pure, deterministic, and all from the same cells."""

import csv
import io
from collections.abc import Iterable, Sequence
from itertools import groupby

from robuq_bench.report.records import DASH
from robuq_bench.report.rows import Row
from robuq_bench.report.table import Cell, Column, Table

FLOOR = "Real held-out images (floor)"
TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "–": "--",
    "…": r"\ldots{}",
} | {character: "\\" + character for character in "&%$#_{}"}


def to_csv(table: Table) -> str:
    """One line a row, then the floor. A "±" column follows each one that has an interval anywhere."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    spread = [any(cells[i].spread for cells in table.cells) for i in range(len(table.columns))]
    writer.writerow(["method", "recipe", "variant", "W/A", *_csv_titles(table.columns, spread), *CSV_FACTS])
    for row, cells in zip(table.rows, table.cells, strict=True):
        numbers = _csv_cells(table.columns, cells, spread)
        writer.writerow([row.method, row.variant.recipe, row.variant.name, row.bits, *numbers, *_csv_facts(row)])
    numbers = _csv_cells(table.columns, table.floor_cells, spread)
    writer.writerow([FLOOR, "reference", "", "", *numbers, "", "", table.floor.n, "", "floor", ""])
    return out.getvalue()


CSV_FACTS = ("bytes", "latency label", "n", "seeds", "status", "reason")


def _csv_facts(row: Row) -> list:
    """What stands behind the figures of a CSV line, in the order of CSV_FACTS."""
    latency = row.figures.get("latency")
    scored = next((run.scores.n for run in row.runs if run.scores), "")
    seeds = " ".join(str(run.seed) for run in row.runs)
    sizes = " ".join(str(run.size) for run in row.runs if run.size is not None and row.figures)
    return [sizes, latency.label if latency else "", scored, seeds, row.status, row.reason]


def _csv_titles(columns: Sequence[Column], spread: Sequence[bool]) -> Iterable[str]:
    for column, interval in zip(columns, spread, strict=True):
        yield column.title + (f" ({column.label})" if column.label else "")
        if interval:
            yield f"{column.title} ±"


def _csv_cells(columns: Sequence[Column], cells: Sequence[Cell], spread: Sequence[bool]) -> Iterable[str]:
    for cell, interval in zip(cells, spread, strict=True):
        yield "" if cell.number == DASH else cell.number
        if interval:
            yield cell.spread


def to_markdown(table: Table) -> str:
    """A table with its notes below. Best figures of a bit setting are bold."""
    titles = ["Method", "W/A", *(_heading(column) for column in table.columns)]
    lines = [_md_line(titles), _md_line(["---", "---", *("---:" for _ in table.columns)])]
    for row, cells in zip(table.rows, table.cells, strict=True):
        texts = (f"**{cell.text}**" if cell.best else cell.text for cell in cells)
        lines.append(_md_line([_md(row.method), row.bits, *texts]))
    lines.append(_md_line([f"*{FLOOR}*", "–", *(cell.text for cell in table.floor_cells)]))
    return "\n".join([f"**{_md(table.title)}**", "", *lines, "", *(f"- {_md(note)}" for note in table.notes), ""])


def _heading(column: Column) -> str:
    return f"{column.title}{column.arrow}" + (f" ({column.label})" if column.label else "")


def _md_line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _md(text: str) -> str:
    """Text that no Markdown reader takes for a column, emphasis or HTML."""
    for character in "\\|*_<`":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def to_latex(table: Table) -> str:
    """A booktabs table as wide as the line, with the notes below; bit settings are set apart by rules."""
    columns = len(table.columns)
    body = []
    for _, group in groupby(zip(table.rows, table.cells, strict=True), key=lambda pair: pair[0].variant.name):
        body += [
            r"    \midrule",
            *(_tex_line([tex(row.method), row.bits, *map(_tex_cell, cells)]) for row, cells in group),
        ]
    floor = _tex_line([rf"\emph{{{FLOOR}}}", "--", *map(_tex_cell, table.floor_cells)])
    return "\n".join(
        [
            r"% needs \usepackage{booktabs} and \usepackage{graphicx}",
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{tex(table.title)}}}",
            r"  \resizebox{\linewidth}{!}{%",
            rf"  \begin{{tabular}}{{ll{'r' * columns}}}",
            r"    \toprule",
            _tex_line(["Method", "W/A", *(tex(column.title + column.arrow) for column in table.columns)]),
            _tex_line(["", "", *(tex(column.label) for column in table.columns)]),
            *body,
            r"    \midrule",
            floor,
            r"    \bottomrule",
            r"  \end{tabular}}",
            r"  \par\smallskip\footnotesize\raggedright",
            *(f"  {tex(note)}\\par" for note in table.notes),
            r"\end{table}",
            "",
        ]
    )


def tex(text: str) -> str:
    """`text` with everything escaped that LaTeX would take as a command."""
    return "".join(TEX.get(character, character) for character in text)


def _tex_cell(cell: Cell) -> str:
    return rf"\textbf{{{tex(cell.text)}}}" if cell.best else tex(cell.text)


def _tex_line(cells: Iterable[str]) -> str:
    return f"    {' & '.join(cells)} \\\\"
