"""From a profile to bits: the budget is kept, the sum is least, and what the recipe says is what is minimised."""

import json

import numpy as np
import pytest

from robuq_bench.allocate.allocation import BLOCK, PAPER_AVERAGES, Profile, allocate, check_priced
from robuq_bench.allocate.profile import shapes
from robuq_bench.config.preset import load_preset

TYPES = ("qkv", "proj", "fc1", "fc2")
SHAPES = ((144, 48), (48, 48), (192, 48), (48, 192))


def profile(blocks: int = 2, seed: int = 0, **changes) -> Profile:
    """A profile of random sensitivities that mostly fall with the bits; mse is independent of loss."""
    rng = np.random.default_rng(seed)
    layers = [f"blocks.{index}.{kind}" for index in range(blocks) for kind in TYPES]
    loss, mse = (rng.random((len(layers), 1)) * [0.36, 0.12, 0.037, 0.0] for _ in range(2))
    facts = {
        "recipe": "robuq",
        "variant": "W1.58A2",
        "steps": 100,
        "layers": layers,
        "types": TYPES * blocks,
        "shapes": SHAPES * blocks,
        "tokens": 16,
        "macs": [n * k * 16 for n, k in SHAPES] * blocks,
        "fixed": {f"blocks.{index}.adaln": 4 for index in range(blocks)},
        "candidates": (1, 2, 3, 4),
        "loss": loss.tolist(),
        "mse": mse.tolist(),
        "base_loss": 0.5,
        "provenance": {},
    }
    return Profile.model_validate(facts | changes)


@pytest.mark.parametrize("cost", ["average_bits", "macs", "bitops"])
@pytest.mark.parametrize("name", ["W1.58A2", "W1.58A3"])
def test_budget_is_kept_and_reported(variant, cost, name):
    given = profile()
    found = allocate(given, variant(f"robuq,allocation.cost={cost}/{name}"))
    weights = {"average_bits": [1] * 8, "macs": [3, 1, 4, 4] * 2, "bitops": [6, 2, 8, 8] * 2}[cost]
    bits = [found["bits"][layer] for layer in given.layers]
    assert found["achieved"] == np.dot(weights, bits) <= found["budget"]
    assert found["budget"] == sum(weights) * int(name[-1])
    assert found["weighted_average"] == pytest.approx(np.dot([3, 1, 4, 4] * 2, bits) / 24)
    assert found["averages"] == {kind: np.mean(bits[index::4]) for index, kind in enumerate(TYPES)}
    lost = sum(given.loss[index][width - 1] for index, width in enumerate(bits))
    assert found["predicted_loss_increase"] == pytest.approx(lost)
    assert (
        lost
        <= found["predicted_loss_increase_uniform"]
        == pytest.approx(sum(row[int(name[-1]) - 1] for row in given.loss))
    )


def test_bits_cover_every_linear_and_adaln_keeps_its_own(variant):
    found = allocate(profile(), variant("robuq/W1.58A2"))
    assert set(found["bits"]) == {f"blocks.{index}.{kind}" for index in range(2) for kind in (*TYPES, "adaln")}
    assert found["bits"]["blocks.1.adaln"] == 4


def test_sensitivity_says_what_is_minimised(variant):
    by_loss, by_mse = (
        allocate(profile(3), variant(f"robuq,allocation.sensitivity={name}/W1.58A2")) for name in ("loss", "mse")
    )
    assert by_loss["bits"] != by_mse["bits"]
    assert by_loss["predicted_loss_increase"] < by_mse["predicted_loss_increase"]
    assert by_mse["minimised"] < by_mse["minimised_uniform"] == pytest.approx(sum(row[1] for row in profile(3).mse))
    swapped = profile(3)
    swapped = swapped.model_copy(update={"loss": swapped.mse, "mse": swapped.loss})
    assert allocate(swapped, variant("robuq/W1.58A2"))["bits"] == by_mse["bits"]


def test_the_front_holds_the_choice(variant):
    found = allocate(profile(), variant("robuq/W1.58A2"))
    costs, losses = ([point[key] for point in found["pareto"]] for key in ("cost", "loss"))
    assert costs == sorted(set(costs)) and losses == sorted(set(losses), reverse=True)
    at = dict(zip(costs, losses, strict=True))
    assert at[found["achieved"]] == pytest.approx(found["predicted_loss_increase"])
    assert max(cost for cost in costs if cost <= found["budget"]) == found["achieved"]
    assert costs[0] == 24 and losses[-1] == 0  # all at 1 bit; all that matter at 4


def test_paper_averages_stand_beside(variant):
    assert allocate(profile(), variant("robuq/W1.58A2"))["paper_averages"] == PAPER_AVERAGES["W1.58A2"]
    assert allocate(profile(), variant("robuq,allocation.cost=macs/W1.58A4"))["paper_averages"] is None


def test_candidates_may_be_fewer_than_were_profiled(variant, refused):
    found = allocate(profile(), variant("robuq,allocation.candidates=2+4/W1.58A3"))
    assert set(found["bits"].values()) <= {2, 4}
    narrow = profile(candidates=(2, 3, 4), loss=[[0.2, 0.1, 0]] * 8, mse=[[0.2, 0.1, 0]] * 8)
    refused(lambda: allocate(narrow, variant("robuq/W1.58A2")), "lacks [1]")


@pytest.mark.parametrize("preset", ["quick", "smoke"])
def test_priced_before_any_work_like_the_model_itself(in_root, converted, variant, refused, preset):
    """The block of a preset has the shapes of its model; a latency table without them is refused."""
    chosen = load_preset(preset)
    check_priced(chosen, variant("robuq/W1.58A2"))
    missing = "robuq,allocation.cost=latency,allocation.latency_table=nowhere.json/W1.58A2"
    refused(lambda: check_priced(chosen, variant(missing)), "nowhere.json: no latency table")


def test_the_block_that_is_priced_is_that_of_the_model(converted):
    found = [(linear.n, linear.k) for linear in shapes(converted("robuq/W1.58A4"), 16)]
    assert found == [(n * 48, k * 48) for n, k in BLOCK.values()] * 2


def test_a_budget_that_measured_times_cannot_meet_is_refused(in_root, tmp_path, variant, refused):
    """Of 1 and 3 bits, each slower here than the 2 bits of the budget."""
    times = {1: 9.0, 2: 1.0, 3: 2.0, 4: 3.0}
    path = tmp_path / "kernels.json"
    rows = [
        {"kernel": f"W1.58A{bits}", "n": n * 48, "k": k * 48, "m": 64, "us": us}
        for n, k in BLOCK.values()
        for bits, us in times.items()
    ]
    path.write_text(json.dumps({"rows": rows, "provenance": {"device": "D"}}))
    latency = f"robuq,allocation.cost=latency,allocation.latency_table={path}"
    check_priced(load_preset("smoke"), variant(f"{latency}/W1.58A2"))
    without = variant(f"{latency},allocation.candidates=1+3/W1.58A2")
    refused(
        lambda: check_priced(load_preset("smoke"), without), "budget of 4000", "least achievable is 8000", "smaller"
    )


@pytest.mark.parametrize("changes", [{"loss": [[1.0]]}, {"mse": [[1.0, 2.0, 3.0]] * 8}, {"types": ("qkv",)}])
def test_a_ragged_profile_is_refused(changes):
    with pytest.raises(ValueError, match="each layer"):
        profile(**changes)
