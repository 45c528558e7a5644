"""What a recipe asks of the preset's model: refused before any work, naming the nearest valid choice."""

import pytest
import torch

from robuq_bench.cli import main
from robuq_bench.config.hadamard import base
from robuq_bench.config.preset import load_preset
from robuq_bench.config.recipe import load_variant
from robuq_bench.config.row import load_row, training_plan
from robuq_bench.errors import BenchError
from robuq_bench.quant.convert import convert, uniform_bits
from robuq_bench.quant.hadamard import signs_matrix


def test_a_row_is_its_variant(in_root):
    assert load_row(load_preset("smoke"), "robuq", "W1.58A2") == load_variant("robuq", "W1.58A2")


@pytest.mark.parametrize(("preset", "width"), [("smoke", 48), ("quick", 128)])
def test_the_largest_rank(in_root, refused, preset, width):
    chosen = load_preset(preset)
    assert load_row(chosen, f"robuq,low_rank.rank={width - 1}", "W1.58A2").method.low_rank.rank == width - 1
    too_large = f"robuq,low_rank.rank={width}"
    refused(lambda: load_row(chosen, too_large, "W1.58A2"), too_large, "W1.58A2", f"largest rank is {width - 1}")
    refused(lambda: load_row(chosen, "robuq,low_rank.rank=400", "W1.58A2"), "rank 400", width)


@pytest.mark.parametrize("rank", [47, 48])
def test_the_check_agrees_with_the_layers(in_root, denoiser, rank):
    """A model of width 48, as the preset `smoke` has it, is converted exactly when the row is accepted."""
    preset, model = load_preset("smoke"), denoiser()
    variant = load_variant(f"robuq_uniform,low_rank.rank={rank}", "W1.58A2")
    outcomes = []
    for attempt in (
        lambda: load_row(preset, variant.recipe, variant.name),
        lambda: convert(model, variant, uniform_bits(model, variant), 0),
    ):
        try:
            attempt()
            outcomes.append("accepted")
        except BenchError:
            outcomes.append("refused")
    assert outcomes == ["accepted" if rank < 48 else "refused"] * 2


@pytest.mark.parametrize("width", range(4, 260, 4))
def test_widths_that_can_be_rotated_are_those_whose_matrix_is_built(width):
    try:
        found = bool((signs_matrix(width) @ signs_matrix(width).T == width * torch.eye(width)).all())
    except BenchError:
        found = None
    assert found is (True if base(width) else None)


def test_a_width_without_hadamard_matrix(in_root, refused):
    narrow = load_preset("smoke", "model.width=52")
    refused(lambda: load_row(narrow, "robuq", "W1.58A2"), "order 52", "rotation.kind=block-128, or model.width=48")
    load_row(narrow, "robuq,rotation.kind=block-128", "W1.58A2")
    load_row(load_preset("smoke", "model.width=48"), "robuq", "W1.58A2")


def test_the_plan_of_full_precision_and_of_qat(in_root):
    preset = load_preset("smoke")
    assert training_plan(preset, load_row(preset, "full_precision", "W32A32")) == preset.train
    assert training_plan(preset, load_row(preset, "robuq", "W1.58A2")) == preset.qat


def test_a_schedule_scales_the_plan(in_root):
    """Twice the steps: twice the warm-up, and an average over twice as many of them."""
    preset = load_preset("smoke", "qat.steps=30,qat.warmup=5,qat.ema=0.9,qat.lr=0.001")
    plan = training_plan(preset, load_row(preset, "robuq,schedule.steps=2,schedule.lr=3", "W1.58A2"))
    assert (plan.steps, plan.warmup, plan.lr) == (60, 10, pytest.approx(0.003))
    assert plan.ema == pytest.approx(0.95)
    assert (
        plan.model_copy(update={key: getattr(preset.qat, key) for key in ("steps", "warmup", "lr", "ema")})
        == preset.qat
    )
    short = training_plan(preset, load_row(preset, "robuq,schedule.steps=0.01", "W1.58A2"))
    assert (short.steps, short.warmup, short.ema) == (1, 0, 0.0)
    longer = training_plan(preset, load_row(preset, "robuq,schedule.ema=4", "W1.58A2"))
    assert (longer.steps, longer.ema) == (30, pytest.approx(0.975))


def test_a_rank_of_one_layer_type_counts(in_root, refused):
    wide = "robuq,low_rank.ranks.fc1=48"
    refused(lambda: load_row(load_preset("smoke"), wide, "W1.58A2"), "rank 48", "largest rank is 47")


@pytest.mark.parametrize("verb", ["train", "profile"])
def test_verbs_refuse_it_before_they_start(in_root, capsys, tmp_path, verb):
    row = ["--preset", "smoke", "--recipe", "robuq,low_rank.rank=48", "--variant", "W1.58A2"]
    files = {
        "train": ["--start", "absent", "--bits", "absent", "--model", "m", "--curve", "c", "--state", "s"],
        "profile": ["--start", "absent", "--profile", "p"],
    }
    assert main([verb, *row, *files[verb]]) == 2
    assert "largest rank is 47" in capsys.readouterr().err
