"""The engine's page as text: goals, whole forward passes, kernels against their bounds, hardware, provenance."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from robuq_bench.measure.engine_plan import ORDER
from robuq_bench.measure.engine_records import Forward, ForwardTable, Hardware, KernelRow, Kernels
from robuq_bench.report import engine_plots as plots
from robuq_bench.report import facts
from robuq_bench.report.engine_findings import FULL, RIVAL, faster, goals, headline
from robuq_bench.report.page import template
from robuq_bench.report.records import DASH

MIB = 1 << 20
EPILOGUES = ("", " gelu", " gate")


@dataclass(frozen=True)
class Line:
    """A line of a table of kernels: what it is, then its cells; `group` starts a new group of lines."""

    shape: str
    m: int
    cells: tuple[str, ...]
    group: bool


def render(kernels: Kernels, table: ForwardTable) -> str:
    """The page; the same records give the same bytes."""
    sizes = list(dict.fromkeys(row.size for row in kernels.rows))
    return template("engine.html.j2").render(
        title="The engine: W1.58A1 to A4 on a GPU",
        headline=headline(table),
        goals=list(goals(kernels, table)),
        forwards=[(model, list(rows)) for model, rows in groupby(forwards(table), key=lambda row: row["model"])],
        notes=list(forward_notes(table)),
        table=table,
        products=[(size, list(product_lines(kernels, size))) for size in sorted(sizes, key=lambda s: s != "XL")],
        product_columns=PRODUCT_COLUMNS,
        modulations=list(modulation_lines(kernels)),
        modulation_columns=MODULATION_COLUMNS,
        row_wise=[(size, list(row_wise_lines(kernels, size))) for size in sorted(sizes, key=lambda s: s != "XL")],
        row_wise_columns=ROW_WISE_COLUMNS,
        figures=[Markup(figure) for figure in (plots.latency(table), plots.bits(kernels), plots.roofline(kernels))],
        rates=kernels.rates,
        hardware=list(hardware_facts(kernels.rates.hardware)),
        missing=missing(kernels, table),
        environment=facts.environment([table.provenance, kernels.provenance, kernels.rates.provenance]),
        commands=[record["command"] for record in (kernels.rates.provenance, kernels.provenance, table.provenance)],
        protocols=[kernels.provenance["protocol"], table.provenance["protocol"]],
    )


def forwards(table: ForwardTable) -> Iterator[dict[str, str]]:
    """Rows of the forward table as text, the models and batches together."""
    order = {model: i for i, model in enumerate(table.parameters)}
    for row in sorted(table.rows, key=lambda row: (-order.get(row.model, 0), row.batch, row.method[0] != "W")):
        yield {
            "model": row.model,
            "batch": str(row.batch),
            "method": row.method,
            "own": row.method.startswith("W1.58"),
            "bits": f"{row.average_bits:.2f} bits on average" if row.average_bits else "",
            "status": row.status,
            "reason": row.reason,
            **_speed(row, table),
            "error": f"{row.check.error:.1e}" if row.check else DASH,
            "bound": f"{row.check.bound:g}" if row.check else "",
            "resident": _mib(row.resident_bytes),
            "peak": _mib(row.peak_bytes),
            "file": DASH if row.file_bytes is None else f"{row.file_bytes / 1e6:.1f}",
            "setup": ", ".join(f"{name} {seconds:.1f} s" for name, seconds in row.setup.items()),
        }


def forward_notes(table: ForwardTable) -> Iterator[str]:
    """What the rows' notes say, each once, all deployed rows together."""
    seen: dict[str, dict[str, None]] = {}
    for row in table.rows:
        for note in row.notes:
            seen.setdefault(note, {})["W1.58" if row.method.startswith("W1.58") else row.method] = None
    for note, methods in seen.items():
        yield f"{', '.join(methods)}: {note}."


def _speed(row: Forward, table: ForwardTable) -> dict[str, str]:
    times = row.times
    over = {
        name: faster(table, row.batch, method, row.method, row.model) if times else None
        for name, method in (("over_bf16", RIVAL), ("over_full", FULL))
    }
    return {
        "ms": f"{times.median_ms:.3g}" if times else DASH,
        "spread": f"{times.p20_ms:.3g}–{times.p80_ms:.3g}" if times else "",
        "least": f"{times.min_ms:.3g}" if times else DASH,
        **{name: DASH if ratio is None else f"{ratio:.2f}" for name, ratio in over.items()},
    }


def _mib(count: int | None) -> str:
    return DASH if count is None else f"{count / MIB:,.0f}"


PRODUCT_COLUMNS = (
    *("bf16", "FP8", "INT8", "A2 on INT8", "A1", "A2", "A3", "A4", "A2 fused", "A2 over bf16", "A2 over FP8"),
    *("bound of A2", "binds", "share of bound"),
)


def product_lines(kernels: Kernels, size: str) -> Iterator[Line]:
    """One line for each linear and M."""
    rows = [row for row in kernels.rows if row.kind == "product" and row.size == size]
    for (shape, m), found, group in _grouped(rows):
        ours = found.get("W1.58A2")
        fused = next((found[name] for end in EPILOGUES[1:] if (name := f"W1.58A2{end}") in found), None)
        libraries = ("torch.mm bf16", "torch._scaled_mm fp8", "torch._int_mm int8", "INT8 A2")
        plain = [found.get(name) for name in (*libraries, *(f"W1.58A{bits}" for bits in (1, 2, 3, 4)))]
        ratios = [ours and ours.over_bf16, ours and ours.over_fp8]
        bound = (f"{ours.bound.us:.1f}", ours.bound.by, f"{ours.share:.0%}") if ours else (DASH,) * 3
        cells = [_us(row) for row in (*plain, fused)] + [DASH if r is None else f"{r:.2f}" for r in ratios]
        yield Line(shape, m, (*cells, *bound), group)


ROW_WISE_COLUMNS = ("copy", "A1", "A2", "A3", "A4", "A2 without branch", "bound of A2", "share", "TB/s")


def row_wise_lines(kernels: Kernels, size: str) -> Iterator[Line]:
    """One line for each use of the row-wise kernel and M, with the low-rank branch unless tokens come with theirs."""
    rows = [row for row in kernels.rows if row.kind == "row-wise" and row.size == size]
    for (shape, m), found, group in _grouped(rows):
        bare = [found.get(f"row-wise A{bits}") for bits in (1, 2, 3, 4)]
        used = [found.get(f"row-wise A{bits} and rank 16", row) for bits, row in enumerate(bare, start=1)]
        ours = used[1]
        last = (f"{ours.bound.us:.1f}", f"{ours.share:.0%}", f"{ours.bound.bytes / ours.us / 1e6:.2f}") if ours else ()
        cells = (_us(row) for row in (found.get("copy"), *used, bare[1]))
        yield Line(shape, m, (*cells, *(last or (DASH,) * 3)), group)


MODULATION_COLUMNS = ("bf16", "A4", "over bf16", "bound", "binds", "share", "TB/s")


def modulation_lines(kernels: Kernels) -> Iterator[Line]:
    """One line for each batch of all adaLN linears at once."""
    for (shape, m), found, group in _grouped(row for row in kernels.rows if row.kind == "adaln"):
        ours, library = found["W1.58A4"], found.get("torch.mm bf16")
        ratio = DASH if ours.over_bf16 is None else f"{ours.over_bf16:.2f}"
        bound = (f"{ours.bound.us:.1f}", ours.bound.by, f"{ours.share:.0%}", f"{ours.bound.bytes / ours.us / 1e6:.2f}")
        yield Line(shape, m, (_us(library), _us(ours), ratio, *bound), group)


def _grouped(rows: Iterable[KernelRow]) -> Iterator[tuple[tuple[str, int], dict[str, KernelRow], bool]]:
    """((shape, m), kernel name -> row, whether the shape is a new one)."""
    found: dict[tuple[str, int], dict[str, KernelRow]] = {}
    for row in rows:
        found.setdefault((row.shape, row.m), {})[row.kernel] = row
    shapes = list(dict.fromkeys(shape for shape, _ in found))
    before = None
    for key in sorted(found, key=lambda key: (shapes.index(key[0]), key[1])):
        yield key, found[key], key[0] != before
        before = key[0]


def _us(row: KernelRow | None) -> str:
    return DASH if row is None else f"{row.us:.1f}"


def hardware_facts(hardware: Hardware) -> Iterator[tuple[str, str]]:
    yield "GPU", f"{hardware.name}, sm_{hardware.capability.replace('.', '')}"
    yield "Multiprocessors", str(hardware.multiprocessors)
    yield "Memory, L2", f"{hardware.memory_bytes / MIB / 1024:.0f} GiB, {hardware.l2_bytes / MIB:.0f} MiB"
    clocks = (("SM at most", hardware.max_sm_clock_mhz), ("SM", hardware.sm_clock_mhz))
    known = [f"{name} {mhz:.0f} MHz" for name, mhz in (*clocks, ("memory", hardware.memory_clock_mhz)) if mhz]
    yield "Clocks, as read", ", ".join(known) or DASH
    yield "Power limit", DASH if hardware.power_limit_w is None else f"{hardware.power_limit_w:.0f} W"
    versions = (("driver", hardware.driver), ("CUDA", hardware.cuda), ("torch", hardware.torch))
    yield "Versions", ", ".join(f"{name} {text}" for name, text in (*versions, ("triton", hardware.triton)) if text)


def missing(kernels: Kernels, table: ForwardTable) -> list[tuple[str, str]]:
    """What has no number, and why."""
    rows = [
        (f"{row.method}, {row.model}, batch {row.batch}", f"{row.status}: {row.reason}")
        for row in table.rows
        if not row.times
    ]
    rows += [(item.what, item.reason) for item in kernels.missing]
    have = {row.key for row in table.rows}
    for model, method, batches in ORDER:
        if left := [str(batch) for batch in batches if (model, method, batch) not in have]:
            rows.append((f"{method}, {model}, batch {', '.join(left)}", "not asked for in this run"))
    return rows + [(f"rate of {rate.instruction}", rate.reason) for rate in kernels.rates.rates if rate.reason]
