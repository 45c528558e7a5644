"""The verdict is made from the numbers."""

from collections.abc import Sequence

import pytest

from robuq_bench.measure.inspect_records import (
    PROBABILITIES,
    ROTATIONS,
    Activations,
    Branch,
    Floors,
    Layer,
    Row,
    RowLayer,
    Summary,
    View,
    WeightControl,
)
from robuq_bench.measure.inspect_verdict import near, ratio, verdict

FLOORS = (0.4, 0.1, 0.04, 0.01)
NAMES = ("blocks.0.qkv", "blocks.0.proj", "blocks.0.fc1", "blocks.0.fc2", "blocks.0.adaln")


def view(ratio: float = 1.0, **changes) -> View:
    """A view whose errors are `ratio` times the floors, and min-max's twice that."""
    errors = tuple(ratio * floor for floor in FLOORS)
    facts = {"tokens": 10, "kurtosis": 0, "skewness": 0, "pooled_kurtosis": 0, "pooled_skewness": 0, "outlier": 3}
    facts |= {"rejected": 0.05, "gaussian": errors, "minmax": tuple(2 * error for error in errors)}
    summary = Summary(**facts | changes)
    return View(overall=summary, by_time=(summary,), quantiles=(0.0,) * len(PROBABILITIES), wasserstein=0)


def seen(before: Sequence[float], after: Sequence[float], **changes) -> Activations:
    """Five layers with these errors over the floors before and after rotation. changes: of the rotated view."""
    layers = []
    for name, unrotated, rotated in zip(NAMES, before, after, strict=True):
        views = dict.fromkeys(ROTATIONS, view(rotated, **changes)) | {"none": view(unrotated, kurtosis=4, skewness=2)}
        layers.append(Layer(name=name, width=128, views=views))
    floors = Floors(uniform=FLOORS, lloyd_max=FLOORS)
    return Activations(images=8, times=(0.5,), sign_seed=0, floors=floors, controls={128: view()}, layers=tuple(layers))


def taken_apart(shares: Sequence[float | None] = (0.2, 0.5, 0.9)) -> Row:
    layers = tuple(
        RowLayer(
            name=name,
            bits=2,
            minus=0.3,
            zero=0.4,
            plus=0.3,
            rounding_error=0.25,
            drift=0.2,
            activation_error=0.1,
            branch=share and Branch(output_share=share, main_share=0.5, weight_share=0.1, singular_values=(1.0,)),
        )
        for name, share in zip(NAMES, shares, strict=False)
    )
    facts = {"title": "Mine", "recipe": "mine", "variant": "W1.58A2", "seed": 0, "packed": "abc"}
    return Row(**facts, control=WeightControl(zero=0.31, rounding_error=0.213), layers=layers)


def told(*arguments, **changes) -> str:
    found = verdict(seen(*arguments, **changes), taken_apart())
    return " ".join((found.headline, *found.sentences))


@pytest.mark.parametrize(
    ("before", "after", "answer"),
    [
        ([2] * 5, [1] * 5, "holds"),
        ([2] * 5, [1.0999] * 5, "holds"),
        ([2] * 5, [1, 1, 1, 1, 1.2], "holds in part"),
        ([2] * 5, [1, 1, 1, 1.2, 1.2], "holds in part"),
        ([2] * 5, [1, 1, 1.2, 1.2, 1.2], "does not hold"),
        ([1, 1, 1, 1, 2], [1, 1, 1, 1, 2], "does not hold"),  # rotation did nothing
        ([2] * 5, [2] * 5, "does not hold"),
    ],
)
def test_answer(before, after, answer):
    found = verdict(seen(before, after), taken_apart())
    assert found.answer == answer
    assert f"The normality claim {answer} here" in found.headline


def test_headline_counts_layers_and_names_the_worst():
    found = verdict(seen([1, 2, 2, 2, 2], [1, 1, 1.05, 1.3, 1.2]), taken_apart())
    assert "after rotation 3 of 5 layers" in found.headline and "before it 1 do" in found.headline
    assert found.headline.endswith("Worst after rotation: blocks.0.fc2, 1.30 times.")


def test_ratio_is_taken_at_its_own_floor():
    activations = seen([2] * 5, [1.5] * 5)
    for bits in (1, 2, 3, 4):
        assert ratio(activations.layers[0], activations, bits=bits) == pytest.approx(1.5)
        assert ratio(activations.layers[0], activations, "none", bits) == pytest.approx(2)
    assert len(near(seen([1] * 5, [2] * 5), "none")) == 5 and not near(seen([1] * 5, [2] * 5), "full")


def test_shape_before_and_after():
    text = told([2] * 5, [1] * 5, kurtosis=-0.004, rejected=0.08)
    assert "excess kurtosis goes from 4.00 to 0.00" in text
    assert (
        "rejects 5.0% of the median layer's tokens before rotation and 8.0% after, of exactly normal ones 5.0%" in text
    )
    assert "fc2 sees GELU's output: rotation takes its median skewness from 2.00 to 0.00" in text
    assert "its 2-bit error from 2.00 to 1.00 times the floor" in text


def test_each_width_is_counted():
    errors = (0.4, 0.1, 0.04, 0.02)
    text = told([2] * 5, [1] * 5, gaussian=errors)
    assert "by bits: 5 at 1, 5 at 2, 5 at 3, 0 at 4, of 5; worst at 4 bits: blocks.0.qkv, 2.00 times" in text


@pytest.mark.parametrize(
    ("factors", "end"),
    [
        (
            (2, 2, 2, 2),
            "by bits: 2.00 at 1, 2.00 at 2, 2.00 at 3, 2.00 at 4; RobuQ's grid loses less at 1, 2, 3 and 4 bits.",
        ),
        ((2, 2, 0.5, 0.5), "RobuQ's grid loses less at 1 and 2 bits."),
        ((2, 0.5, 0.5, 0.5), "RobuQ's grid loses less at 1 bit."),
        ((0.5, 0.5, 0.5, 0.5), "RobuQ's grid loses less nowhere."),
    ],
)
def test_min_max_is_compared_at_each_width(factors, end):
    assert end in told([2] * 5, [1] * 5, minmax=tuple(f * floor for f, floor in zip(factors, FLOORS, strict=True)))


def test_what_is_said_of_the_row():
    text = told([2] * 5, [1] * 5)
    assert "Mine at W1.58A2: 40.0% of the median layer's weights are zero (normal weights: 31.0%)" in text
    assert "relative squared error of 0.250 (0.213)" in text
    assert "carries 50% of the median layer's squared output" in text and "most: blocks.0.fc1, 90%" in text


def test_a_row_without_branch_says_nothing_of_it():
    found = verdict(seen([2] * 5, [1] * 5), taken_apart((None, None, None)))
    assert not any("branch" in sentence for sentence in found.sentences)
