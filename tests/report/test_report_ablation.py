"""The sentence and the tests of an ablation are made from its numbers."""

import pytest
from scipy import stats

from robuq_bench.cli import main
from robuq_bench.config.ablation import Ablation
from robuq_bench.files import read_json
from robuq_bench.report.ablation_stage import sentence

ABLATION = Ablation(title="T", question="Q", variants=("W1.58A2",), settings={"ours": "a", "less": "b", "more": "c"})


def rows(seeds: int = 3, p: float | None = 0.5, **distances: float | None) -> list[dict]:
    """Differences against `ours`, all with one p, none where either diverged."""
    ours = distances["ours"]
    lines = []
    for name, value in distances.items():
        gap = value - ours if name != "ours" and None not in (value, ours) else None
        line = {"setting": name, "variant": "W1.58A2", "FD": value, "seeds": seeds, "difference": gap}
        tested = seeds > 1 and gap is not None
        lines.append(line | {"half_width": 0.25 if tested else None, "p": p if tested else None})
    return lines


def test_nothing_beyond_chance():
    text = sentence(ABLATION, "W1.58A2", rows(ours=10.0, less=12.0, more=11.0), "FD-X")
    assert text == (
        "At W1.58A2 'ours' has the lowest FD-X (10), and 'less' the highest (12). "
        "No setting differs from the reference 'ours' beyond chance."
    )


def test_beyond_chance():
    text = sentence(ABLATION, "W1.58A2", rows(p=0.01, ours=10.0, less=12.0, more=9.5), "FD-X")
    assert text.endswith(
        " Beyond chance against the reference 'ours', better: 'more' (-0.5 ± 0.25, p = 0.01); "
        "worse: 'less' (+2 ± 0.25, p = 0.01)."
    )


def test_diverged_settings_are_named():
    assert sentence(ABLATION, "W1.58A2", rows(ours=10.0, less=None, more=9.0), "FD-X").endswith("Diverged: less.")
    lost = sentence(ABLATION, "W1.58A2", rows(ours=None, less=4.0, more=None), "FD-X")
    assert lost == "At W1.58A2 'less' has the lowest FD-X (4). Diverged: ours, more."
    assert (
        sentence(ABLATION, "W1.58A2", rows(ours=None, less=None, more=None), "FD-X")
        == "At W1.58A2 every setting diverged."
    )


def test_one_seed_is_not_tested():
    text = sentence(ABLATION, "W1.58A2", rows(seeds=1, ours=4.845, less=4.848), "FD-X")
    assert "(4.845)" in text and "(4.848)" in text and text.endswith(" One seed: no difference can be tested.")


def test_settings_with_a_single_seed_are_not_tested():
    lines = rows(p=0.01, ours=10.0, less=12.0, more=9.5)
    lines[1] |= {"half_width": None, "p": None}
    text = sentence(ABLATION, "W1.58A2", lines, "FD-X")
    assert "better: 'more'" in text and "'less' (+" not in text


@pytest.fixture
def ablated(lab):
    """`ablated(seeds)`: the record of an ablation of Alpha (reference), Beta and Gamma at two variants."""
    lab.recipe("gamma", title="Gamma")
    (lab.root / "workflows").mkdir()
    (lab.root / "workflows/ablations.yaml").write_text(
        "x: {title: T, question: Q, variants: [W1.58A2, W1.58A4], settings: {one: alpha, two: beta, three: gamma}}"
    )

    def make(seeds: int, **diverged: str) -> dict:
        lab.preset(seeds=list(range(seeds)))
        for seed in range(seeds):
            for variant, by in (("W1.58A2", 1.0), ("W1.58A4", 3.0)):
                lab.run(f"alpha/{variant}", seed, FD=[2.0, 2.6, 2.2][seed])
                lab.run(f"beta/{variant}", seed, FD=[2.0, 2.6, 2.2][seed] + by + seed / 100)
                lab.run(f"gamma/{variant}", seed, FD=[2.0, 2.5, 2.4][seed], diverged=diverged.get(variant, ""))
        assert main(["ablate", "--preset", "tiny", "--name", "x", "--results", "results", "--out", "x.json"]) == 0
        return read_json("x.json")

    return make


def test_each_setting_is_tested_against_the_first(ablated):
    record = ablated(3)
    assert [row["setting"] for row in record["rows"]] == ["one", "two", "three"] * 2
    for first in (record["rows"][0], record["rows"][3]):
        assert first["difference"] is first["half_width"] is first["p"] is None
    gap = stats.ttest_1samp([1.0, 1.01, 1.02], 0)
    found = record["rows"][1]
    assert found["difference"] == pytest.approx(1.01)
    assert found["p"] == pytest.approx(3 * gap.pvalue), "the second smallest of four"
    low, high = gap.confidence_interval()
    assert found["half_width"] == pytest.approx((high - low) / 2)
    assert record["rows"][2]["p"] == 1.0
    assert "worse: 'two' (+1.01 ±" in record["sentence"] and "4 comparisons" in record["note"]


def test_a_diverged_setting_is_not_compared(ablated):
    record = ablated(3, **{"W1.58A4": "loss is nan"})
    assert record["rows"][5]["difference"] is None
    assert "3 comparisons" in record["note"] and "Diverged: three." in record["sentence"]


def test_a_sweep_is_collected_like_an_ablation(lab):
    lab.run("alpha,low_rank.rank=2/W1.58A2", FD=2.0)
    sweep = "alpha,low_rank.rank=0|2/W1.58A2"
    assert main(["ablate", "--preset", "tiny", "--sweep", sweep, "--results", "results", "--out", "x.json"]) == 0
    record = read_json("x.json")
    assert record["name"] == "sweep-alpha-low_rank.rank-W1.58A2"
    assert [(row["setting"], row["FD"]) for row in record["rows"]] == [
        ("low_rank.rank=0", 2.25),
        ("low_rank.rank=2", 2.0),
    ]
    page = ["--preset", "tiny", "--ablation", "x.json", "--out", "page.html"]
    assert main(["report", *page]) == 0 and "low_rank.rank=2" in (lab.root / "page.html").read_text()


def test_one_seed_has_differences_and_no_test(ablated):
    record = ablated(1)
    assert record["rows"][1]["difference"] == pytest.approx(1.0)
    assert record["rows"][1]["p"] is None and record["note"] == ""
