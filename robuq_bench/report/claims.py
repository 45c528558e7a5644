"""What the paper claims, as contrasts between rows that can be tested: the data of claims.yaml, and the rule."""

from collections.abc import Iterable
from pathlib import Path

from robuq_bench.config.base import Model, build, read_yaml
from robuq_bench.report.comparison import LEVEL

CLAIMS = Path(__file__).with_name("claims.yaml")
RULE = (
    "Each claim is one or more contrasts of Fréchet distances (lower is better), each positive if the claim is right. "
    "A contrast is computed seed by seed over the training seeds that all its rows have, and tested by a two-sided "
    "t-test against 0, with Holm's correction over the contrasts of its claim. It holds when it is positive with "
    f"p < {LEVEL:g} under every extractor, does not hold when it is negative with such a p under every extractor, and "
    "is undecided otherwise: also when extractors disagree, and when there is one seed. A row that diverged is worse "
    "than one that did not. A claim holds when all its contrasts do, does not hold when one of them does not, is not "
    "measured when a row is missing, and is undecided otherwise. Two claims are judged otherwise, as they say."
)


class Contrast(Model):
    """score(gap[0]) - score(gap[1]), less the same of `minus`: positive if the claim is right.

    Rows are "recipe/variant". paper: its numbers, and a key of the sources.
    """

    text: str
    gap: tuple[str, str]
    minus: tuple[str, str] | None = None
    paper: tuple[str, str]

    @property
    def terms(self) -> tuple[tuple[int, str], ...]:
        """(weight, row); a row of weight 2 stands in both gaps."""
        weights: dict[str, int] = {}
        signed = zip((1, -1, -1, 1), (*self.gap, *(self.minus or ())), strict=False)
        for sign, row in signed:
            weights[row] = weights.get(row, 0) + sign
        return tuple((weight, row) for row, weight in weights.items())


class Claim(Model):
    """A claim of the paper, or of its follow-up; all `contrasts` have to hold."""

    name: str
    text: str
    contrasts: tuple[Contrast, ...]


class Claims(Model):
    """claims.yaml. sources: key -> where the paper's numbers are from, and how certain they are."""

    sources: dict[str, str]
    claims: tuple[Claim, ...]


def load_claims(path: Path = CLAIMS) -> Claims:
    return build(Claims, read_yaml(path), str(path))


def closing(budgets: Iterable[tuple[str, int, str]]) -> Claim:
    """The follow-up paper's claim: plain QAT closes the gap to RobuQ with training steps.

    budgets: (recipe without its budget, steps, "recipe/variant") of rows. At each variant the fewest and the most steps
    that both have are compared; where no variant has two, the rows that are missing are named.
    """
    found: dict[str, dict[str, dict[int, str]]] = {}
    for recipe, steps, row in budgets:
        found.setdefault(row.rpartition("/")[2], {}).setdefault(recipe, {})[steps] = row
    contrasts = []
    for variant, recipes in found.items():
        plain, robuq = recipes.get("plain_qat", {}), recipes.get("robuq", {})
        shared = sorted(plain.keys() & robuq.keys())
        if len(shared) > 1:
            first, last = shared[0], shared[-1]
            contrast = Contrast(
                text=f"at {variant} RobuQ's lead is larger after {first} steps than after {last}",
                gap=(plain[first], robuq[first]),
                minus=(plain[last], robuq[last]),
                paper=("FID 10.72 vs 8.20 after 20k steps (W4A4), 9.93 vs 7.76 after 100k (W1.58A4)", "follow_up"),
            )
            contrasts.append(contrast)
    missing = Contrast(
        text="RobuQ's lead is larger after few steps than after many",
        gap=("plain_qat at few steps", "robuq at few steps"),
        minus=("plain_qat at many steps", "robuq at many steps"),
        paper=("no gap left, in words", "follow_up"),
    )
    text = "Plain QAT closes the gap with training steps (follow-up paper)"
    return Claim(name="closing", text=text, contrasts=tuple(contrasts) or (missing,))
