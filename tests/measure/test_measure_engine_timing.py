"""How calls are timed, on a clock of its own."""

import pytest
import torch

from robuq_bench.measure import engine_timing
from robuq_bench.measure.engine_timing import call_times


@pytest.fixture
def clock(monkeypatch):
    """[milliseconds that have passed]."""
    now = [0.0]

    class Event:
        def __init__(self, enable_timing):
            pass

        def record(self):
            self.at = now[0]

        def elapsed_time(self, other):
            return other.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return now


def test_what_is_slow_after_a_pause_does_not_count(clock):
    turns = []

    def call(turn):
        turns.append(turn)
        clock[0] += 2.0 if clock[0] < 200 else 1.0

    times = call_times(call, repeats=30, most_seconds=2.0)
    assert (times.median_ms, times.p80_ms, times.min_ms, times.repeats) == (1.0, 1.0, 1.0, 30)
    assert turns[:4] == [0, 1, 0, 1] and turns[2:] == list(range(len(turns) - 2))


def test_long_calls_are_few_and_short_ones_end(clock):
    def call(milliseconds):
        clock[0] += milliseconds

    assert call_times(lambda turn: call(1000.0), repeats=30, most_seconds=2.0).repeats == 5
    before = clock[0]
    call_times(lambda turn: call(0.001), repeats=30, most_seconds=2.0)
    assert (clock[0] - before) / 0.001 < engine_timing.MOST_WARM + 40
