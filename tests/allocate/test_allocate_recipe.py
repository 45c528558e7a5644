"""The recipe's allocation block: defaults, the two RobuQ recipes, and what is refused."""

import pytest

from robuq_bench.config.recipe import Allocation, load_recipe

A2 = "robuq/W1.58A2"


def test_robuq_allocates_below_four_bits_with_ternary_weights(variant):
    assert variant(A2).method.allocation == variant("robuq/W1.58A3").method.allocation == Allocation()
    for name in ("W4A4", "W3A3", "W1.58A4"):
        assert variant(f"robuq/{name}").method.allocation is None


@pytest.mark.parametrize("name", ["W1.58A2", "W1.58A3"])
def test_robuq_uniform_is_robuq_without_allocation(variant, name):
    text = {"title", "variants", "paper", "assumptions", "allocation"}
    one, other = (variant(f"{recipe}/{name}").method for recipe in ("robuq", "robuq_uniform"))
    assert one.model_dump(exclude=text) == other.model_dump(exclude=text)
    assert one.allocation and not other.allocation


def test_paper_numbers_are_with_and_without_mixed_precision(in_root):
    found = {
        (recipe, number.variant): number.value
        for recipe in ("robuq", "robuq_uniform")
        for number in load_recipe(recipe).paper
        if number.metric == "IS" and number.variant in ("W1.58A2", "W1.58A3")
    }
    assert found == {
        ("robuq", "W1.58A3"): 344.4,
        ("robuq", "W1.58A2"): 273.6,
        ("robuq_uniform", "W1.58A3"): 325.7,
        ("robuq_uniform", "W1.58A2"): 200.0,
    }


def test_candidates_can_be_swept_from_the_command_line(variant):
    assert variant("robuq,allocation.candidates=2+3+4/W1.58A2").method.allocation.candidates == (2, 3, 4)
    assert variant("robuq,allocation.profile_steps=0/W1.58A2").method.allocation.profile_steps == 0
    assert variant("robuq,allocation=null/W1.58A2").method.allocation is None


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("robuq,allocation.cost=flops/W1.58A2", ["allocation.cost", "'latency'"]),
        ("robuq,allocation.sensitivity=fisher/W1.58A2", ["allocation.sensitivity", "'mse'"]),
        ("robuq,allocation.profile_steps=-1/W1.58A2", ["allocation.profile_steps"]),
        ("robuq,allocation.candidates=2/W1.58A2", ["allocation.candidates"]),
        ("robuq,allocation.candidates=5+6/W1.58A2", ["allocation.candidates", "6 or 8"]),
        ("robuq,allocation.candidates=4+2/W1.58A2", ["rising order"]),
        ("robuq,allocation.candidates=two+4/W1.58A2", ["allocation.candidates"]),
        ("robuq,allocation.candidates=3+4/W1.58A2", ["averages 2 bits", "[3, 4]", "all are above", "2+3+4"]),
        ("robuq,allocation.steps=3/W1.58A2", ["allocation.steps", "allocation.profile_steps"]),
        ("robuq,allocation.latency_table=t.json/W1.58A2", ["latency_table", "cost 'macs'"]),
        ("robuq,activation.format=midtread/W1.58A2", ["1-bit", "midrise"]),
        ("robuq,allocation.cost=latency/W3A3", ["'latency'", "ternary"]),
        ("robuq,activation=null/W1.58A2", ["needs", "activation quantiser"]),
        ("robuq,training=ptq/W1.58A2", ["training 'qat'"]),
        ("robuq,allocation.candidates=1+2/W1.58A3", ["averages 3 bits", "all are below", "1+2+3"]),
        ("robuq,activation.format=lloyd_max,allocation.candidates=2+3+6/W1.58A2", ["levels for 1 to 4 bits, not 6"]),
        ("full_precision,allocation.cost=macs/W32A32", ["takes no allocation", "training 'qat'"]),
    ],
)
def test_what_does_not_fit_is_refused(variant, refused, row, words):
    refused(lambda: variant(row), *words)


def test_wider_candidates_need_no_midrise(variant):
    row = "robuq,activation.format=midtread,allocation.candidates=2+3+4/W1.58A2"
    assert variant(row).method.allocation.candidates == (2, 3, 4)
