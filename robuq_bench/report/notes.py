"""The footnotes of the table: what its numbers are, and what they are not. Pure."""

from collections.abc import Iterable, Sequence

from robuq_bench.metrics.extractors import label
from robuq_bench.report.comparison import METRIC, explanation, p_text
from robuq_bench.report.records import Scores
from robuq_bench.report.rows import Row
from robuq_bench.report.table import Table

LABELS = {
    "simulated": "fake quantisation in floating point",
    "float32": "nothing quantised",
    "packed": "bytes of the stored file",
    "deployed": "by the deployed model: low-bit kernels on a GPU, exact integers on a CPU",
}


def notes(table: Table) -> Iterable[str]:
    """Footnotes, each a sentence or two."""
    floor, sampling = table.floor, table.sampling
    images = "no images" if table.n is None else f"N = {table.n} generated images a row, the same image seeds in all"
    reals = f"{floor.n_reference} real images" if floor.n_reference else "the moments of an ADM file"
    yield f"{images}; reference: {reals}."
    other = "" if floor.n == table.n else f" (another N than the rows', which shifts {table.name('FD')})"
    yield f"Floor: {floor.n} real held-out images{other} scored like generated ones: what a perfect model would reach."
    yield (
        f"Sampling: {sampling.get('scheduler')}, {sampling.get('steps')} steps, "
        f"classifier-free guidance {sampling.get('guidance')}."
    )
    yield _extractor_note(floor)
    yield _seed_note(table.rows)
    yield from _test_notes(table)
    yield "Labels: " + "; ".join(f"{name} = {meaning}" for name, meaning in LABELS.items()) + "."
    yield from _latency_notes(table.rows)
    yield f"Our rank: by mean {table.name('FD')} of the quantised rows that did not diverge."
    yield "Bold: best mean of a bit setting."
    for row in table.rows:
        if row.status == "diverged":
            yield f"{row.name} diverged: {row.reason}"
    deviations = {row.method: row.variant.method.deviates for row in table.rows if row.variant.method.deviates}
    yield from (f"{method} deviates from the common training: {text}" for method, text in deviations.items())


def _extractor_note(floor: Scores) -> str:
    text = f"Features: {floor.extractor} (SHA-256 {floor.digest[:8]}…)."
    published = label("FD", floor.extractor) == "FID"
    return text if published else f"{text} Not Inception: not FID, and not comparable with published numbers."


def _seed_note(rows: Sequence[Row]) -> str:
    most = max(rows, key=lambda row: len(row.runs))
    if len(most.runs) == 1:
        return "One seed: no interval, and no test of any difference."
    seeds = ", ".join(str(run.seed) for run in most.runs)
    once = " A row without ± was trained once." if any(len(row.runs) == 1 for row in rows) else ""
    return f"± is the half-width of Student's 95 % t interval over {len(most.runs)} training seeds ({seeds}).{once}"


def _test_notes(table: Table) -> Iterable[str]:
    """How differences were tested, and all of them by bit setting, the better method first."""
    tested = [comparison for comparison in table.comparisons if comparison.p is not None]
    if not tested:
        return
    yield explanation(table.name(METRIC), len(tested))
    rows, found = {row.key: row for row in table.rows}, {}
    for comparison in tested:
        better = comparison.one if comparison.difference.mean >= 0 else comparison.other
        own = comparison.seen_from(better)
        text = f"{rows[own.one].method} {table.gap(own)} ahead of {rows[own.other].method}, {p_text(own.p)}"
        found.setdefault(rows[own.one].variant.name, []).append(text)
    yield from (f"{variant}: {'; '.join(texts)}." for variant, texts in found.items())


def _latency_notes(rows: Sequence[Row]) -> Iterable[str]:
    timed = [run.latency for row in rows for run in row.runs if run.latency]
    if not timed:
        return
    devices, batches = (sorted({getattr(t, key) for t in timed}) for key in ("device", "batch"))
    yield (
        f"Latency: median of {timed[0].repeats} forward passes of {' or '.join(map(str, batches))} images "
        f"on {' and '.join(devices)}."
    )
    if len(devices) > 1 or len(batches) > 1:
        yield "Latencies are of several devices or batch sizes: do not compare them."
