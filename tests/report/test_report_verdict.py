"""Verdicts on constructed rows: one for each way a claim can come out, and the arithmetic of contrasts by hand."""

import pytest
from scipy import stats

from robuq_bench.allocate.ablations import study_rows
from robuq_bench.config.ablation import load_ablations
from robuq_bench.config.preset import load_preset
from robuq_bench.config.recipe import full_rows, load_variant
from robuq_bench.report.claims import Claim, Contrast, closing, load_claims
from robuq_bench.report.rows import Row
from robuq_bench.report.verdict import contrast_values, judge, normality, stability

ONE, OTHER = "one/W1.58A2", "other/W1.58A2"
BOTH = ("Lite0", "Lite2")


def rows(*given: Row) -> dict[str, Row]:
    return {row.key: row for row in given}


BETTER = Contrast(text="one is better", gap=(OTHER, ONE), paper=("", "none"))
CLAIM = Claim(name="c", text="C", contrasts=(BETTER,))


@pytest.mark.parametrize(
    ("other", "second", "judgement", "reason"),
    [
        ((20.0, 21.1, 22.2), None, "holds", ""),
        ((5.0, 6.1, 7.2), None, "does not hold", ""),
        ((10.0, 25.0, 9.0), None, "undecided", "not beyond chance"),
        ((20.0, 21.1, 22.2), (5.0, 6.1, 7.2), "undecided", "the extractors disagree"),
        ((20.0, 21.1, 22.2), (10.0, 25.0, 9.0), "undecided", "not beyond chance under every extractor"),
    ],
)
def test_a_contrast_is_judged_under_both_extractors(scored, other, second, judgement, reason):
    """`one` scores 10, 11, 12; gaps of 10, 10.1, 10.2 and -5, -4.9, -4.8 are beyond chance."""
    found = judge(CLAIM, rows(scored(ONE, 10.0, 11.0, 12.0), scored(OTHER, *other, second=second)), BOTH)
    assert (found.judgement, found.findings[0].reason) == (judgement, reason)
    assert [one.extractor for one in found.findings[0].measured] == list(BOTH)


def test_one_seed_is_undecided_however_large_the_gap(scored):
    found = judge(CLAIM, rows(scored(ONE, 1.0), scored(OTHER, 1000.0)), BOTH)
    assert (found.judgement, found.findings[0].reason) == ("undecided", "one seed: not tested")
    assert found.findings[0].measured[0].difference.mean == 999


def test_a_missing_row_is_named(scored):
    found = judge(CLAIM, rows(scored(ONE, 1.0, 2.0, 3.0)), BOTH)
    assert (found.judgement, found.findings[0].missing) == ("not measured", (OTHER,))


@pytest.mark.parametrize(
    ("lost", "judgement"), [((False, True), "holds"), ((True, False), "does not hold"), ((True, True), "undecided")]
)
def test_a_row_that_diverged_is_worse_than_one_that_did_not(scored, lost, judgement):
    pair = (scored(key, 1.0, diverged=diverged) for key, diverged in zip((ONE, OTHER), lost, strict=True))
    found = judge(CLAIM, rows(*pair), BOTH)
    assert found.judgement == judgement and "diverged" in found.findings[0].reason


def test_an_extractor_without_scores_leaves_it_undecided(scored):
    found = judge(CLAIM, rows(scored(ONE, 1.0, 2.0), scored(OTHER, 3.0, 4.1)), ("Lite0", "Inception"))
    assert found.judgement == "undecided" and "some extractor" in found.findings[0].reason


def test_seeds_are_paired(scored):
    """Gaps of 1 under a spread of 10 between seeds hold; the same scores with seeds mixed up do not."""
    found = judge(CLAIM, rows(scored(ONE, 0.0, 10.0, 20.0), scored(OTHER, 1.0, 11.1, 20.9)), BOTH)
    mixed = judge(CLAIM, rows(scored(ONE, 0.0, 10.0, 20.0), scored(OTHER, 11.1, 20.9, 1.0)), BOTH)
    assert (found.judgement, mixed.judgement) == ("holds", "undecided")


def test_a_difference_of_gaps_by_hand(scored):
    """(30 - 12) - (12 - 7) = 13: the row in both gaps counts twice."""
    contrast = Contrast(text="", gap=("a/W1.58A2", "b/W1.58A4"), minus=("b/W1.58A4", "c/W4A4"), paper=("", "none"))
    given = rows(scored("a/W1.58A2", 30.0), scored("b/W1.58A4", 12.0), scored("c/W4A4", 7.0))
    assert contrast.terms == ((1, "a/W1.58A2"), (-2, "b/W1.58A4"), (1, "c/W4A4"))
    assert contrast_values(contrast, given, "Lite0") == {0: 13.0}


def test_values_are_of_the_seeds_that_all_rows_have(scored):
    given = rows(scored(ONE, 1.0, 2.0, 3.0), scored(OTHER, 5.0, 7.0))
    assert contrast_values(BETTER, given, "Lite0") == {0: 4.0, 1: 5.0}


def test_contrasts_of_a_claim_are_corrected_together(scored):
    """Both p-values are below 0.05 alone; Holm doubles the smaller one."""
    claim = Claim(
        name="c", text="C", contrasts=(BETTER, Contrast(text="", gap=("third/W1.58A2", ONE), paper=("", "none")))
    )
    gaps = {OTHER: (1.0, 1.3, 1.6), "third/W1.58A2": (1.0, 1.1, 1.2)}
    found = judge(
        claim, rows(scored(ONE, 0.0, 0.0, 0.0), *(scored(key, *gap) for key, gap in gaps.items())), ("Lite0",)
    )
    plain = [stats.ttest_1samp(gap, 0).pvalue for gap in gaps.values()]
    assert [f.measured[0].p for f in found.findings] == pytest.approx([max(plain[0], 2 * plain[1]), 2 * plain[1]])


@pytest.mark.parametrize(
    ("second", "judgement"),
    [
        ((20.0, 21.1, 22.2), "holds"),
        ((9.0, 25.0, 10.0), "undecided"),
        ((5.0, 6.1, 7.2), "does not hold"),
        (None, "not measured"),
    ],
)
def test_all_contrasts_have_to_hold(scored, second, judgement):
    claim = Claim(
        name="c", text="C", contrasts=(BETTER, Contrast(text="", gap=("third/W1.58A2", ONE), paper=("", "none")))
    )
    given = [scored(ONE, 10.0, 11.0, 12.0), scored(OTHER, 20.0, 21.1, 22.2)]
    given += [scored("third/W1.58A2", *second)] if second else []
    assert judge(claim, rows(*given), BOTH).judgement == judgement


def test_what_fails_settles_it_whatever_is_missing(scored):
    claim = Claim(
        name="c", text="C", contrasts=(BETTER, Contrast(text="", gap=("third/W1.58A2", ONE), paper=("", "none")))
    )
    assert (
        judge(claim, rows(scored(ONE, 10.0, 11.0, 12.0), scored(OTHER, 5.0, 6.1, 7.2)), BOTH).judgement
        == "does not hold"
    )


# Claims that are judged otherwise


@pytest.mark.parametrize(
    ("values", "judgement"),
    [((100.0, 104.0, 109.0), "holds"), ((100.0, 104.0, 115.0), "does not hold"), ((100.0, 104.0), "undecided")],
)
def test_stability_is_the_range_over_seeds(scored, values, judgement):
    assert stability(rows(scored(ONE, *values)), BOTH, ONE).judgement == judgement


def test_stability_of_what_diverged_is_missing_or_split(scored):
    assert stability(rows(scored(ONE, 1.0, 1.0, 1.0, diverged=True)), BOTH, ONE).judgement == "does not hold"
    assert stability({}, BOTH, ONE).findings[0].missing == (ONE,)
    split = scored(ONE, 100.0, 104.0, 109.0, second=(1.0, 2.0, 3.0))
    assert stability(rows(split), BOTH, ONE).judgement == "undecided"


@pytest.mark.parametrize(
    ("answer", "judgement"),
    [("holds", "holds"), ("holds in part", "undecided"), ("does not hold", "does not hold"), (None, "not measured")],
)
def test_normality_is_the_inspection_s_verdict(answer, judgement):
    assert normality(answer, "h").judgement == judgement


def test_closing_compares_the_fewest_and_the_most_shared_steps():
    plan = [(recipe, n, f"{recipe}{n}/W1.58A4") for recipe in ("plain_qat", "robuq") for n in (250, 1000, 3000)]
    claim = closing([*plan, ("plain_qat", 9000, "plain_qat9000/W1.58A4"), ("baseline", 250, "b/W1.58A4")])
    (contrast,) = claim.contrasts
    assert contrast.gap == ("plain_qat250/W1.58A4", "robuq250/W1.58A4")
    assert contrast.minus == ("plain_qat3000/W1.58A4", "robuq3000/W1.58A4")


def test_closing_without_two_budgets_says_what_it_lacks():
    claim = closing([("plain_qat", 1000, "plain_qat/W1.58A4"), ("robuq", 1000, "robuq/W1.58A4")])
    found = judge(claim, {}, BOTH)
    assert found.judgement == "not measured" and "plain_qat at few steps" in found.findings[0].missing


# The claims themselves


def test_rows_of_every_claim_can_be_run_and_its_source_is_listed(in_root):
    claims = load_claims()
    for claim in claims.claims:
        for contrast in claim.contrasts:
            assert contrast.paper[1] in claims.sources
            for _, key in contrast.terms:
                load_variant(*key.rsplit("/", 1))


def test_the_preset_of_the_study_has_the_rows_of_every_claim(in_root):
    preset = load_preset("gpu")
    wanted = {key for claim in load_claims().claims for contrast in claim.contrasts for _, key in contrast.terms}
    assert wanted <= set(study_rows(preset, load_ablations(), full_rows()))
    assert all({*preset.seeds} <= {*preset.seeds_of(key)} for key in wanted), "a contrast of one seed is never decided"
