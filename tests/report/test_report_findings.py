"""Sentences and verdicts follow the numbers, whoever is ahead."""

import pytest

from robuq_bench.config.base import build
from robuq_bench.files import read_json
from robuq_bench.report.findings import by_bits, headline, verdicts
from robuq_bench.report.table import Table


@pytest.fixture
def table(lab):
    """Makes the table of the lab and reads it back."""

    def make(*arguments: str) -> Table:
        assert lab.table(*arguments) == 0
        return build(Table, read_json("results/table.json"), "table.json")

    return make


def test_headline(table):
    assert headline(table()) == (
        "Alpha W1.58A2 is the best of 2 quantised rows: FD-Pixels 2.250 against 1.500 in full precision, "
        "where real images score 1.000."
    )


def test_headline_without_full_precision(table):
    found = headline(table("--rows", "beta/W1.58A2"))
    assert found.startswith("Beta W1.58A2 is the only quantised row: FD-Pixels 4.500, where")


def test_headline_when_one_came_through(lab, table):
    lab.run("alpha/W1.58A2", diverged="nan")
    assert headline(table()).startswith("Beta W1.58A2 is the only quantised row that did not diverge: FD-Pixels 4.500")


def test_headline_when_all_diverged(lab, table):
    for row in ("alpha/W1.58A2", "beta/W1.58A2"):
        lab.run(row, diverged="nan")
    assert headline(table()) == "No quantised row came through: every one diverged."


def test_leader_and_gap_at_one_seed(table):
    sentence, caution = by_bits(table())
    assert sentence == "W1.58A2: Alpha leads with FD-Pixels 2.250, 2.250 ahead of Beta (4.500). By KID Beta leads."
    assert caution.startswith("One training seed:")


@pytest.mark.parametrize(
    ("beta", "gap"),
    [  # gaps 3 and 3.02: p = 2 arctan(1 / 301) / pi; gaps 0.1 and 0.6: p = 2 arctan(0.25 / 0.35) / pi
        ([5.0, 5.12], "3.010 ± 0.127 ahead of Beta (5.060 ± 0.762; p = 0.0021)"),
        ([2.1, 2.7], "0.350 ± 3.177 ahead of Beta (2.400 ± 3.812; p = 0.39 and not beyond chance)"),
    ],
)
def test_gap_is_judged_by_the_test(lab, table, beta, gap):
    lab.preset(seeds=[0, 1])
    for seed in (0, 1):
        lab.run("alpha/W1.58A2", seed, FD=[2.0, 2.1][seed])
        lab.run("beta/W1.58A2", seed, FD=beta[seed])
    (sentence,) = by_bits(table())
    assert sentence.endswith(f", {gap}. KID agrees.")


def test_a_diverged_rival_is_named(lab, table):
    lab.run("beta/W1.58A2", diverged="nan")
    assert next(by_bits(table())) == "W1.58A2: Alpha alone came through, with FD-Pixels 2.250. Beta diverged."


def test_no_sentence_for_a_lone_row(lab, table):
    lab.run("alpha/W1.58A4")
    assert list(by_bits(table("--rows", "alpha/W1.58A4", "beta/W1.58A2"))) == []


@pytest.mark.parametrize(
    ("alpha", "beta", "expected"),
    [
        ({"FD": 3.0, "IS": 3.0}, {"FD": 4.0, "IS": 4.0}, "not tested: one seed"),
        ({"FD": 4.0}, {"FD": 3.0}, "not tested: one seed"),
        ({}, {"diverged": "nan"}, "holds"),
        ({"diverged": "nan"}, {}, "does not hold"),
        ({"diverged": "nan"}, {"diverged": "nan"}, "undecided: both diverged"),
    ],
)
def test_verdict_on_the_quoted_order(lab, table, alpha, beta, expected):
    lab.run("alpha/W1.58A2", **alpha)
    lab.run("beta/W1.58A2", **beta)
    (verdict,) = verdicts(table())
    assert (verdict.better, verdict.worse, verdict.paper) == ("Alpha", "Beta", "200 vs 20.5")
    assert verdict.our_metric == "FD-Pixels"
    assert verdict.verdict == expected


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [((1.0, 1.01), "holds"), ((-1.0, -1.01), "does not hold"), ((-0.1, 0.3), "undecided"), ((1.0, 2.0), "undecided")],
)
def test_the_test_decides_on_the_quoted_order(lab, table, gaps, expected):
    """Whatever the seeds do to both methods: Alpha's own values are a whole unit apart."""
    lab.preset(seeds=[0, 1])
    for seed, value in enumerate((3.0, 4.0)):
        lab.run("alpha/W1.58A2", seed, FD=value)
        lab.run("beta/W1.58A2", seed, FD=value + gaps[seed])
    (verdict,) = verdicts(table())
    assert verdict.verdict == expected
    assert verdict.difference.startswith(f"{sum(gaps) / 2:.3f} ±") and verdict.p.startswith("p = ")


def test_lower_is_better_for_fid(lab, table):
    for name, value in (("alpha", 9.0), ("beta", 5.0)):
        lab.recipe(name, title=name.title(), paper=[lab.quoted(value) | {"metric": "FID"}])
    (verdict,) = verdicts(table())
    assert verdict.better == "Beta"


@pytest.mark.parametrize("numbers", [[("a figure", 20.5), ("a figure", 30.0)], [("elsewhere", 20.5)], []])
def test_only_single_numbers_of_one_source_are_set_against_each_other(lab, table, numbers):
    quoted = [lab.quoted(value) | {"source": source} for source, value in numbers]
    lab.recipe("beta", title="Beta", paper=quoted)
    assert list(verdicts(table())) == []


def test_what_follows_the_name_of_a_source_does_not_matter(lab, table):
    lab.recipe("beta", title="Beta", paper=[lab.quoted(20.5) | {"source": "a figure; also listed elsewhere"}])
    assert len(list(verdicts(table()))) == 1
