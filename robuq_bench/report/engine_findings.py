"""What the engine's measurements say: one headline, and each goal set against what was measured. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from robuq_bench.measure.engine_records import ForwardTable, KernelRow, Kernels
from robuq_bench.report.records import DASH

MODEL, OURS, RIVAL, FULL = "XL/2", "W1.58A2", "bf16 compiled", "fp32 eager"
LARGE, BIG_SHAPES = (4096, 16384), ("qkv", "fc1", "fc2")
PROPORTIONAL = 0.55  # A2 over A4 would be 0.5 if time were all bits


@dataclass(frozen=True)
class Goal:
    """A goal of the engine. measured: in words; verdict: "aim met", "bar met", "not met" or "not measured"."""

    what: str
    measured: str
    bar: str
    aim: str
    verdict: str

    @property
    def good(self) -> bool | None:
        return None if self.verdict == "not measured" else self.verdict != "not met"


def headline(table: ForwardTable) -> str:
    """One sentence from the numbers; a forward pass that was not measured is said to be missing."""
    ours = [row for row in table.rows if (row.model, row.method) == (MODEL, OURS) and row.times]
    if not ours:
        return f"No whole forward pass of {MODEL} was measured on this {table.hardware.name}."
    row = max((row for row in ours if row.batch <= 64), key=lambda row: row.batch, default=ours[0])
    parts = [
        f"{speed_text(ratio)} {name}"
        for name, method in (("compiled bf16", RIVAL), ("fp32", FULL))
        if (ratio := faster(table, row.batch, method)) is not None
    ]
    text = f"On one {table.hardware.name}, the deployed DiT-{MODEL} at {OURS} takes {row.times.median_ms:.3g} ms "
    text += f"for {row.batch} images" + (f": {' and '.join(parts)}" if parts else "")
    memory, small = memory_ratio(table, FULL), faster(table, 2, RIVAL)
    if small is not None:
        text += f"; at batch 2 it is {speed_text(small)} compiled bf16"
    if memory is not None:
        text += f" and takes {memory:.1f} times less memory than fp32"
    return text + "."


def speed_text(ratio: float) -> str:
    """ "2.10 times as fast as", or how much slower."""
    return f"{ratio:.2f} times as fast as" if ratio < 10 else f"{ratio:.1f} times as fast as"


def faster(table: ForwardTable, batch: int, method: str, ours: str = OURS, model: str = MODEL) -> float | None:
    """Median time of `method` over ours; None when one of them has no speed."""
    rows = table.row(model, method, batch), table.row(model, ours, batch)
    if not all(row and row.times for row in rows):
        return None
    return rows[0].times.median_ms / rows[1].times.median_ms


def memory_ratio(table: ForwardTable, method: str) -> float | None:
    """Peak memory of `method` over ours at batch 2."""
    rows = table.row(MODEL, method, 2), table.row(MODEL, OURS, 2)
    if not all(row and row.peak_bytes for row in rows):
        return None
    return rows[0].peak_bytes / rows[1].peak_bytes


def size_ratios(table: ForwardTable) -> tuple[float, float] | None:
    """fp32 bytes over the packed file's: of the tied model, and of diffusers' with an embedder in every block."""
    row = next((r for r in table.rows if (r.model, r.method) == (MODEL, OURS) and r.file_bytes), None)
    if row is None:
        return None
    counts = table.parameters[MODEL]
    return 4 * counts["tied"] / row.file_bytes, 4 * counts["untied"] / row.file_bytes


def products(kernels: Kernels, size: str, shape: str, m: int) -> dict[str, KernelRow]:
    """Kernel name -> row of one linear."""
    rows = (row for row in kernels.rows if row.kind == "product")
    return {row.kernel: row for row in rows if (row.size, row.shape, row.m) == (size, shape, m)}


def goals(kernels: Kernels, table: ForwardTable) -> Iterator[Goal]:
    """Every number that the engine was built to reach, met or not."""
    yield _products_goal(kernels)
    yield from _forward_goals(table)
    yield _bits_goal(kernels)
    memory = memory_ratio(table, FULL)
    yield _least("Peak GPU memory at batch 2 against fp32", "{:.1f}× less", memory, 9, 12)
    sizes = size_ratios(table)
    goal = _least("Packed file against fp32", "{:.1f}× smaller", sizes and sizes[0], 15.5, 17)
    if sizes:
        more = f" ({sizes[1]:.1f}× against diffusers' {table.parameters[MODEL]['untied'] / 1e6:.0f} M parameters)"
        goal = Goal(goal.what, goal.measured + more, goal.bar, goal.aim, goal.verdict)
    yield goal


def _products_goal(kernels: Kernels) -> Goal:
    found = [products(kernels, "XL", shape, m).get(OURS) for shape in BIG_SHAPES for m in LARGE]
    what = "Product at W1.58A2, M = 4096 and 16384, qkv, fc1 and fc2, against cuBLAS bf16"
    bar, aim = "≥ 2.0×", "≥ 3.0×, and ≥ 1.3× FP8"
    if not all(row and row.over_bf16 and row.over_fp8 for row in found):
        return Goal(what, DASH, bar, aim, "not measured")
    bf16, fp8 = [row.over_bf16 for row in found], [row.over_fp8 for row in found]
    measured = f"{min(bf16):.2f}–{max(bf16):.2f}× ({min(fp8):.2f}–{max(fp8):.2f}× FP8)"
    return Goal(what, measured, bar, aim, _verdict(min(bf16) >= 2, min(bf16) >= 3 and min(fp8) >= 1.3))


def _forward_goals(table: ForwardTable) -> Iterator[Goal]:
    for batch, method, name, bar, aim in (
        (64, RIVAL, "compiled bf16", 2.0, 2.7),
        (64, FULL, "fp32", 20, 30),
        (2, RIVAL, "compiled bf16", 2.0, 3.5),
    ):
        yield _least(f"Whole forward, batch {batch}, against {name}", "{:.2f}×", faster(table, batch, method), bar, aim)


def _bits_goal(kernels: Kernels) -> Goal:
    what = "Product time by bits, M = 16384: monotone, A2 over A4"
    bar, aim = "≤ 0.62", "proportional (0.50)"
    times = [bit_times(kernels, shape, 16384) for shape in BIG_SHAPES]
    if not all(times):
        return Goal(what, DASH, bar, aim, "not measured")
    shares = [four[1] / four[3] for four in times]
    monotone = all(list(four) == sorted(four) for four in times)
    listed = ", ".join(f"{shape} {share:.2f}" for shape, share in zip(BIG_SHAPES, shares, strict=True))
    listed += "" if monotone else "; not monotone"
    worst = max(shares) if monotone else float("inf")
    return Goal(what, listed, bar, aim, _verdict(worst <= 0.62, worst <= PROPORTIONAL))


def bit_times(kernels: Kernels, shape: str, m: int) -> tuple[float, ...]:
    """µs of A1 to A4 of a linear of XL; empty when one was not measured."""
    rows = products(kernels, "XL", shape, m)
    found = [rows.get(f"W1.58A{bits}") for bits in (1, 2, 3, 4)]
    return tuple(row.us for row in found) if all(found) else ()


def _least(what: str, form: str, value: float | None, bar: float, aim: float) -> Goal:
    words = f"≥ {bar:g}×", f"≥ {aim:g}×"
    if value is None:
        return Goal(what, DASH, *words, "not measured")
    return Goal(what, form.format(value), *words, _verdict(value >= bar, value >= aim))


def _verdict(bar: bool, aim: bool) -> str:
    return "aim met" if aim else "bar met" if bar else "not met"
