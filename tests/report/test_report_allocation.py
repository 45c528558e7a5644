"""The page's section on allocated bits: what bits.json and profile.json say, beside the paper's."""

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robuq_bench.allocate.allocation import BLOCK, Profile, allocate
from robuq_bench.config.recipe import load_variant
from robuq_bench.files import read_json, sha256_file, write_json
from robuq_bench.report.allocations import Allocated, profiled, thinned

BLOCKS = 12
ROW = "alpha/W1.58A2"


def profile(provenance: dict, seed: int, candidates: list[int]) -> Profile:
    """Random sensitivities of twelve blocks that mostly fall with the bits; some rises of the loss are negative."""
    rng = np.random.default_rng(seed)
    layers = [f"blocks.{block}.{kind}" for block in range(BLOCKS) for kind in BLOCK]
    falls = np.array([0.36, 0.12, 0.037, 0.001])[np.array(candidates) - 1]
    loss, mse = (rng.random((len(layers), 1)) * falls for _ in range(2))
    facts = {
        "recipe": "alpha", "variant": "W1.58A2", "steps": 100, "layers": layers, "types": list(BLOCK) * BLOCKS,
        "shapes": [(n * 8, k * 8) for n, k in BLOCK.values()] * BLOCKS, "tokens": 16,
        "macs": [n * k * 1024 for n, k in BLOCK.values()] * BLOCKS, "candidates": candidates,
        "fixed": {f"blocks.{block}.adaln": 4 for block in range(BLOCKS)},
        "loss": (loss - 0.001).tolist(), "mse": mse.tolist(), "base_loss": 0.5, "images": 512, "provenance": provenance,
    }  # fmt: skip
    return Profile.model_validate(facts)


@pytest.fixture
def allocated(lab):
    """`allocated(seeds, ...)`: runs of Alpha with allocated bits; what was allocated at the first seed."""

    def make(seeds: int = 1, allocation: dict | None = None) -> dict:
        lab.preset(seeds=list(range(seeds)), rows=["full/W32A32", ROW])
        plan = {"cost": "macs", "sensitivity": "loss"} | (allocation or {})
        lab.recipe("alpha", title="Alpha", allocation=plan, variants={"W1.58A2": {}})
        provenance = read_json(lab.results / "reference/floor.json")["provenance"]
        found = []
        for seed in range(seeds):
            folder = lab.folder(ROW, seed)
            given = profile(provenance, seed, plan.get("candidates", [1, 2, 3, 4]))
            write_json(folder / "profile.json", given.model_dump(mode="json"))
            found.append(allocate(given, load_variant("alpha", "W1.58A2")))
            record = {"status": "ok", "reason": "", "profile": sha256_file(folder / "profile.json")}
            write_json(folder / "bits.json", found[-1] | record | {"provenance": provenance})
            lab.run(ROW, seed, FD=2.0 + seed / 10, bits=found[-1]["bits"])
        return found[0]

    return make


def words(text: str) -> str:
    """What a reader sees of the section."""
    section = re.search(r'<section id="allocation">.*?</section>', text, re.DOTALL)[0]
    return " ".join(re.sub(r"<[^>]+>", " ", section).split())


def test_bits_stand_in_the_order_of_blocks(lab, allocated):
    found = allocated()
    text = words(lab.page())
    for kind in BLOCK:
        bits = " ".join(str(found["bits"][f"blocks.{block}.{kind}"]) for block in range(BLOCKS))
        assert f"{kind} {bits} " in text
    assert f"block {' '.join(map(str, range(BLOCKS)))}" in text and "adaln" not in text


def test_averages_of_each_seed_stand_above_the_papers(lab, allocated):
    found = allocated(2)
    text = words(lab.page())
    mine = " ".join(f"{found['averages'][kind]:.2f}" for kind in BLOCK)
    assert f"seed 0 {mine} {found['weighted_average']:.2f} seed 1 " in text
    assert "paper, DiT-XL/2 2.21 2.75 2.00 1.64 1.99" in text, "qkv, proj, fc1, fc2 of paper-facts 1.6, and their mean"


def test_budget_asked_and_achieved(lab, allocated):
    found = allocated()
    text = words(lab.page())
    assert f"at most what 2 bits in every layer cost: {found['budget']:,} {found['unit']}." in text
    assert f"Achieved: {found['achieved']:,}, {found['achieved'] / found['budget']:.1%} of it." in text
    even = found["predicted_loss_increase_uniform"]
    assert f"Predicted rise of the loss: {found['predicted_loss_increase']:.4g}, against {even:.4g}" in text


@pytest.mark.parametrize(
    ("allocation", "expected"),
    [
        ({"cost": "average_bits"}, ["plain average of bits", ">average bits<", ">predicted rise of the loss<"]),
        ({"cost": "bitops"}, ["bit operations", ">average bits, weighted by bit operations<"]),
        ({"sensitivity": "mse"}, [">predicted summed relative output error<"]),
        ({"candidates": [1, 3, 4]}, ["2 bits in all layers was no candidate"]),
    ],
)
def test_every_plan_has_its_words_and_figures(lab, allocated, allocation, expected):
    allocated(allocation=allocation)
    text = lab.page()
    assert all(part in text for part in expected)
    assert text.count('id="allocation-0-') > 10, "figures have ids of their own"
    assert (">2 bits everywhere<" in text) == ("candidates" not in allocation)


def test_the_front_is_drawn_through_the_chosen_point(allocated):
    found = allocated()
    at = {point["cost"]: point["loss"] for point in found["pareto"]}
    assert found["minimised"] == at[found["achieved"]]
    assert found["minimised_uniform"] == pytest.approx(found["predicted_loss_increase_uniform"])


def test_the_profile_by_type_width_and_block(lab, allocated):
    allocated()
    given = Profile.model_validate(read_json(lab.folder(ROW) / "profile.json"))
    for measure in ("loss", "mse"):
        found = profiled(Allocated(None, (), given), measure)
        assert found.shape == (4, 4, BLOCKS)
        for layer, values in zip(given.layers, getattr(given, measure), strict=True):
            _, block, kind = layer.split(".")
            assert list(found[list(BLOCK).index(kind), :, int(block)]) == list(values)


def test_other_bits_than_were_trained_are_refused(lab, allocated, capsys):
    allocated()
    lab.change(f"{ROW}/seed0/bits.json", bits={"blocks.0.qkv": 1})
    assert lab.table() == 0 and lab.report() == 2
    assert "other bits than the table's row was trained with" in capsys.readouterr().err


def test_another_profile_is_refused(lab, allocated, capsys):
    allocated()
    lab.change(f"{ROW}/seed0/profile.json", base_loss=0.25)
    assert lab.table() == 0 and lab.report() == 2
    assert "profile.json: another profile than bits.json" in capsys.readouterr().err


def test_no_section_without_allocation(lab):
    assert '<section id="allocation">' not in lab.page()


@given(seed=st.integers(0, 10**6), points=st.integers(2, 5000))
def test_a_thinned_front_keeps_its_shape(seed, points):
    """Ends and wanted points stay; nothing left out is further from the drawn steps than the width of a pixel or so."""
    rng = np.random.default_rng(seed)
    x, y = np.cumsum(rng.exponential(size=points) ** 3), -np.cumsum(rng.exponential(size=points) ** 2)
    wanted = int(rng.integers(points))
    kept = thinned(x, y, [wanted], count=300)
    assert kept == sorted(set(kept)) and {0, points - 1, wanted} <= set(kept)
    assert len(kept) <= 301
    for low, high in pairwise(kept):
        if high > low + 1:  # points were left out between the two
            assert (x[high - 1] - x[low]) / np.ptp(x) <= 2 / 300 and (y[low] - y[high - 1]) / np.ptp(y) <= 2 / 300
