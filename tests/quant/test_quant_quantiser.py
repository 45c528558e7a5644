"""Fake quantisers: levels, exactness, the published formulae, and the gradients of each estimator."""

from itertools import product
from math import pi, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import norm

from robuq_bench.config.quantiser import SCALES
from robuq_bench.config.recipe import Quantiser as Spec
from robuq_bench.quant.formats import SCALE_RULES
from robuq_bench.quant.gaussian import lloyd_max
from robuq_bench.quant.quantiser import Quantiser

WIDTHS = {"ternary": (1.58,), "midrise": (1, 2, 3, 4, 6, 8), "lloyd_max": (1, 2, 3, 4)}
PAIRS = [(format, scale) for format, scales in SCALES.items() for scale in scales if scale in SCALE_RULES]
ALL = [(format, scale, bits) for format, scale in PAIRS for bits in WIDTHS.get(format, (2, 3, 4, 6, 8))]
# Levels and cells fit each other: unlike the conditional mean, which moves the levels of given cells.
NEAREST = [case for case in ALL if case[1] != "conditional_mean"]
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
GRANULARITIES = ("token", "tensor", "group")
HUGE = 2.0**50  # squares of larger values overflow float32 sums, as a diverged run would


def quantiser(format: str, scale: str, bits: float, granularity: str = "token", **more) -> Quantiser:
    return Quantiser(Spec(format=format, scale=scale, granularity=granularity, **more), bits)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# Levels


@pytest.mark.parametrize(("format", "scale", "bits"), ALL)
def test_grid_knows_its_levels(format, scale, bits):
    grid = quantiser(format, scale, bits).grid
    assert grid.levels == (3 if format == "ternary" else 2**bits)
    assert (grid.low, grid.high) == (
        (0, grid.levels - 1) if format in ("asymmetric", "lloyd_max") else (-(grid.levels // 2), (grid.levels - 1) // 2)
    )


@pytest.mark.parametrize(("format", "scale", "bits"), [case for case in ALL if case[2] <= 4])
def test_levels_are_counted(format, scale, bits):
    row = torch.from_numpy(norm.ppf((np.arange(2**16) + 0.5) / 2**16)).float()[None]
    levels = 3 if format == "ternary" else 2**bits
    if (format, scale) == ("midtread", "absmax"):
        levels -= 1  # symmetric: the largest magnitude is the outermost positive level, so -2^(b-1) stays unused
    assert len(quantiser(format, scale, bits)(row).unique()) == levels


@pytest.mark.parametrize(("format", "scale", "bits"), ALL)
def test_fake_quantisation_is_encode_then_decode(format, scale, bits):
    for dtype, granularity, centre in product(DTYPES, GRANULARITIES, [False, True]):
        q = quantiser(format, scale, bits, granularity, centre=centre)
        x = normal(2, 3, 96, dtype=dtype) + 0.5
        scales, given = q.scale(x), x.clone()
        codes, value = q.encode(x, scales), q(x)
        assert not codes.is_floating_point()
        assert codes.min() >= q.grid.low and codes.max() <= q.grid.high
        kept = codes.clone()
        assert torch.equal(q.decode(codes, scales), value)
        assert torch.equal(codes, kept) and torch.equal(x, given)
        assert value.shape == x.shape and value.dtype == dtype


@pytest.mark.parametrize(("format", "scale", "bits"), NEAREST)
def test_each_value_goes_to_its_nearest_level(format, scale, bits):
    q = quantiser(format, scale, bits)
    x = normal(5, 64, dtype=torch.float64)
    s = q.scale(x)
    codes = torch.arange(q.grid.low, q.grid.high + 1, dtype=torch.float64)
    units = torch.tensor(lloyd_max(bits)).double() if format == "lloyd_max" else codes + 0.5 * (format == "midrise")
    levels = units * s.step + (0 if s.offset is None else s.offset)
    nearest = (x[..., None] - levels[:, None]).abs().min(-1).values
    torch.testing.assert_close((x - q(x)).abs(), nearest, rtol=0, atol=1e-6)


@given(
    x=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 24)),
        elements=st.one_of(
            st.sampled_from([0.0, 1.0, -1.0, HUGE, -HUGE, 1e-30, -1e-38, 1e-45]),
            st.floats(-HUGE, HUGE, width=32),
        ),
        fill=st.sampled_from([0.0, 3.0, -HUGE, 1e-40]),
    ),
    case=st.sampled_from(ALL),
    granularity=st.sampled_from(GRANULARITIES),
    centre=st.booleans(),
)
def test_extreme_values_stay_finite_and_on_the_grid(x, case, granularity, centre):
    q = quantiser(*case, granularity, centre=centre)
    x = torch.from_numpy(x)
    s = q.scale(x)
    codes, value = q.encode(x, s), q(x)
    assert torch.isfinite(value).all()
    assert codes.min() >= q.grid.low and codes.max() <= q.grid.high
    assert torch.equal(q.decode(codes, s), value)


@pytest.mark.parametrize(("format", "scale", "bits"), ALL)
def test_zeros_stay_zero(format, scale, bits):
    assert torch.equal(quantiser(format, scale, bits)(torch.zeros(2, 8)), torch.zeros(2, 8))


@given(power=st.integers(-20, 40), case=st.sampled_from(ALL))
def test_scales_with_its_input_exactly(power, case):
    x = normal(3, 40)
    assert torch.equal(quantiser(*case)(x * 2.0**power), quantiser(*case)(x) * 2.0**power)


@pytest.mark.parametrize("scale", ["minmax", "mean_abs"])
def test_centred_quantiser_follows_a_shift(scale):
    q = quantiser("asymmetric" if scale == "minmax" else "midtread", scale, 4, centre=True)
    x = normal(4, 256, dtype=torch.float64)
    torch.testing.assert_close(q(x + 100), q(x) + 100, rtol=0, atol=1e-10)
    s = q.scale(x + 100)
    assert s.offset is not None and (s.offset > 90).all()


def test_centring_is_subtracting_the_mean_first():
    x = normal(4, 256, dtype=torch.float64) + 2
    mean = x.mean(-1, keepdim=True)
    plain, centred = (quantiser("midrise", "rms", 3, centre=c) for c in (False, True))
    torch.testing.assert_close(centred(x), plain(x - mean) + mean, rtol=0, atol=1e-12)
    assert (x - centred(x)).square().mean() < 0.5 * (x - plain(x)).square().mean()


# Granularity


@pytest.mark.parametrize(("format", "scale", "bits"), [c for c in ALL if c[2] in (1.58, 3)])
def test_each_vector_has_its_own_scale(format, scale, bits):
    x = normal(2, 5, 32) * torch.logspace(-2, 2, 5)[:, None]
    for granularity in ("token", "channel"):
        q = quantiser(format, scale, bits, granularity)
        assert torch.equal(q(x), torch.stack([torch.stack([q(token) for token in part]) for part in x]))


@pytest.mark.parametrize(("format", "scale", "bits"), [c for c in ALL if c[2] in (1.58, 3)])
def test_a_tensor_has_one_scale(format, scale, bits):
    x = normal(2, 5, 32) * torch.logspace(-2, 2, 5)[:, None]
    per_tensor, per_row = (quantiser(format, scale, bits, g) for g in ("tensor", "token"))
    assert torch.equal(per_tensor(x), per_row(x.reshape(1, -1)).reshape(x.shape))
    assert not torch.equal(per_tensor(x), per_row(x))


@pytest.mark.parametrize(("n", "group"), [(192, 64), (48, 16), (40, 8)])
@pytest.mark.parametrize(("format", "scale", "bits"), [("ternary", "absmean", 1.58), ("asymmetric", "minmax", 3)])
def test_a_group_of_64_neighbours_has_its_own_scale(format, scale, bits, n, group):
    """Where 64 does not divide the width, the largest power of two that does."""
    x = normal(2, 5, n) * torch.logspace(-2, 2, n)
    grouped = quantiser(format, scale, bits, "group")
    expected = quantiser(format, scale, bits)(x.reshape(2, 5, -1, group)).reshape(x.shape)
    assert torch.equal(grouped(x), expected)
    s = grouped.scale(x)
    codes = grouped.encode(x, s)
    assert codes.shape == x.shape and torch.equal(grouped.decode(codes, s), grouped(x))


# The published formulae, written out again


def test_ternary_conditional_mean():
    """paper-facts 1.2."""
    w = normal(7, 50).numpy()
    expected = np.empty_like(w)
    for row, out in zip(w, expected, strict=True):
        kept = np.abs(row) >= 0.5 * np.abs(row).mean()
        out[:] = np.sign(row) * kept * np.abs(row)[kept].mean()
    actual = quantiser("ternary", "conditional_mean", 1.58, "channel")(torch.from_numpy(w))
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=0)


def test_bitnet_weights():
    """BitNet b1.58: alpha RoundClip(W / alpha, -1, 1) with alpha = mean|W| of the tensor (paper-facts 5)."""
    w = normal(7, 50).numpy()
    alpha = np.abs(w).mean()
    actual = quantiser("ternary", "absmean", 1.58, "tensor")(torch.from_numpy(w))
    np.testing.assert_allclose(actual, alpha * np.clip(np.round(w / alpha), -1, 1), rtol=1e-6, atol=0)


def test_bitnet_a4_activations():
    """BitNet a4.8: (beta / sqrt 7) RoundClip(sqrt 7 X / beta, -8, 7), beta = mean|X| (paper-facts 5)."""
    x = normal(6, 64, dtype=torch.float64).numpy() * 3
    beta = np.abs(x).mean(-1, keepdims=True)
    expected = beta / sqrt(7) * np.clip(np.round(sqrt(7) * x / beta), -8, 7)
    np.testing.assert_allclose(quantiser("midtread", "absmean", 4)(torch.from_numpy(x)), expected, rtol=1e-12)


def test_int8_absmax_activations():
    """(gamma / 127) RoundClip(127 X / gamma, -128, 127) with gamma = max|X| (paper-facts 5)."""
    x = normal(6, 64, dtype=torch.float64).numpy()
    gamma = np.abs(x).max(-1, keepdims=True)
    expected = gamma / 127 * np.clip(np.round(127 * x / gamma), -128, 127)
    np.testing.assert_allclose(quantiser("midtread", "absmax", 8)(torch.from_numpy(x)), expected, rtol=1e-12)


def test_min_max_activations():
    x = normal(6, 64, dtype=torch.float64).numpy() + 1
    low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    expected = np.round((x - low) / (high - low) * 3) * (high - low) / 3 + low
    np.testing.assert_allclose(quantiser("asymmetric", "minmax", 2)(torch.from_numpy(x)), expected, rtol=1e-12)


@pytest.mark.parametrize(("bits", "step"), [(2, 0.9956867), (3, 0.5860194), (4, 0.3352006)])
@pytest.mark.parametrize("centre", [True, False])
def test_robust_quantiser_of_the_author_adjacent_code(bits, step, centre):
    """paper-facts 1.5, both versions: clip, round to mid-tread levels with the mid-rise step."""
    x = normal(6, 200, dtype=torch.float64).numpy() + 0.3
    mean = x.mean(-1, keepdims=True) if centre else 0.0
    sigma = np.abs(x - mean).mean(-1, keepdims=True) * sqrt(pi / 2)
    z = np.clip((x - mean) / sigma, -(2 ** (bits - 1)) * step, 2 ** (bits - 1) * step)
    codes = np.clip(np.round(z / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    q = quantiser("midtread", "mean_abs", bits, centre=centre, step="midrise")
    np.testing.assert_allclose(q(torch.from_numpy(x)), codes * step * sigma + mean, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("bits", "step"), [(2, 0.9956867), (3, 0.5860194), (4, 0.3352006)])
def test_robust_quantiser_with_mid_rise_levels(bits, step):
    x = normal(6, 200, dtype=torch.float64).numpy()
    sigma = np.abs(x).mean(-1, keepdims=True) * sqrt(pi / 2)
    half = 2 ** (bits - 1)
    levels = (np.arange(-half, half) + 0.5) * step
    nearest = levels[np.abs(x[..., None] / sigma[..., None] - levels).argmin(-1)]
    actual = quantiser("midrise", "mean_abs", bits)(torch.from_numpy(x))
    np.testing.assert_allclose(actual, nearest * sigma, rtol=1e-10)


@pytest.mark.parametrize(("format", "bits"), [("midrise", 2), ("midtread", 3), ("lloyd_max", 2)])
def test_a_stretched_grid_has_its_levels_further_apart(format, bits):
    x = normal(4, 512, dtype=torch.float64)
    plain, stretched = (quantiser(format, "rms", bits, stretch=stretch)(x) for stretch in (1, 0.5))
    torch.testing.assert_close(stretched.unique(), 0.5 * plain.unique())
    assert (x - stretched).square().mean() > (x - plain).square().mean(), "the plain step is the best one"


@pytest.mark.parametrize(("bits", "alpha"), [(1, 0.79788), (2, 1.49353), (3, 2.05107), (4, 2.51393)])
def test_quest(bits, alpha):
    """paper-facts 4b, as in IST-DASLab/QuEST: clip to alpha rms, round to odd multiples of half a step."""
    x = normal(6, 200, dtype=torch.float64).numpy()
    clip = alpha * np.sqrt((x**2).mean(-1, keepdims=True))
    step = 2 * clip / (2**bits - 1)
    expected = np.round(np.clip(x, -clip, clip) / step + 0.5) * step - step / 2
    actual = quantiser("midrise", "rms", bits)(torch.from_numpy(x))
    np.testing.assert_allclose(actual, expected, rtol=4e-5)


@given(seed=st.integers(0, 999), n=st.integers(1, 12))
def test_least_squares_ternary_beats_every_mask(seed, n):
    """No choice of kept entries, each set at its own best scale, has a smaller error."""
    w = normal(1, n, seed=seed, dtype=torch.float64)
    value = quantiser("ternary", "least_squares", 1.58)(w)
    size = w.abs().sort(descending=True).values[0]
    best = min(size[k:].square().sum() + (size[:k] - size[:k].mean()).square().sum() for k in range(1, n + 1))
    torch.testing.assert_close((w - value).square().sum(), best, rtol=1e-12, atol=1e-12)


# Gradients


def gradient(q: Quantiser, x: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    q(x).backward(outer)
    return x.grad


@pytest.mark.parametrize(("format", "scale", "bits"), ALL)
def test_straight_through_passes_the_gradient_exactly(format, scale, bits):
    for dtype, granularity in product(DTYPES, GRANULARITIES):
        x, outer = normal(2, 3, 16, dtype=dtype), normal(2, 3, 16, seed=1, dtype=dtype)
        actual = gradient(quantiser(format, scale, bits, granularity), x, outer)
        assert torch.equal(actual, outer) and actual.dtype == dtype


def test_trust_mask_by_hand():
    """rms 1, two bits: levels +-0.4978 and +-1.4935, trusted up to half a step beyond: |x| <= 1.9914."""
    rest = sqrt((8 - 2.0**2 - 1.98**2) / 6)
    x = torch.tensor([[2.0, -1.98, rest, -rest, rest, rest, -rest, rest]])
    outer = torch.arange(1.0, 9.0)[None]
    expected = outer.clone()
    expected[0, 0] = 0
    assert torch.equal(gradient(quantiser("midrise", "rms", 2, estimator="trust"), x, outer), expected)


def test_trust_mask_of_ternary_by_hand():
    """rms 1, step 1.2240: levels 0 and +-1.2240, trusted up to |x| <= 1.8360."""
    rest = sqrt((8 - 1.83**2 - 1.84**2) / 6)
    x = torch.tensor([[1.83, -1.84, rest, -rest, rest, rest, -rest, rest]])
    expected = torch.tensor([[1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    actual = gradient(quantiser("ternary", "rms", 1.58, estimator="trust"), x, torch.ones(1, 8))
    assert torch.equal(actual, expected)


def test_trust_looks_at_the_error_and_not_at_the_cell():
    """Absmean ternary, mean 1: 2 lies 1 above the level 1, more than half a step; 1.4 does not."""
    x = torch.tensor([[2.0, 1.4, 0.4, 0.2]])
    actual = gradient(quantiser("ternary", "absmean", 1.58, estimator="trust"), x, torch.ones(1, 4))
    assert torch.equal(actual, torch.tensor([[0.0, 1.0, 1.0, 1.0]]))


def test_trust_measures_in_steps_where_the_scale_was_refitted():
    """Conditional mean: mean 1.1, kept {3, 1}, scale 2: errors of 1, which is half a step, are trusted."""
    x = torch.tensor([[3.0, -1.0, 0.2, 0.2]])
    q = quantiser("ternary", "conditional_mean", 1.58, estimator="trust")
    assert torch.equal(q(x), torch.tensor([[2.0, -2.0, 0.0, 0.0]]))
    assert torch.equal(gradient(q, x, torch.ones(1, 4)), torch.ones(1, 4))


def test_clipped_mask_by_hand():
    """Mid-tread absmean at two bits, mean 1: levels -2 ... 1, so gradients pass in [-2.5, 1.5]."""
    x = torch.tensor([[1.6, 1.4, 0.5, 0.0, -2.4, -0.1]])
    assert x.abs().mean() == 1
    actual = gradient(quantiser("midtread", "absmean", 2, estimator="clipped"), x, torch.full((1, 6), 2.0))
    assert torch.equal(actual, torch.tensor([[0.0, 2.0, 2.0, 2.0, 2.0, 2.0]]))
    x = torch.tensor([[-2.6, 0.2, 0.2]])
    actual = gradient(quantiser("midtread", "absmean", 2, estimator="clipped"), x, torch.ones(1, 3))
    assert torch.equal(actual, torch.tensor([[0.0, 1.0, 1.0]]))


@given(
    case=st.sampled_from([c for c in ALL if c[1] in ("rms", "mean_abs") and c[0] != "lloyd_max"]),
    seed=st.integers(0, 99),
)
def test_trusted_is_unclipped_where_levels_fit_their_cells(case, seed):
    x, outer = normal(4, 64, seed=seed), normal(4, 64, seed=1)
    trust, clipped = (gradient(quantiser(*case, estimator=e), x, outer) for e in ("trust", "clipped"))
    assert torch.equal(trust, clipped)
    assert ((trust == outer) | (trust == 0)).all()


@pytest.mark.parametrize(("bits", "estimator"), list(product([2, 4], ["trust", "clipped"])))
def test_min_max_clips_nothing(bits, estimator):
    x, outer = normal(4, 64), normal(4, 64, seed=1)
    assert torch.equal(gradient(quantiser("asymmetric", "minmax", bits, estimator=estimator), x, outer), outer)
