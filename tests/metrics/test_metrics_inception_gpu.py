"""The FID network on a GPU, on random weights: against its own float32, and against torch-fidelity at full rank."""

import numpy as np
import pytest
import torch

from robuq_bench.metrics import load_extractor
from robuq_bench.metrics.frechet import frechet_distance, moments
from robuq_bench.metrics.inception import InceptionStandin, torch_fidelity_network
from robuq_bench.metrics.neighbours import precision_recall
from robuq_bench.metrics.scores import inception_score, kid

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

ARRAYS = ("pooled", "spatial", "probabilities")
N = 2304  # more than the 2048 dimensions


class Float32(InceptionStandin):
    """Random weights in float32 on the GPU."""

    name = "Float32"
    halves = False


def smooth(n: int, seed: int, noise: float, side: int = 64) -> np.ndarray:
    """uint8 [n, side, side, 3]: blurred patches with some noise."""
    random = torch.Generator("cuda").manual_seed(seed)
    patches = torch.randn(n, 3, 6, 6, generator=random, device="cuda") * 40 + 128
    images = torch.nn.functional.interpolate(patches, (side, side), mode="bicubic")
    images += noise * torch.randn(images.shape, generator=random, device="cuda")
    return images.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


@pytest.fixture(scope="module")
def features(inception_file):
    """(fake, real) by the half-precision network and in float32."""
    sets = smooth(N, 1, 12), smooth(N, 2, 18)
    return [
        [extractor.features(images) for images in sets]
        for extractor in (load_extractor("InceptionStandin", inception_file, "cuda"), Float32(inception_file, "cuda"))
    ]


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("name", ARRAYS)
def test_half_precision_moves_features_by_less_than_a_thousandth(features, name):
    half, float32 = (getattr(pair[0], name) for pair in features)
    assert relative(half, float32) < 1e-3


def test_the_arithmetic_is_part_of_the_protocol(features):
    assert features[0][0].source.protocol != features[1][0].source.protocol


def test_an_image_has_the_same_features_whatever_is_beside_it(inception_file, features):
    extractor = load_extractor("InceptionStandin", inception_file, "cuda")
    images = smooth(N, 1, 12)
    shuffled = extractor.features(np.concatenate([images[300:340], images[:5]]))
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(shuffled, name)[40:], getattr(features[0][0], name)[:5])


def test_other_shapes_are_other_graphs(inception_file):
    extractor = load_extractor("InceptionStandin", inception_file, "cuda")
    small, large = smooth(5, 3, 0, side=32), smooth(5, 3, 0, side=96)
    once = extractor.features(small).pooled
    extractor.features(large)
    np.testing.assert_array_equal(extractor.features(small).pooled, once)


def test_scores_are_torch_fidelitys_at_full_rank(inception_file, features):
    """Same images, same weights, 2304 images: FID, IS, KID, precision and recall within 1e-6."""
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    metric_isc = pytest.importorskip("torch_fidelity.metric_isc")
    metric_kid = pytest.importorskip("torch_fidelity.metric_kid")
    metric_prc = pytest.importorskip("torch_fidelity.metric_prc")
    network = torch_fidelity_network(inception_file).cuda()
    flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    theirs = []
    with flags, torch.inference_mode():
        for images in (smooth(N, 1, 12), smooth(N, 2, 18)):
            batches = torch.from_numpy(images).permute(0, 3, 1, 2).split(256)
            pairs = [network(batch.cuda()) for batch in batches]
            theirs.append([torch.cat(values).cpu().double() for values in zip(*pairs, strict=True)])
    (fake, logits), (real, _) = theirs
    ours_fake, ours_real = features[1]
    fid = metric_fid.fid_statistics_to_metric(*map(metric_fid.fid_features_to_statistics, (fake, real)), False)
    got = frechet_distance(moments(ours_fake.pooled), moments(ours_real.pooled))
    assert got == pytest.approx(fid["frechet_inception_distance"], rel=1e-6)
    isc = metric_isc.isc_features_to_metric(logits, splits=2, shuffle=False)
    assert inception_score(ours_fake.probabilities, N // 2) == pytest.approx(isc["inception_score_mean"], rel=1e-6)
    theirs_kid = metric_kid.kid_features_to_metric(fake, real, kid_subsets=1, kid_subset_size=N, verbose=False)
    got = kid(ours_fake.pooled, ours_real.pooled).value
    assert got == pytest.approx(theirs_kid["kernel_inception_distance_mean"], rel=1e-6)
    prc = metric_prc.prc_features_to_metric(fake[:600].float(), real[:600].float(), verbose=False)
    got = precision_recall(real=ours_real.pooled[:600], fake=ours_fake.pooled[:600])
    assert got == pytest.approx((prc["precision"], prc["recall"]), abs=1e-6)
