"""Our scores against torch-fidelity's on the same features, and on the same images, where the definitions agree."""

import numpy as np
import pytest
import torch

from robuq_bench.measure.probe_parts import Images
from robuq_bench.metrics import load_extractor
from robuq_bench.metrics.frechet import Moments, frechet_distance, moments
from robuq_bench.metrics.neighbours import precision_recall
from robuq_bench.metrics.scores import inception_score, kid

torch_fidelity = pytest.importorskip("torch_fidelity")
metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
metric_isc = pytest.importorskip("torch_fidelity.metric_isc")
metric_kid = pytest.importorskip("torch_fidelity.metric_kid")
metric_prc = pytest.importorskip("torch_fidelity.metric_prc")


@pytest.fixture
def sets(rng) -> tuple[np.ndarray, np.ndarray]:
    mix = rng.normal(size=(24, 24)) / 5
    real, fake = rng.normal(size=(300, 24)) @ mix, rng.normal(0.4, 1.3, size=(300, 24)) @ mix
    return real.astype(np.float32), fake.astype(np.float32)


def test_frechet_distance(sets):
    real, fake = map(moments, sets)
    theirs = metric_fid.fid_statistics_to_metric(
        {"mu": real.mean, "sigma": real.covariance}, {"mu": fake.mean, "sigma": fake.covariance}, False
    )
    assert frechet_distance(real, fake) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)


def test_inception_score(rng):
    logits = torch.from_numpy(rng.normal(0, 2, size=(400, 10)))
    theirs = metric_isc.isc_features_to_metric(logits, splits=4, shuffle=False)
    ours = inception_score(logits.softmax(1).numpy(), split=100)
    assert ours == pytest.approx(theirs["inception_score_mean"], rel=1e-6)


def test_kid(sets):
    real, fake = sets
    features = [torch.from_numpy(s.astype(np.float64)) for s in sets]
    theirs = metric_kid.kid_features_to_metric(
        *features, kid_subsets=1, kid_subset_size=len(real), rng_seed=0, verbose=False
    )
    assert kid(fake, real).value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)


def test_precision_and_recall(sets):
    real, fake = (torch.from_numpy(s) for s in sets)
    theirs = metric_prc.prc_features_to_metric(fake, real, verbose=False)
    ours = precision_recall(real=sets[0], fake=sets[1])
    assert ours == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)


def stripes(rng, n: int, side: int = 48) -> np.ndarray:
    """Images with large even areas, unlike noise."""
    return rng.integers(0, 256, (n, 6, 1, 3), dtype=np.uint8).repeat(side // 6, axis=1).repeat(side, axis=2)


def test_from_images_to_scores(rng, inception_file):
    """The whole way, with the same images and the same weights: IS, KID, precision and recall; FID of 256 of the
    features, whose eigenvalues take theirs ten seconds for all 2048 (the GPU test has them, at full rank)."""
    fake, real = stripes(rng, 16), rng.integers(0, 256, (16, 48, 48, 3), dtype=np.uint8)
    real[:6] = stripes(rng, 6)
    theirs = torch_fidelity.calculate_metrics(
        input1=Images(fake), input2=Images(real), cuda=False, batch_size=16, save_cpu_ram=True, verbose=False,
        feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(inception_file),
        isc=True, isc_splits=4, samples_shuffle=False, kid=True, kid_subsets=1, kid_subset_size=16, prc=True,
    )  # fmt: skip
    extractor = load_extractor("InceptionStandin", inception_file)
    fake, real = extractor.features(fake), extractor.features(real)
    a, b = (np.asarray(features.pooled, dtype=np.float64) for features in (fake, real))
    few = [x[:, ::8] for x in (a, b)]
    gaussians = [Moments(x.mean(0), np.cov(x, rowvar=False), len(x)) for x in few]  # `moments` refuses so few images
    statistics = [metric_fid.fid_features_to_statistics(torch.from_numpy(x)) for x in few]
    distance = metric_fid.fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    # 16 images leave null directions, where their eigenvalues of the product err.
    assert frechet_distance(*gaussians) == pytest.approx(distance, rel=1e-5)
    near = precision_recall(real=b, fake=a)
    assert inception_score(fake.probabilities, split=4) == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    # Their kernel of float32 features is float32.
    assert kid(a, b).value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-5)
    assert near == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)
    assert near.precision != near.recall
