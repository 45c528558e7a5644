"""Aggregation over seeds, rank, compression: numbers worked out by hand."""

import math

import pytest

from robuq_bench.config.recipe import Recipe, Variant
from robuq_bench.report.records import Scores
from robuq_bench.report.rows import Figure, Row, Run, compare, make_row

T_975 = {2: 12.7062047, 3: 4.3026527}  # Student's 97.5 % quantile by number of runs


def variant(title: str = "Alpha", training: str = "qat", recipe: str = "alpha", name: str = "W1.58A2") -> Variant:
    weight = {"format": "ternary", "granularity": "channel", "scale": "absmean"} if training == "qat" else None
    method = Recipe(
        title=title, citation="c", training=training, weight=weight, variants={name: {}}, assumptions=("none",)
    )
    return Variant(recipe=recipe, name=name, weight_bits=1.58, activation_bits=2, method=method)


def run(seed: int = 0, distance: float = 2.0, size: int = 100, status: str = "ok", reason: str = "") -> Run:
    scores = Scores(
        FD=distance, sFD=4, IS=3, KID=0.001, KID_se=0.0001, precision=0.5, recall=0.2,
        n=8, n_reference=100, extractor="Pixels", digest="d", protocol="p",
    )  # fmt: skip
    good = {"size": size, "scores": scores, "held_out_loss": 0.25}
    lost = dict.fromkeys(good)
    return Run(
        seed=seed, status=status, reason=reason, packed="h", latency=None, bits={}, provenance={},
        **(good if status == "ok" else lost),
    )  # fmt: skip


def row(distance: float, **changes) -> Row:
    return make_row(variant(**changes), [run(distance=distance)])


def test_one_seed_has_no_interval():
    figure = make_row(variant(), [run(distance=2.5)]).figures["FD"]
    assert figure == Figure(label="simulated", mean=2.5, half_width=None, values=(2.5,))


@pytest.mark.parametrize("values", [(1.0, 3.0), (1.0, 2.0, 6.0)])
def test_interval_of_several_seeds(values):
    figure = make_row(variant(), [run(seed, value) for seed, value in enumerate(values)]).figures["FD"]
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    assert figure.mean == pytest.approx(mean)
    assert figure.half_width == pytest.approx(T_975[len(values)] * deviation / math.sqrt(len(values)), rel=1e-7)
    assert figure.values == values


def test_every_figure_is_labelled():
    figures = make_row(variant(), [run()]).figures
    assert figures["size"].label == "packed"
    assert {figure.label for name, figure in figures.items() if name != "size"} == {"simulated"}


def test_one_diverged_seed_makes_the_row_diverged():
    lost = run(1, status="diverged", reason="loss is nan")
    found = make_row(variant(), [run(0), lost, run(2)])
    assert (found.status, found.figures) == ("diverged", {})
    assert found.reason == "1 of 3 seeds: seed 1: loss is nan"
    assert make_row(variant(), [lost]).reason == "loss is nan"


def test_a_diverged_row_without_reason_still_says_something():
    assert make_row(variant(), [run(status="diverged")]).reason == "no reason was recorded"


def test_rank_leaves_out_full_precision_and_diverged_rows():
    lost = make_row(variant("Lost"), [run(status="diverged", reason="nan")])
    rows = compare([row(1.0, title="Full", training="none"), row(5.0), lost, row(3.0), row(5.0), row(9.0)])
    assert [r.rank for r in rows] == [None, 2, None, 1, 2, 4]


def test_compression_is_against_full_precision():
    full = make_row(variant("Full", training="none"), [run(size=1000)])
    lost = make_row(variant("Lost"), [run(status="diverged", reason="nan")])
    assert [r.compression for r in compare([full, row(2.0), lost])] == [1.0, 10.0, None]
    assert [r.compression for r in compare([row(2.0)])] == [None]


def test_a_changed_recipe_shows_its_changes():
    changed = row(2.0, recipe="alpha,activation.scale=absmax,low_rank=null")
    assert changed.changes == "activation.scale=absmax, low_rank=null"
    assert changed.name == "Alpha [activation.scale=absmax, low_rank=null] W1.58A2"
    assert row(2.0).name == "Alpha W1.58A2"
