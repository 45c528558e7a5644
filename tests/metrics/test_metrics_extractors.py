import numpy as np
import pytest
import torch

from robuq_bench.errors import BenchError
from robuq_bench.metrics import build_reference, evaluate, label, load_extractor
from robuq_bench.metrics.extractors import Pixels, cosine_waves
from robuq_bench.metrics.features import Extractor, flatten_spatial

ARRAYS = ("pooled", "spatial", "probabilities")


@pytest.fixture(scope="module")
def lite0() -> Extractor:
    return load_extractor("EffNetLite0")


def colours(n: int, side: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, channels), dtype=np.uint8)


def pattern() -> np.ndarray:
    """One image with edges and ramps, written as a formula so that the golden values need no file."""
    y, x, c = np.meshgrid(np.arange(32), np.arange(32), np.arange(3), indexing="ij")
    return ((7 * x * (c + 1) + 5 * y * y + 40 * c) % 256).astype(np.uint8)[None]


def test_lite0_reproduces_the_reference_network(lite0):
    """Golden values from efficientnet-lite-pytorch 0.1.0 with the same weights and the same upsampling.

    Tolerance: folding and other kernels move features by up to 5e-6 of the largest; a wrong padding, order of
    channels or resizing by 1e-2 or more.
    """
    features = lite0.features(pattern())
    pooled, spatial, probabilities = (getattr(features, name)[0].astype(np.float64) for name in ARRAYS)
    assert pooled[[61, 103, 1112, 1143]] == pytest.approx([5.542247, 4.99758, 4.867012, 4.822257], rel=1e-4)
    assert pooled.sum() == pytest.approx(531.376324, rel=1e-4)
    golden = [-2.801405, -3.961174, -8.893485, -8.125413, 8.298268]
    assert spatial[[0, 1, 7, 56, 447]] == pytest.approx(golden, abs=1e-4 * 28.8)
    assert np.abs(spatial).sum() == pytest.approx(2630.4121, rel=1e-4)
    assert probabilities[[392, 506, 117, 646]] == pytest.approx([0.192145, 0.157113, 0.082306, 0.07126], rel=1e-3)


def test_lite0_shapes_and_types(lite0):
    features = lite0.features(colours(3))
    assert [getattr(features, name).shape for name in ARRAYS] == [(3, 1280), (3, 448), (3, 1000)]
    assert all(getattr(features, name).dtype == np.float32 for name in ARRAYS)
    assert features.source.digest.startswith("57934424")


def test_features_repeat_bit_for_bit_and_do_not_depend_on_n(lite0):
    images = colours(lite0.batch + 3)
    whole, again = lite0.features(images), lite0.features(images)
    alone, head = lite0.features(images[-1:]), lite0.features(images[:5])
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(whole, name), getattr(again, name))
        np.testing.assert_array_equal(getattr(whole, name)[:5], getattr(head, name))
        # Another place in the batch may take another path through a kernel: equal up to rounding only.
        np.testing.assert_allclose(getattr(whole, name)[-1:], getattr(alone, name), rtol=1e-4, atol=1e-4)


def test_grey_is_grey_rgb(lite0):
    grey = colours(2, channels=1)
    np.testing.assert_array_equal(lite0.features(grey).pooled, lite0.features(grey.repeat(3, axis=3)).pooled)


def test_large_images_are_shrunk_without_aliasing(lite0):
    """Every third column is white: plain resampling to a third would see white alone."""
    stripes = torch.zeros(1, 3, 384, 384, dtype=torch.uint8)
    stripes[..., 1::3] = 255
    shrunk = lite0._resized(stripes)
    assert shrunk.shape == (1, 3, 128, 128)
    assert (shrunk[..., 2:-2] - 85).abs().max() < 0.1  # the outermost columns lack neighbours


def test_progress_is_told(lite0):
    seen = []
    lite0.features(colours(lite0.batch + 1), progress=seen.append)
    assert seen == [lite0.batch, 1]


def test_tf32_settings_of_the_caller_are_left_alone():
    torch.set_float32_matmul_precision("high")
    try:
        load_extractor("Pixels").features(colours(2))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_lite0_refuses_other_weights(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(BenchError, match="not the published EfficientNet-Lite0 weights"):
        load_extractor("EffNetLite0", path)
    with pytest.raises(BenchError, match="no such weights file"):
        load_extractor("EffNetLite0", tmp_path / "nothing.pth")


@pytest.mark.parametrize(
    "images", [colours(1).astype(np.float32), colours(1)[0], colours(1, channels=2), colours(1)[:0]]
)
def test_refuses_what_is_no_image(images):
    with pytest.raises(BenchError, match="expected uint8"):
        load_extractor("Pixels").features(images)


def test_unknown_extractor():
    with pytest.raises(BenchError, match="did you mean 'EffNetLite0'"):
        load_extractor("EfNetLite0")


def test_only_inception_prints_fid():
    assert [label(m, "Inception") for m in ("FD", "sFD", "KID")] == ["FID", "sFID", "KID"]
    assert [label(m, "EffNetLite0") for m in ("FD", "sFD", "IS")] == [
        "FD-EffNetLite0", "sFD-EffNetLite0", "IS-EffNetLite0",
    ]  # fmt: skip


def test_spatial_features_are_flattened_with_channels_innermost():
    """Each value names its place: 100 row + 10 column + channel."""
    row, column, channel = torch.meshgrid(torch.arange(3), torch.arange(2), torch.arange(9), indexing="ij")
    maps = (100 * row + 10 * column + channel).permute(2, 0, 1)[None]
    flat = flatten_spatial(maps)[0].tolist()
    assert flat[:8] == [0, 1, 2, 3, 4, 5, 6, 10]
    assert flat == [100 * r + 10 * c + k for r in range(3) for c in range(2) for k in range(7)]


class TestPixels:
    def test_waves_are_orthonormal(self):
        waves = cosine_waves(8, 64)
        assert torch.allclose(waves.T @ waves, torch.eye(64, dtype=torch.float64), atol=1e-12)
        assert torch.allclose(waves[:, 0], torch.full((64,), 1 / 8, dtype=torch.float64))

    def test_known_answers(self):
        white = load_extractor("Pixels").features(np.full((1, 16, 16, 3), 255, np.uint8))
        assert white.pooled[0, 0] == pytest.approx(8)
        assert np.abs(white.pooled[0, 1:]).max() < 1e-6
        assert white.spatial == pytest.approx(np.ones((1, 16)))
        assert white.probabilities == pytest.approx(np.full((1, 10), 0.1))

    def test_is_not_called_perceptual(self):
        assert label("FD", Pixels.name) == "FD-Pixels"

    def test_takes_no_weights(self, tmp_path):
        with pytest.raises(BenchError, match="takes no weights"):
            load_extractor("Pixels", tmp_path)

    def test_noise_raises_the_distance(self, rng):
        ramps = np.clip(
            np.arange(8)[:, None] * rng.uniform(5, 30, (400, 1, 1)) + rng.normal(0, 20, (400, 8, 8)), 0, 255
        )
        images = ramps.astype(np.uint8)[..., None]
        pixels = load_extractor("Pixels")
        reference = build_reference([pixels.features(images[:200])])

        def distance(sigma):
            noisy = np.clip(images[200:] + rng.normal(0, sigma, images[200:].shape), 0, 255).astype(np.uint8)
            return evaluate(pixels.features(noisy), reference)["FD"]

        distances = [distance(sigma) for sigma in (0, 16, 48)]
        assert distances == sorted(distances)
