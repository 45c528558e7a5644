"""Our scores against torch-fidelity's on the same features, where the definitions agree."""

import numpy as np
import pytest
import torch

from robuq_bench.metrics.frechet import frechet_distance, moments
from robuq_bench.metrics.neighbours import precision_recall
from robuq_bench.metrics.scores import inception_score, kid

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
    ours = inception_score(logits.softmax(1).numpy(), splits=4)
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
