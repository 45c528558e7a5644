"""The choice of tiles, without a GPU: the rule, the file of measurements, and what is asked first."""

from dataclasses import replace

import pytest
import torch

from robuq_bench.engine.kernels import choice, jit
from robuq_bench.engine.kernels.choice import Choice, Shape
from robuq_bench.engine.kernels.tiles import MmaTile, SingleTile, StreamTile

HOPPER = ("sm_90a", 132, 232448)
DEVICE = torch.device("cpu")  # stands for a GPU: `gpu` replaces all that would ask it


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    facts = {"device": "some GPU"}
    monkeypatch.setenv("ROBUQ_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(choice, "key", lambda device: facts)
    monkeypatch.setattr(choice, "limits", lambda device: HOPPER[1:])
    monkeypatch.setattr(jit, "architecture", lambda device: HOPPER[0])
    choice.choices.cache_clear()
    yield facts
    choice.choices.cache_clear()


@pytest.mark.parametrize(("m", "expected"), [(1, 64), (64, 64), (65, 128), (512, 512), (513, 1024), (99999, 16384)])
def test_tokens_are_counted_in_powers_of_two(m, expected):
    assert choice.bucket(m) == expected


def test_what_was_measured_goes_before_the_rule(gpu):
    rule = choice.tile_for(DEVICE, 500, 3456, 1152, 2)
    assert "by rule" in choice.explain(DEVICE, 500, 3456, 1152, 2)
    measured = StreamTile(2, 1, 3, 2)
    assert measured != rule
    kept = Choice(Shape(512, 3456, 1152, 2), measured, {str(measured): 5.0, "other": 6.0, "int8": 9.0}, 1.5)
    choice.keep(DEVICE, [kept])
    assert choice.tile_for(DEVICE, 500, 3456, 1152, 2) == measured
    assert "measured" in choice.explain(DEVICE, 500, 3456, 1152, 2)
    assert choice.tile_for(DEVICE, 513, 3456, 1152, 2) != measured  # another bucket
    assert choice.tile_for(DEVICE, 500, 3456, 1152, 3) == rule  # other bits
    assert not kept.int8_wins and replace(kept, us=kept.us | {"int8": 4.0}).int8_wins


def test_measurements_come_back_from_disk_and_are_added_to(gpu):
    tiles = (MmaTile(128, 2, 9, 3), SingleTile(128, 2, 2), StreamTile(3, 1, 9, 3, turns=True))
    made = [Choice(Shape(64 << i, 128, 256, 1), tile, {str(tile): 1.0}, 0.5) for i, tile in enumerate(tiles)]
    choice.keep(DEVICE, made[:2])
    choice.keep(DEVICE, made[2:])
    choice.choices.cache_clear()  # as a new process would
    assert list(choice.choices(DEVICE).values()) == made


def test_other_kernels_or_drivers_start_anew(gpu):
    tile = MmaTile(128, 2, 9, 3)
    choice.keep(DEVICE, [Choice(Shape(64, 128, 256, 1), tile, {str(tile): 1.0}, 0.5)])
    gpu["driver"] = "another"
    choice.choices.cache_clear()
    assert choice.choices(DEVICE) == {}


@pytest.mark.parametrize("damage", ["", "{", '{"choices": [{"shape": {}}]}', '{"choices": 3}', "[]"])
def test_a_damaged_file_counts_as_none(gpu, damage):
    choice.path(DEVICE).write_text(damage)
    assert choice.choices(DEVICE) == {}


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("bits", [1, 4])
@pytest.mark.parametrize("k", [128, 1152, 4608])
def test_candidates_differ_and_fit(arch, bits, k):
    tiles = choice.candidates(arch, 1152, k, bits, HOPPER[2])
    assert tiles and len(set(tiles)) == len(tiles)
    assert all(tile.shared_bytes(k // 128, bits) < HOPPER[2] for tile in tiles)
    assert arch == "sm_90a" or {type(tile) for tile in tiles} == {MmaTile}


@pytest.mark.parametrize(("bits", "k", "turns"), [(2, 1152, True), (4, 1152, False), (2, 4608, False)])
def test_streams_of_a_large_output_take_turns_where_that_was_faster(bits, k, turns):
    tile = choice.default_tile(HOPPER[0], 16384, 4608, k, bits, *HOPPER[1:])
    assert isinstance(tile, StreamTile) and tile.turns == turns


@pytest.mark.parametrize(("m", "n", "wide"), [(512, 4608, 128), (512, 3456, 64), (256, 4608, 64), (2048, 1152, 64)])
def test_few_tokens_of_fc1_come_in_wide_tiles(m, n, wide):
    """Where five narrow blocks would share a multiprocessor, their sums for fc2 hold each other up."""
    tile = choice.default_tile("sm_90a", m, n, 1152, 2, 132, 232448)
    assert isinstance(tile, SingleTile) and tile.bn == wide
