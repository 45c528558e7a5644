"""Every constant of the Gaussian grids, derived again from the exact mean squared error of N(0, 1)."""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm

from robuq_bench.config.recipe import Quantiser as Spec
from robuq_bench.quant import gaussian
from robuq_bench.quant.quantiser import Quantiser

CONSTANTS = [(format, bits) for format, steps in gaussian.STEPS.items() for bits in steps]


def codes(format: str, bits: float) -> np.ndarray:
    """Levels in units of the step."""
    if format == "ternary":
        return np.array([-1.0, 0.0, 1.0])
    whole = np.arange(-(2 ** (bits - 1)), 2 ** (bits - 1), dtype=float)
    return whole + 0.5 if format == "midrise" else whole


def moments(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integrals of 1, x and x^2 under N(0, 1) over each cell."""
    density = norm.pdf(edges)
    inner = np.where(np.isinf(edges), 0.0, edges) * density
    mass = np.diff(norm.cdf(edges))
    return mass, -np.diff(density), mass - np.diff(inner)


def cells(levels: np.ndarray) -> np.ndarray:
    """Edges of the nearest-level cells."""
    return np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])


def mse(levels: np.ndarray) -> float:
    """E (x - q(x))^2 for x ~ N(0, 1) and the nearest level."""
    mass, first, second = moments(cells(levels))
    return float((second - 2 * levels * first + levels**2 * mass).sum())


def slope(step: float, format: str, bits: float) -> float:
    """Half the derivative of the MSE by the step (moving edges add nothing: both neighbours are as near)."""
    levels = codes(format, bits)
    mass, first, _ = moments(cells(levels * step))
    return float((levels * (levels * step * mass - first)).sum())


@pytest.mark.parametrize(("format", "bits"), CONSTANTS)
def test_step_minimises_the_exact_error(format, bits):
    constant = gaussian.STEPS[format][bits]
    best = brentq(slope, 0.8 * constant, 1.25 * constant, args=(format, bits), xtol=1e-12)
    assert constant == pytest.approx(best, abs=1e-6)
    levels = codes(format, bits)
    assert mse(levels * constant) < min(mse(levels * constant * 0.99), mse(levels * constant * 1.01))


@pytest.mark.parametrize(
    ("format", "bits", "table", "expected"),
    [
        ("midrise", 1, "own", 0.36338),
        ("midrise", 2, "own", 0.11885),
        ("midrise", 3, "own", 0.03744),
        ("midrise", 4, "own", 0.01154),
        ("midtread", 2, "midrise", 0.15035),  # the trap of paper-facts 1.5
        ("midtread", 3, "midrise", 0.04077),
        ("midtread", 4, "midrise", 0.01187),
        ("midtread", 2, "own", 0.14943),
        ("midtread", 3, "own", 0.04064),
        ("midtread", 4, "own", 0.01186),
        ("ternary", 1.58, "own", 0.19017),
    ],
)
def test_error_of_each_grid(format, bits, table, expected):
    assert mse(codes(format, bits) * gaussian.step(format, bits, table)) == pytest.approx(expected, abs=6e-6)


@pytest.mark.parametrize(("bits", "alpha"), [(1, 0.79788), (1.58, 1.22401), (2, 1.49353), (3, 2.05107), (4, 2.51393)])
def test_quest_table(bits, alpha):
    """QuEST's clip scales (paper-facts 4b): step = 2 alpha / (levels - 1)."""
    format, levels = ("ternary", 3) if bits == 1.58 else ("midrise", 2**bits)
    assert gaussian.step(format, bits) == pytest.approx(2 * alpha / (levels - 1), rel=4e-5)


@pytest.mark.parametrize(
    ("bits", "step"),
    [(1, 1.595769), (2, 0.995687), (3, 0.586019), (4, 0.335201), (6, 0.104063), (8, 0.030762)],
)
def test_robuq_table(bits, step):
    """The step table of the author-adjacent code (paper-facts 1.5)."""
    assert gaussian.step("midrise", bits) == pytest.approx(step, abs=1e-6)


@pytest.mark.parametrize(("bits", "expected"), [(1, 0.36338), (2, 0.11748), (3, 0.03455), (4, 0.00950)])
def test_lloyd_max_levels_are_the_means_of_their_cells(bits, expected):
    """The two conditions of Lloyd and Max: edges halfway, levels at centroids; MSE of anchors D.6."""
    levels = np.array(gaussian.lloyd_max(bits))
    mass, first, _ = moments(cells(levels))
    np.testing.assert_allclose(levels, first / mass, atol=1e-6)
    assert mse(levels) == pytest.approx(expected, abs=6e-6)


def test_mean_absolute_deviation_of_the_normal():
    mean = (quantiles(200_000).abs().mean() * gaussian.MEAN_ABS_TO_SIGMA).item()
    assert mean == pytest.approx(1, abs=1e-4)


def quantiles(n: int) -> torch.Tensor:
    """One row of n equally likely values of N(0, 1): a sample without noise."""
    return torch.from_numpy(norm.ppf((np.arange(n) + 0.5) / n))[None]


@pytest.mark.parametrize(
    ("format", "scale", "bits", "expected"),
    [
        ("ternary", "rms", 1.58, 0.19017),
        ("ternary", "mean_abs", 1.58, 0.19017),
        ("ternary", "conditional_mean", 1.58, 0.2130),
        ("ternary", "absmean", 1.58, 0.2634),
        ("midrise", "rms", 2, 0.11885),
        ("midrise", "mean_abs", 3, 0.03744),
        ("midtread", "mean_abs", 4, 0.01186),
    ],
)
def test_quantisers_reach_the_computed_error(format, scale, bits, expected):
    x = quantiles(200_000)
    value = Quantiser(Spec(format=format, granularity="token", scale=scale), bits)(x)
    assert (x - value).square().mean().item() == pytest.approx(expected, abs=1e-4)


def test_conditional_mean_on_the_normal():
    """Threshold E|x|/2 = 0.3989, 69.0 % non-zero, scale 1.0680 (paper-facts 1.2)."""
    threshold = norm.pdf(0)
    alpha = norm.pdf(threshold) / norm.sf(threshold)
    value = Quantiser(Spec(format="ternary", granularity="channel", scale="conditional_mean"), 1.58)(quantiles(200_000))
    assert (value != 0).double().mean().item() == pytest.approx(2 * norm.sf(threshold), abs=1e-4)
    assert value.max().item() == pytest.approx(alpha, abs=1e-4)
    assert (threshold, 2 * norm.sf(threshold), alpha) == pytest.approx((0.3989, 0.690, 1.0680), abs=1e-4)


@pytest.mark.parametrize(
    ("format", "scale", "bits", "expected"),
    [
        ("asymmetric", "minmax", 2, 0.408),
        ("asymmetric", "minmax", 3, 0.0735),
        ("asymmetric", "minmax", 4, 0.0160),
        ("midtread", "absmax", 2, 0.758),
        ("midtread", "absmax", 3, 0.112),
        ("midtread", "absmax", 4, 0.0207),
        ("midtread", "absmean", 4, 0.0131),
    ],
)
def test_error_per_token_of_rows_of_1152(format, scale, bits, expected):
    """The Monte Carlo table of paper-facts 1.5."""
    x = torch.randn(1000, 1152, generator=torch.Generator().manual_seed(0))
    value = Quantiser(Spec(format=format, granularity="token", scale=scale), bits)(x)
    assert (x - value).square().mean().item() == pytest.approx(expected, rel=0.02)
