"""The FID network on random weights in torch-fidelity's format: our machines have no published ones."""

from pathlib import Path

import numpy as np
import pytest
import torch

from robuq_bench.errors import BenchError
from robuq_bench.metrics import label, load_extractor
from robuq_bench.metrics.inception import HalfInception, resize, torch_fidelity_network

interpolation = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
ARRAYS = ("pooled", "spatial", "probabilities")


def colours(n: int, side: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, channels), dtype=np.uint8)


@pytest.fixture(scope="module")
def features(inception_file):
    """Of 20 images: more than one batch, and the last one not full."""
    return load_extractor("InceptionStandin", inception_file).features(colours(20))


def test_features_are_torch_fidelitys_bit_for_bit(inception_file, features):
    network = torch_fidelity_network(inception_file)
    with torch.inference_mode():
        pooled, logits = network(torch.from_numpy(colours(16)).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(features.pooled[:16], pooled.numpy())
    np.testing.assert_array_equal(features.probabilities[:16], logits.softmax(1).numpy())


def test_spatial_features_are_seven_channels_of_the_first_branch_in_nhwc_order(inception_file, features):
    extractor = load_extractor("InceptionStandin", inception_file)
    inputs = []
    network = extractor._compute.network
    network.Mixed_6d.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    extractor.features(colours(2))
    branch = network.Mixed_6d.branch1x1
    maps = torch.relu(branch.bn(branch.conv(inputs[0])))[:2]
    assert maps.shape == (2, 192, 17, 17)
    expected = maps[:, :7].permute(0, 2, 3, 1).reshape(2, 2023).numpy()
    np.testing.assert_allclose(features.spatial[:2], expected, rtol=1e-5, atol=1e-6)


def test_logits_have_no_bias(inception_file, features):
    classes = torch_fidelity_network(inception_file).fc.weight
    logits = torch.from_numpy(features.pooled) @ classes.T
    np.testing.assert_allclose(features.probabilities, logits.softmax(1).numpy(), rtol=1e-4)


def test_shapes_and_types(features):
    assert [getattr(features, name).shape for name in ARRAYS] == [(20, 2048), (20, 2023), (20, 1008)]
    assert all(getattr(features, name).dtype == np.float32 for name in ARRAYS)


def test_an_image_has_the_same_features_whatever_is_beside_it(inception_file, features):
    extractor = load_extractor("InceptionStandin", inception_file)
    head = extractor.features(colours(20)[:3])
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(head, name), getattr(features, name)[:3])
    extractor.batch = 4
    other = extractor.features(colours(20)[:6])
    for name in ARRAYS:  # another batch size may take another path through a kernel
        np.testing.assert_allclose(getattr(other, name), getattr(features, name)[:6], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (256, 256), (299, 299), (512, 300), (1, 7)])
def test_resizing_is_tensorflows_bit_for_bit(height, width):
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 3, height, width))).float()
    theirs = interpolation.interpolate_bilinear_2d_like_tensorflow1x(images, size=(299, 299), align_corners=False)
    assert torch.equal(resize(images, 299), theirs)


def test_resizing_has_no_half_pixel_shift():
    """TensorFlow 1 puts output pixel i at i · old / new; PyTorch's own would give 0, 0.25, 0.75, 1."""
    ramp = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    assert resize(ramp, 4)[0, 0, 0].tolist() == [0, 0.5, 1, 1]


def test_half_precision_network_is_the_same_function(inception_file, features):
    """float16 on a CPU, where sums are rounded otherwise: 1e-3 of the features is what the GPU test asks as well."""
    network = HalfInception(torch_fidelity_network(inception_file))
    with torch.inference_mode():
        pooled, maps, logits = network(torch.from_numpy(colours(20)[:4]).permute(0, 3, 1, 2))
    assert relative(pooled.numpy(), features.pooled[:4]) < 1e-3
    assert relative(maps[:, :7].permute(0, 2, 3, 1).flatten(1).float().numpy(), features.spatial[:4]) < 1e-3
    assert relative(logits.softmax(1).numpy(), features.probabilities[:4]) < 1e-3


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def test_only_the_published_weights_may_give_fid(inception_file):
    with pytest.raises(BenchError, match=r"not torch-fidelity's weights-inception-2015-12-05-6726825d\.pth"):
        load_extractor("Inception", inception_file)
    assert [label("FD", name) for name in ("Inception", "InceptionFloat32", "InceptionStandin")] == [
        "FID", "FID", "FD-InceptionStandin",
    ]  # fmt: skip


def test_the_protocol_tells_the_arithmetic(inception_file):
    assert "float32;" in load_extractor("InceptionStandin", inception_file).protocol


def test_needs_a_path():
    with pytest.raises(BenchError, match=r"set evaluate\.weights to your copy"):
        load_extractor("Inception")
    with pytest.raises(BenchError, match="no such weights file"):
        load_extractor("Inception", "nothing.pth")


def test_runs_no_code_from_the_file(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"fc.weight": Trap()}, tmp_path / "weights.pth")
    with pytest.raises(BenchError, match="not a safe file of weights"):
        load_extractor("Inception", tmp_path / "weights.pth")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"not weights at all"])
def test_damaged(tmp_path, content):
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(BenchError, match="not a safe file of weights"):
        load_extractor("Inception", tmp_path / "weights.pth")


def test_weights_of_another_network(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "weights.pth")
    with pytest.raises(BenchError, match="not torch-fidelity's Inception weights"):
        load_extractor("InceptionStandin", tmp_path / "weights.pth")
