"""Timing a forward pass."""

from torch import nn

from robuq_bench.measure.latency import WARM_UP, time_forward


class Watched(nn.Module):
    """Stands for a denoiser and keeps what it is called with."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, timestep, class_labels):
        self.seen.append((x.clone(), timestep.clone(), class_labels.clone()))
        return type("Output", (), {"sample": x})


def test_each_repeat_is_timed_on_inputs_of_its_own(shape):
    model = Watched()
    timing = time_forward(model, shape, batch=4, repeats=5, device="cpu")
    assert len(model.seen) == WARM_UP + 5
    assert all(len(x) == len(time) == len(labels) == 4 for x, time, labels in model.seen)
    assert len({x.sum().item() for x, _, _ in model.seen}) == WARM_UP + 5, (
        "a repeated input could be served from a cache"
    )
    assert 0 < timing.p20_ms <= timing.median_ms <= timing.p80_ms
    assert (timing.batch, timing.repeats) == (4, 5)
