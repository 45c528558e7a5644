from dataclasses import replace

import numpy as np
import pytest

from robuq_bench.errors import BenchError
from robuq_bench.files import write_json
from robuq_bench.metrics import build_reference, evaluate, load_reference, save_reference


@pytest.fixture
def saved(tmp_path, make_features):
    reference = build_reference([make_features(60, seed=1)], keep=20, data="images-1")
    path = tmp_path / "reference.safetensors"
    save_reference(path, reference)
    return path, reference


def test_chunks_make_no_difference(make_features):
    whole = make_features(60, seed=1)
    once = build_reference([whole], keep=20)
    parts = build_reference((whole[i : i + 7] for i in range(0, 60, 7)), keep=20)
    assert parts.n == once.n == 60
    np.testing.assert_array_equal(parts.kept, once.kept)
    np.testing.assert_allclose(parts.spatial.covariance, once.spatial.covariance, rtol=1e-12, atol=1e-14)


def test_kept_images_are_a_sample_without_repeats(make_features):
    real = make_features(500, seed=1)
    kept = build_reference([real], keep=100).kept
    rows = [int(np.flatnonzero((real.pooled == row).all(1))[0]) for row in kept]
    assert len(set(rows)) == 100
    assert 180 < np.mean(rows) < 320  # not the head of a sorted set
    assert not np.array_equal(kept, build_reference([real], keep=100, seed=1).kept)
    assert len(build_reference([real], keep=9999).kept) == 500


def test_survives_the_disk(saved):
    path, reference = saved
    loaded = load_reference(path, source=reference.source, data="images-1")
    np.testing.assert_array_equal(loaded.pooled.covariance, reference.pooled.covariance)
    np.testing.assert_array_equal(loaded.spatial.mean, reference.spatial.mean)
    np.testing.assert_array_equal(loaded.kept, reference.kept)
    assert (loaded.n, loaded.source, loaded.data) == (60, reference.source, "images-1")
    assert loaded.pooled.mean.dtype == np.float64


def test_missing(tmp_path):
    with pytest.raises(BenchError, match="no such reference"):
        load_reference(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_truncated(saved, length):
    path, _ = saved
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(BenchError, match="delete it and run the command again"):
        load_reference(path)


def test_altered(saved):
    path, _ = saved
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(BenchError, match="altered"):
        load_reference(path)


@pytest.mark.parametrize("field", ["name", "digest", "protocol"])
def test_made_by_another_extractor(saved, make_features, field):
    path, reference = saved
    other = replace(reference.source, **{field: "other"})
    with pytest.raises(BenchError, match=f"another extractor \\({field}"):
        load_reference(path, source=other)
    fake = make_features(30, seed=2)
    with pytest.raises(BenchError, match=f"another extractor \\({field}"):
        evaluate(replace(fake, source=other), reference)


def test_made_from_other_images(saved):
    with pytest.raises(BenchError, match="other images"):
        load_reference(saved[0], data="images-2")


def test_no_chunk_and_mixed_chunks(make_features):
    with pytest.raises(BenchError, match="no images"):
        build_reference([])
    with pytest.raises(BenchError, match="another extractor"):
        build_reference([make_features(30, seed=1), make_features(30, seed=1, name="Other")])


def test_evaluate_gives_every_figure_and_its_origin(tmp_path, make_features):
    reference = build_reference([make_features(200, seed=1)], keep=150)
    row = evaluate(make_features(100, seed=2), reference)
    assert set(row) == {
        *("FD", "sFD", "IS", "KID", "KID_se", "precision", "recall"),
        *("n", "n_reference", "n_neighbours", "extractor", "digest", "protocol"),
    }
    assert (row["n"], row["n_reference"], row["n_neighbours"]) == (100, 200, 100)
    write_json(tmp_path / "row.json", row)  # plain, finite numbers only


def test_worse_images_score_worse(make_features):
    reference = build_reference([make_features(400, seed=1)])
    best = evaluate(make_features(200, seed=2), reference)
    worse = evaluate(make_features(200, seed=2, shift=2.0), reference)
    assert worse["FD"] > best["FD"] + 8 * 3
    assert worse["sFD"] > best["sFD"] + 6 * 3
    assert abs(best["KID"]) < 4 * best["KID_se"] < worse["KID"]
    assert worse["precision"] < best["precision"]


def test_a_model_without_variety_has_precision_and_no_recall(make_features):
    fake = make_features(200, seed=2)
    row = evaluate(replace(fake, pooled=fake.pooled * np.float32(0.2)), build_reference([make_features(400, seed=1)]))
    assert row["precision"] > 0.95
    assert row["recall"] < 0.2


def test_evaluate_refuses_too_few_images(make_features):
    reference = build_reference([make_features(60, seed=1)])
    with pytest.raises(BenchError, match="need at least 9"):
        evaluate(make_features(8, seed=2), reference)
