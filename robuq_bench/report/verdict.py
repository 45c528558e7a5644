"""Whether the paper's claims hold here: the rule of robuq_bench.report.claims, applied to rows. Pure."""

from collections.abc import Mapping, Sequence
from typing import Literal

from robuq_bench.config.base import Model
from robuq_bench.report.claims import Claim, Contrast
from robuq_bench.report.comparison import LEVEL, METRIC, Difference, holm, paired
from robuq_bench.report.rows import Row

Judgement = Literal["holds", "does not hold", "undecided", "not measured"]
STABLE = 0.1  # of the mean: how far apart the seeds of a stable row lie at most
ENOUGH = 3  # seeds that a row needs to be called stable


class Measured(Model):
    """A contrast under one extractor, over `seeds`. p: after Holm's correction, null where nothing could be tested."""

    extractor: str
    difference: Difference
    p: float | None
    seeds: tuple[int, ...]

    @property
    def sign(self) -> int:
        """1 and -1: positive and negative beyond chance; 0: neither."""
        if self.p is None or self.p >= LEVEL:
            return 0
        return 1 if self.difference.mean > 0 else -1


class Finding(Model):
    """What was found of one contrast. paper: its numbers and their source; missing: rows that there are none of;
    reason: what decided, besides numbers."""

    text: str
    paper: tuple[str, str]
    judgement: Judgement
    measured: tuple[Measured, ...] = ()
    missing: tuple[str, ...] = ()
    reason: str = ""


class Verdict(Model):
    """A claim, what was found, and whether it holds here."""

    name: str
    text: str
    findings: tuple[Finding, ...]
    judgement: Judgement


def judge(claim: Claim, rows: Mapping[str, Row], extractors: Sequence[str]) -> Verdict:
    """The verdict on a claim; `rows` by key."""
    measured = _measured(claim, rows, extractors)
    findings = tuple(
        _finding(contrast, rows, measured[i], len(extractors)) for i, contrast in enumerate(claim.contrasts)
    )
    return Verdict(name=claim.name, text=claim.text, findings=findings, judgement=together(findings))


def together(findings: Sequence[Finding]) -> Judgement:
    """All contrasts of a claim have to hold; one that fails settles it, whatever is missing."""
    given = {finding.judgement for finding in findings}
    for judgement in ("does not hold", "not measured", "undecided"):
        if judgement in given:
            return judgement
    return "holds"


def scores(row: Row, extractor: str, metric: str = METRIC) -> dict[int, float]:
    """Seed -> score of the row under an extractor; empty when it diverged or was not scored with it."""
    if row.status != "ok":
        return {}
    found = {(run.seed, s.extractor): getattr(s, metric) for run in row.runs for s in (run.scores, *run.also) if s}
    return {seed: value for (seed, name), value in found.items() if name == extractor}


def _measured(claim: Claim, rows: Mapping[str, Row], extractors: Sequence[str]) -> list[list[Measured]]:
    """Contrast by contrast: one entry for each extractor under which all its rows were scored."""
    found: list[list[Measured]] = [[] for _ in claim.contrasts]
    for extractor in extractors:
        values = [contrast_values(contrast, rows, extractor) for contrast in claim.contrasts]
        gaps = [paired([*value.values()], [0.0] * len(value)) if value else None for value in values]
        corrected = holm([gap and gap.p for gap in gaps])
        for place, gap in enumerate(gaps):
            if gap:
                seeds, p = tuple(values[place]), corrected[place]
                found[place].append(Measured(extractor=extractor, difference=gap, p=p, seeds=seeds))
    return found


def contrast_values(contrast: Contrast, rows: Mapping[str, Row], extractor: str) -> dict[int, float]:
    """Seed -> the contrast, over the seeds that all its rows have; empty when a row is missing or diverged."""
    parts = [(weight, scores(rows[key], extractor) if key in rows else {}) for weight, key in contrast.terms]
    shared = sorted(set.intersection(*(set(values) for _, values in parts)))
    return {seed: sum(weight * values[seed] for weight, values in parts) for seed in shared}


def _finding(contrast: Contrast, rows: Mapping[str, Row], measured: Sequence[Measured], extractors: int) -> Finding:
    def finding(judgement: Judgement, **more) -> Finding:
        given = {"text": contrast.text, "paper": contrast.paper, "measured": tuple(measured)}
        return Finding(judgement=judgement, **given | more)

    if missing := tuple(dict.fromkeys(key for _, key in contrast.terms if key not in rows)):
        return finding("not measured", missing=missing)
    lost = {key: weight for weight, key in contrast.terms if rows[key].status != "ok"}
    if lost:
        verdict = "holds" if min(lost.values()) > 0 else "does not hold" if max(lost.values()) < 0 else "undecided"
        return finding(verdict, measured=(), reason=f"diverged: {', '.join(lost)}")
    if len(measured) < extractors:
        return finding("undecided", reason="its rows share no training seed under some extractor")
    signs = {one.sign for one in measured}
    if signs == {1}:
        return finding("holds")
    return finding("does not hold" if signs == {-1} else "undecided", reason=_doubt(measured, signs))


def _doubt(measured: Sequence[Measured], signs: set[int]) -> str:
    if signs == {-1}:
        return ""
    if all(one.p is None for one in measured):
        return "one seed: not tested"
    if signs >= {-1, 1}:
        return "the extractors disagree"
    return "not beyond chance" + (" under every extractor" if len(signs) > 1 else "")


def stability(rows: Mapping[str, Row], extractors: Sequence[str], key: str = "robuq/W1.58A2") -> Verdict:
    """Is two-bit training stable? No seed diverges, and the seeds' scores lie close together."""
    text = f"no seed diverges, and over {ENOUGH} or more seeds scores differ by at most {STABLE:.0%} of their mean"
    paper = ("stable image generation at an average of 2 bits, without collapse; no number", "abstract")

    def verdict(judgement: Judgement, reason: str, **more) -> Verdict:
        finding = Finding(text=text, paper=paper, judgement=judgement, reason=reason, **more)
        return Verdict(name="stable", text="RobuQ is stable at A2", findings=(finding,), judgement=judgement)

    if key not in rows:
        return verdict("not measured", "", missing=(key,))
    row = rows[key]
    if row.status != "ok":
        return verdict("does not hold", row.reason)
    spreads = {name: values for name in extractors if (values := [*scores(row, name).values()])}
    shown = "; ".join(f"{name}: {len(v)} seeds, range {_spread(v):.1%} of the mean" for name, v in spreads.items())
    if min((len(values) for values in spreads.values()), default=0) < ENOUGH:
        return verdict("undecided", f"too few seeds; {shown}")
    steady = [_spread(values) <= STABLE for values in spreads.values()]
    return verdict("holds" if all(steady) else "undecided" if any(steady) else "does not hold", shown)


def _spread(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / (sum(values) / len(values))


def normality(answer: str | None, headline: str) -> Verdict:
    """The verdict of an inspection (`measure.inspect_verdict`): its answer and headline; None: there is none."""
    judgement = {"holds": "holds", "holds in part": "undecided", "does not hold": "does not hold", None: "not measured"}
    finding = Finding(
        text="after rotation every layer loses at most 1.1 times what a 2-bit grid must lose on normal tokens",
        paper=("claimed for all quantised linears; no number known", "third-party notes"),
        judgement=judgement[answer],
        reason=headline,
        missing=() if answer else ("inspect",),
    )
    text = "Hadamard rotation makes the tokens of each layer normal"
    return Verdict(name="normal", text=text, findings=(finding,), judgement=finding.judgement)
