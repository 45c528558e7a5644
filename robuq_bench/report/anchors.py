"""Published scores of the full-precision model beside ours: is the protocol right, before anything is trained?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from robuq_bench.config.external import Anchor
from robuq_bench.metrics.extractors import label
from robuq_bench.report.records import Scores

OURS = {"FID": "FD", "sFID": "sFD", "IS": "IS", "precision": "precision", "recall": "recall"}
"""A published score -> the record's name."""
PASSES, FAILS, SHOWN, APART = "passes", "fails", "not judged", "not comparable"


@dataclass(frozen=True)
class Verdict:
    """One score of one anchor. ours: None where the protocols differ; reason: why it is not comparable."""

    anchor: Anchor
    score: str
    published: float
    tolerance: float | None
    ours: float | None
    verdict: str
    reason: str = ""


def judge(anchors: Sequence[Anchor], scores: Scores, protocol: dict[str, Any]) -> list[Verdict]:
    """Every score of every anchor against `scores` of the full-precision model, drawn by `protocol`.

    They are comparable at the same number of images, steps and guidance, on the features of the published Inception.
    """
    found = []
    for anchor in anchors:
        reason = _apart(anchor, scores, protocol)
        for name, published in anchor.scores.items():
            tolerance = anchor.tolerance.get(name)
            ours = None if reason else getattr(scores, OURS[name])
            verdict = APART if reason else SHOWN
            if ours is not None and tolerance is not None:
                verdict = PASSES if abs(ours - published) <= tolerance else FAILS
            found.append(Verdict(anchor, name, published, tolerance, ours, verdict, reason))
    return found


def _apart(anchor: Anchor, scores: Scores, protocol: dict[str, Any]) -> str:
    """What differs between the anchor's protocol and ours; empty when nothing does."""
    if label("FD", scores.extractor) != "FID":
        return f"features of {scores.extractor}, not of the published Inception"
    pairs = {
        "images": (scores.n, anchor.n),
        "steps": (protocol.get("steps"), anchor.steps),
        "guidance": (protocol.get("guidance"), anchor.guidance),
    }
    return ", ".join(f"{ours} {name} here, {theirs} there" for name, (ours, theirs) in pairs.items() if ours != theirs)


def outcome(verdicts: Sequence[Verdict]) -> tuple[str, str]:
    """("passes" | "fails" | "not comparable", one sentence)."""
    judged = [v for v in verdicts if v.verdict in (PASSES, FAILS)]
    failed = [f"{v.score} {v.ours:.4g} against {v.published:g} ± {v.tolerance:g}" for v in judged if v.verdict == FAILS]
    if failed:
        return FAILS, f"The full-precision model misses published scores ({'; '.join(failed)}): is the protocol right?"
    if judged:
        return PASSES, f"The full-precision model has the published scores ({len(judged)} compared)."
    reasons = "; ".join(dict.fromkeys(v.reason for v in verdicts if v.reason))
    return APART, f"No published score is comparable: {reasons or 'none has a tolerance'}."
