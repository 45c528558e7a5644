"""Calibration, teachers and phases: what the selective and the post-training recipes need."""

import pytest
import torch

from robuq_bench.config.recipe import Phase
from robuq_bench.models.dit import linears
from robuq_bench.quant.convert import convert, uniform_bits
from robuq_bench.quant.timed import timed_quantisers
from robuq_bench.train.calibrate import fit_timed, input_ranges
from robuq_bench.train.loop import select
from robuq_bench.train.objective import Teacher, draw, loss, taught


@pytest.fixture
def signal() -> torch.Tensor:
    return torch.rand(100, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.arange(100) % 10


def test_input_ranges_bound_what_the_layers_see(denoiser, signal, labels):
    model = denoiser()
    ranges = input_ranges(model, signal, labels, 10)
    assert ranges.keys() == linears(model).keys()
    assert all(r.shape == (linears(model)[name][2].in_features,) and (r > 0).all() for name, r in ranges.items())
    assert all(torch.equal(r, input_ranges(model, signal, labels, 10)[name]) for name, r in ranges.items())


def test_smoothing_leaves_the_function_alone_and_evens_out_the_inputs(denoiser, variant, signal, labels, batch):
    row = variant("svdquant_ptq,low_rank.rank=4/W4A4")
    exact = row.model_copy(
        update={"method": row.method.model_copy(update={"activation": None, "attention_bits": None})}
    )
    model, images = denoiser(), batch
    expected = model(images[0], timestep=images[1], class_labels=images[2]).sample
    ranges = input_ranges(model, signal, labels, 10)
    convert(model, exact, dict.fromkeys(linears(model), 32), 0, ranges)
    for _, _, layer in linears(model).values():
        layer.weight_quantiser = None
    torch.testing.assert_close(
        model(images[0], timestep=images[1], class_labels=images[2]).sample, expected, rtol=1e-3, atol=1e-4
    )
    name = "blocks.0.fc2"
    smooth = linears(model)[name][2].smooth
    weights = linears(denoiser())[name][2].weight.abs().amax(0)
    torch.testing.assert_close(smooth, (ranges[name] / weights).sqrt().detach())


def test_timed_ranges_follow_the_time(denoiser, variant, signal, labels):
    model, row = denoiser(), variant("quest_selective/W4A4")
    convert(model, row, uniform_bits(model, row), 0)
    fit_timed(model, signal, labels)
    quantisers = timed_quantisers(model).values()
    assert all((q.step > 0).all() and torch.isfinite(q.offset).all() for q in quantisers)
    assert any(len(q.step.unique()) > 10 for q in quantisers), "every interval of time has a range of its own"


def test_ranges_are_fitted_where_the_model_is_and_nothing_is_read_back(denoiser, variant, signal, labels):
    """On the meta device there are no values to read: neither on the way to the model nor for the choice."""
    model, row = denoiser(), variant("quest_selective/W4A4")
    convert(model, row, uniform_bits(model, row), 0).to("meta")
    fit_timed(model, signal, labels)
    with pytest.raises(RuntimeError, match="meta"):
        next(iter(timed_quantisers(model).values())).step[0].item()


def test_the_teacher_is_the_target(denoiser, signal, labels):
    teacher, student = denoiser(0), denoiser(1)
    batch = draw(signal, labels, 8, 10, 0.1, draw_seed=3)
    assert loss(teacher, taught(Teacher(teacher), batch)).item() == 0
    assert loss(student, taught(Teacher(teacher), batch)).item() > 0


def test_a_share_of_the_teacher_mixes_the_losses(denoiser, signal, labels):
    """The gradient is (1 - share) times that of the data's loss plus share times that of the teacher's."""
    teacher, student = denoiser(0), denoiser(1)
    batch = draw(signal, labels, 8, 10, 0.1, draw_seed=3)

    def gradient(target) -> torch.Tensor:
        student.zero_grad()
        loss(student, target).backward()
        return student.proj_out_2.weight.grad.clone()

    mixed = gradient(taught(Teacher(teacher, 0.25), batch))
    torch.testing.assert_close(mixed, 0.75 * gradient(batch) + 0.25 * gradient(taught(Teacher(teacher), batch)))


def test_phases_train_their_layers_and_the_learned_ranges_alone(denoiser, variant):
    model, row = denoiser(), variant("quest_selective/W4A4")
    convert(model, row, uniform_bits(model, row), 0)
    phases = (Phase(share=0.25, layers=["adaln"]), Phase(share=0.75, layers=["fc1"]))

    def trained(progress: float) -> set[str]:
        select(model, phases, progress)
        names = {name for name, (_, _, layer) in linears(model).items() if layer.weight.requires_grad}
        assert all(q.step.requires_grad for q in timed_quantisers(model).values())
        assert not model.proj_out_2.weight.requires_grad
        return {name.rpartition(".")[2] for name in names}

    assert [trained(p) for p in (0.0, 0.24, 0.25, 0.99, 1.0)] == [{"adaln"}] * 2 + [{"fc1"}] * 3


def test_without_phases_everything_is_trained(denoiser):
    model = denoiser()
    select(model, (), 0.5)
    assert all(parameter.requires_grad for parameter in model.parameters())
