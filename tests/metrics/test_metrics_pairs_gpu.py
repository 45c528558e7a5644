import numpy as np
import pytest
import torch

from robuq_bench.errors import BenchError
from robuq_bench.metrics import build_reference
from robuq_bench.metrics.evaluate import pair_scores

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def test_pairs_on_a_gpu_are_those_on_the_cpu(make_features):
    """float64 on both, so only the order of sums differs."""
    reference = build_reference([make_features(5000, seed=1)])
    fake = make_features(4500, seed=2, shift=0.1)
    expected = pair_scores(fake, reference)
    assert pair_scores(fake, reference, "cuda") == pytest.approx(expected, rel=1e-9)


def test_a_gpu_refuses_features_that_are_not_finite(make_features):
    reference, fake = build_reference([make_features(60, seed=1)]), make_features(50, seed=2)
    fake.pooled[3, 1] = np.nan
    with pytest.raises(BenchError, match="not finite"):
        pair_scores(fake, reference, "cuda")
