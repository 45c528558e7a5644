"""ADM's files, on stand-ins with the keys, types and layout of the published ones."""

from dataclasses import replace

import numpy as np
import pytest

from robuq_bench.errors import BenchError
from robuq_bench.metrics import evaluate, load_extractor, load_reference, save_reference
from robuq_bench.metrics.adm import AdmFile, save_for_adm
from robuq_bench.metrics.frechet import frechet_distance, moments


@pytest.fixture(scope="module")
def extractor():
    return load_extractor("Pixels")


@pytest.fixture
def images(rng) -> np.ndarray:
    return rng.integers(0, 256, (100, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def arrays(images, extractor, rng) -> dict[str, np.ndarray]:
    """Moments of more images than are in the file, as in the published ones."""
    whole = extractor.features(np.concatenate([images, rng.integers(0, 256, (300, 8, 8, 3), dtype=np.uint8)]))
    pooled, spatial = moments(whole.pooled), moments(whole.spatial)
    return {
        "arr_0": images,
        "mu": pooled.mean,
        "sigma": pooled.covariance,
        "mu_s": spatial.mean,
        "sigma_s": spatial.covariance,
    }


@pytest.fixture
def adm(tmp_path, arrays):
    def write(save=np.savez, without=(), **changes):
        kept = {name: value for name, value in (arrays | changes).items() if name not in without}
        save(tmp_path / "adm.npz", **kept)
        return AdmFile(tmp_path / "adm.npz")

    return write


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_distances_are_to_the_moments_and_the_rest_to_the_images(adm, arrays, extractor, rng, save):
    reference = adm(save).reduced(extractor.features).reference
    fake = extractor.features(rng.integers(0, 200, (80, 8, 8, 3), dtype=np.uint8))
    row = evaluate(fake, reference)
    assert row["FD"] == frechet_distance(moments(fake.pooled), AdmFile(adm().path).pooled)
    shift = fake.spatial.astype(np.float64).mean(0) - arrays["mu_s"]
    assert row["sFD"] > shift @ shift
    np.testing.assert_array_equal(reference.kept, extractor.features(arrays["arr_0"]).pooled)
    assert (row["n"], row["n_reference"], row["n_neighbours"]) == (80, None, 80)


def test_the_floor_is_half_of_the_images_against_the_other(adm, extractor, images):
    """No image may be compared with itself."""
    reduced = adm().reduced(extractor.features)
    floor = evaluate(reduced.held_out, reduced.against)
    first_half = replace(reduced.reference, kept=extractor.features(images[:50]).pooled)
    expected = evaluate(extractor.features(images[50:]), first_half)
    for name in ("FD", "sFD", "IS", "KID", "precision", "recall"):
        assert floor[name] == pytest.approx(expected[name], rel=1e-6), name
    assert (floor["n"], floor["n_neighbours"]) == (50, 50)


def test_survives_the_disk(adm, extractor, tmp_path):
    reference = adm().reduced(extractor.features).reference
    save_reference(tmp_path / "r.safetensors", reference)
    loaded = load_reference(tmp_path / "r.safetensors", extractor.source, AdmFile(adm().path).digest)
    assert loaded.n is None
    np.testing.assert_array_equal(loaded.pooled.covariance, reference.pooled.covariance)


@pytest.mark.parametrize(
    ("without", "message"),
    [
        (("mu", "sigma", "mu_s", "sigma_s"), r"no moments \(mu, sigma, mu_s, sigma_s missing\)"),
        (("sigma_s",), r"no moments \(sigma_s missing\)"),
        (("arr_0",), r"no images \(arr_0\)"),
    ],
)
def test_what_is_missing_is_named(adm, without, message):
    with pytest.raises(BenchError, match=message):
        adm(without=without)


def test_damaged_moments_are_refused(adm, arrays):
    with pytest.raises(BenchError, match=r"mu or sigma is not finite"):
        adm(mu=arrays["mu"] * np.nan)
    with pytest.raises(BenchError, match="sigma_s is not symmetric"):
        adm(sigma_s=np.triu(arrays["sigma_s"]))
    with pytest.raises(BenchError, match="are no mean and covariance"):
        adm(sigma=arrays["sigma"][:-1])


def test_a_truncated_file_is_refused(adm, tmp_path):
    path = adm().path
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BenchError, match=r"adm\.npz: truncated"):
        AdmFile(path)
    with pytest.raises(BenchError, match="no such reference"):
        AdmFile(tmp_path / "nothing.npz")


def test_moments_of_another_network_are_refused(adm, extractor):
    file = adm(mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(BenchError, match="pooled moments of 2048 dimensions, but Pixels gives 32"):
        file.reduced(extractor.features)


def test_samples_for_adms_evaluator(tmp_path, rng):
    """Its reader wants one array, arr_0, in C order, uint8 NHWC with three channels."""
    grey = rng.integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    save_for_adm(tmp_path / "samples.npz", grey)
    with np.load(tmp_path / "samples.npz") as file:
        assert file.files == ["arr_0"]
        array = file["arr_0"]
    assert (array.dtype, array.shape, array.flags.c_contiguous) == (np.uint8, (5, 8, 8, 3), True)
    for channel in range(3):
        np.testing.assert_array_equal(array[..., channel], grey[..., 0])
