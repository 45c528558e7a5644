"""What was expected of settings before they were run, against what was found. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from robuq_bench.report.records import Ablation

NOISE = (
    "Found is 'same' where the difference from the reference is at most the half-width of the reference's own 95 % "
    "interval over seeds, and not told where the reference has one seed."
)


@dataclass(frozen=True)
class Expectation:
    """One setting. expected, found: "better", "same" or "worse", "" where it is not told; because: why it was expected;
    outcome: the numbers, or how it ended."""

    setting: str
    expected: str
    because: str
    found: str
    outcome: str

    @property
    def right(self) -> bool | None:
        return self.expected == self.found if self.found else None


def expectations(ablations: Iterable[Ablation]) -> Iterator[tuple[Ablation, list[Expectation]]]:
    """Each ablation that expected something, with its settings."""
    for ablation in ablations:
        found = [_expectation(ablation, row) for row in ablation.rows if row.get("expected")]
        if found:
            yield ablation, found


def _expectation(ablation: Ablation, row: dict) -> Expectation:
    reference = next(other for other in ablation.rows if other["variant"] == row["variant"])
    expected, _, because = row["expected"].partition(", ")
    gap = row["difference"]
    if gap is None:
        return Expectation(row["setting"], expected, because, "", str(row["status"]))
    columns = [column.key for column in ablation.columns if column.key.startswith("FD-")]
    gaps = [gap, *(row[key] - reference[key] for key in columns if None not in (row[key], reference[key]))]
    return Expectation(row["setting"], expected, because, _found(gap, reference["FD_half_width"]), _numbers(gaps))


def _found(gap: float, noise: float | None) -> str:
    if noise is None:
        return ""
    return "same" if abs(gap) <= noise else "better" if gap < 0 else "worse"


def _numbers(gaps: Sequence[float]) -> str:
    return "FD " + ", ".join(f"{gap:+.1f}" for gap in gaps)
