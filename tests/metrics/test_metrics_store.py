import sys
import tracemalloc
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from robuq_bench.errors import BenchError
from robuq_bench.metrics import build_reference, evaluate, frechet, load_extractor, neighbours, scores, store
from robuq_bench.metrics.arrays import Rows
from robuq_bench.metrics.scores import inception_score
from robuq_bench.metrics.store import Store
from robuq_bench.sample import npz
from robuq_bench.train.distributed import World

ARRAYS = ("pooled", "spatial", "probabilities")


@pytest.fixture
def images(rng, monkeypatch) -> np.ndarray:
    """95 images, which is three chunks, the last not full."""
    monkeypatch.setattr(store, "CHUNK", 40)
    return rng.integers(0, 256, (95, 8, 8, 1), dtype=np.uint8)


@pytest.fixture
def extractor():
    return load_extractor("Pixels")


def test_stored_features_are_those_in_memory_bit_for_bit(tmp_path, images, extractor):
    kept = Store(tmp_path, extractor, images, "d")
    seen = []
    kept.extract(progress=seen.append)
    stored, direct = kept.features(), extractor.features(images)
    assert (seen, len(stored), stored.source) == ([40, 40, 15], 95, direct.source)
    for name in ARRAYS:
        np.testing.assert_array_equal(np.asarray(getattr(stored, name)), getattr(direct, name))


def test_stored_features_stay_on_disk(tmp_path, images, extractor):
    kept = Store(tmp_path, extractor, images, "d")
    kept.extract()
    assert all(isinstance(part, np.memmap) for part in kept.features().pooled.parts)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_processes_merge_exactly_into_the_same_scores(tmp_path, images, extractor, count):
    reference = build_reference([extractor.features(images[::-1])])
    for rank in reversed(range(count)):
        Store(tmp_path, extractor, images, "d").extract(World(rank, count))
    merged = evaluate(Store(tmp_path, extractor, images, "d").features(), reference)
    assert merged == evaluate(extractor.features(images), reference)


def test_what_is_there_is_not_computed_again(tmp_path, images, extractor, monkeypatch):
    Store(tmp_path, extractor, images, "d").extract(World(0, 2))
    calls = []
    monkeypatch.setattr(extractor, "features", lambda x: calls.append(len(x)) or type(extractor).features(extractor, x))
    Store(tmp_path, extractor, images, "d").extract()
    assert calls == [40]  # the second of three chunks


@pytest.mark.parametrize(
    "damage", [lambda b: b[:100], lambda b: b"", lambda b: b[:900] + bytes([b[900] ^ 1]) + b[901:]]
)
def test_a_damaged_chunk_is_made_again(tmp_path, images, extractor, damage):
    kept = Store(tmp_path, extractor, images, "d")
    kept.extract()
    whole = kept.features().pooled[0:95]
    path = kept._path(1)
    path.write_bytes(damage(path.read_bytes()))
    kept.extract()
    np.testing.assert_array_equal(kept.features().pooled[0:95], whole)


def test_other_images_other_network_other_files(tmp_path, images, extractor, monkeypatch):
    folders = [Store(tmp_path, extractor, images, digest).folder for digest in ("a", "b", "a")]
    other = replace(extractor.source, protocol="resized otherwise")
    monkeypatch.setattr(type(extractor), "source", property(lambda self: other))
    folders.append(Store(tmp_path, extractor, images, "a").folder)
    assert folders[0] == folders[2]
    assert len(set(folders)) == 3


def test_missing_chunks_are_named(tmp_path, images, extractor):
    kept = Store(tmp_path, extractor, images, "d")
    kept.extract(World(0, 2))
    with pytest.raises(BenchError, match=r"1 of 3 chunks are missing \(the first is 1\); run the same command again"):
        kept.features()


def test_rows_are_their_parts(rng):
    parts = [rng.normal(size=(n, 3)).astype(np.float32) for n in (4, 0, 5, 1)]
    rows, whole = Rows(parts), np.concatenate(parts)
    assert (len(rows), rows.shape, rows.dtype) == (10, (10, 3), np.float32)
    for start in range(11):
        for stop in range(11):
            np.testing.assert_array_equal(rows[start:stop], whole[start:stop])
    np.testing.assert_array_equal(rows[:], whole)
    np.testing.assert_array_equal(np.asarray(rows, dtype=np.float64), whole.astype(np.float64))
    with pytest.raises(IndexError):
        rows[::2]


def test_memory_does_not_grow_with_the_number_of_images(tmp_path, extractor, rng, monkeypatch):
    """From images on disk to scores: only a few numbers an image may stay in memory, not its pixels or features."""
    monkeypatch.setattr(store, "CHUNK", 250)
    for module in (frechet, neighbours, scores):
        monkeypatch.setattr(module, "BLOCK", 125)
    monkeypatch.setattr(
        sys.modules["robuq_bench.metrics.evaluate"], "inception_score", partial(inception_score, split=250)
    )
    images = rng.integers(0, 256, (2000, 8, 8, 1), dtype=np.uint8)
    reference = build_reference([extractor.features(images[:250])])
    peaks = []
    for count in (1000, 2000):
        path = tmp_path / f"{count}.npz"
        np.savez(path, images[:count])
        tracemalloc.start()
        kept = Store(tmp_path, extractor, npz.open_array(path), str(count))
        kept.extract()
        evaluate(kept.features(), reference)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    per_image = (peaks[1] - peaks[0]) / 1000
    assert per_image < 100  # bytes; its pixels and features are 300
