"""Long sampling runs: cut anywhere they go on, and shared out they give the same images."""

import numpy as np
import pytest

from robuq_bench.sample import kept
from robuq_bench.train.distributed import World

SHAPE, LANE = (10, 2, 2, 3), 4


class Without(World):
    """A process of several that meets no others here."""

    def wait(self):
        pass


def drawn(seeds):
    return np.stack([np.full(SHAPE[1:], seed, np.uint8) for seed in seeds])


def run(folder, draw=drawn, stamp="a", world=None):
    work = kept.Kept(folder, stamp, SHAPE, LANE, world or World())
    work.draw(draw)
    return work


def expected():
    return np.broadcast_to(np.arange(10, dtype=np.uint8)[:, None, None, None], SHAPE)


def test_every_image_is_its_seeds_and_lanes_are_whole(tmp_path):
    seen = []

    def draw(seeds):
        seen.append(list(seeds))
        return drawn(seeds)

    work = run(tmp_path / "state", draw)
    assert np.array_equal(work.images(), expected())
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    work.clear()
    assert not (tmp_path / "state").exists()


def test_a_run_that_was_cut_goes_on(tmp_path):
    def cut(seeds):
        if seeds[0] == 4:
            raise KeyboardInterrupt
        return drawn(seeds)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "state", cut)
    seen = []

    def rest(seeds):
        seen.append(seeds[0])
        return drawn(seeds)

    assert np.array_equal(run(tmp_path / "state", rest).images(), expected())
    assert seen == [4, 8]


def test_lanes_are_shared_out(tmp_path):
    run(tmp_path / "state", world=Without(0, 2))
    seen = []
    work = run(tmp_path / "state", lambda seeds: seen.append(seeds[0]) or drawn(seeds), world=Without(1, 2))
    assert seen == [4] and np.array_equal(work.images(), expected())


def test_another_run_starts_afresh(tmp_path):
    run(tmp_path / "state")
    work = run(tmp_path / "state", lambda seeds: drawn(seeds) + 100, stamp="b")
    assert np.array_equal(work.images(), expected() + 100)


def test_too_little_disk_is_one_line_before_any_work(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(kept.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100}))
    refused(lambda: run(tmp_path / "state"), "10 images need 0.0 GB", "are free")
