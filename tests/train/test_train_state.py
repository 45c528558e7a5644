"""Resumable state: the last two kept, damage passed over, another run's state never used."""

import json

import pytest
import torch

from robuq_bench.train.state import KEPT, State, fingerprint


@pytest.fixture
def state(tmp_path) -> State:
    return State(tmp_path / "state", "run a")


def names(state: State) -> list[str]:
    return sorted(path.name for path in state.folder.iterdir())


def test_nothing_saved(state):
    assert state.latest() is None


def test_newest_state_comes_back(state):
    for step in (5, 10, 100):
        state.save(step, {"w": torch.tensor([step]), "losses": [0.5] * step})
    step, value = state.latest()
    assert step == 100 and torch.equal(value["w"], torch.tensor([100])) and value["losses"] == [0.5] * 100


def test_the_last_two_are_kept(state):
    for step in (5, 10, 15, 100_000_000):
        state.save(step, {})
    assert KEPT == 2
    assert names(state) == ["fingerprint.json", "step00000015.pt", "step100000000.pt"]
    assert state.latest()[0] == 100_000_000


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * len(b), lambda b: b[:-9]]
)
def test_damaged_newest_state_is_passed_over_for_the_one_before(state, damage):
    for step in (5, 10):
        state.save(step, {"w": torch.full((100,), float(step))})
    newest = state.folder / "step00000010.pt"
    newest.write_bytes(damage(newest.read_bytes()))
    step, value = state.latest()
    assert step == 5 and torch.equal(value["w"], torch.full((100,), 5.0))


def test_all_states_damaged(state):
    state.save(5, {})
    (state.folder / "step00000005.pt").write_bytes(b"")
    assert state.latest() is None


def test_a_pickle_that_runs_code_is_passed_over(state, tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "owned"), "w")

    torch.save(Evil(), state.folder / "step00000005.pt")
    assert state.latest() is None and not (tmp_path / "owned").exists()


def test_another_handle_of_the_same_run_goes_on(state):
    state.save(5, {"w": 1})
    assert State(state.folder, "run a").latest() == (5, {"w": 1})


def test_state_of_another_run_is_discarded(state):
    state.save(5, {"w": 1})
    other = State(state.folder, "run b")
    assert other.latest() is None and names(other) == ["fingerprint.json"]
    assert State(state.folder, "run a").latest() is None


def test_states_without_a_stamp_belong_to_nobody(state):
    """Left behind when a clearing was killed half-way: the stamp is gone, a state is not."""
    state.save(5, {"w": 1})
    (state.folder / "fingerprint.json").unlink()
    assert State(state.folder, "run b").latest() is None


def test_clear(state):
    state.save(5, {})
    state.clear()
    assert not state.folder.exists()
    state.clear()


def test_fingerprint_tells_runs_apart():
    base = {"seed": 0, "plan": {"lr": 1e-3}, "start": None}
    assert fingerprint(**base) == fingerprint(**dict(reversed(base.items())))
    assert json.loads(fingerprint(**base)) == base
    for change in ({"seed": 1}, {"plan": {"lr": 2e-3}}, {"start": "abc"}, {"more": 1}):
        assert fingerprint(**base | change) != fingerprint(**base)
