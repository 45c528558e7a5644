"""Hadamard matrices and the fast rotation against the dense one, exactly where integers allow it."""

from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from robuq_bench.quant.hadamard import block_width, factors, rotate, signs_matrix

CONFIG = Path(__file__).parents[2] / "config"
PRESETS = [yaml.safe_load(path.read_text()) for path in sorted(CONFIG.glob("*.yaml"))]
INPUTS = {k * preset["model"]["width"] for preset in PRESETS if "model" in preset for k in (1, 4)}
NAMED = {1, 2, 12, 20, 28, 36, 48, 96, 128, 192, 384, 512, 768, 1024, 1152, 1536, 3072, 4608}


def block_diagonal(n: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    matrix = signs_matrix(width).to(dtype) / width**0.5
    return torch.block_diag(*[matrix] * (n // width))


@pytest.mark.parametrize("n", sorted(NAMED | INPUTS))
def test_rows_are_orthogonal_in_integers(n):
    signs = signs_matrix(n)
    assert signs.shape == (n, n) and torch.equal(signs.abs(), torch.ones_like(signs))
    signs = signs.to(torch.int8)
    # The int8 product with 32-bit sums is exact and fast, but wants more than 16 rows.
    product = torch._int_mm(signs, signs.T.contiguous()) if n > 16 else signs.int() @ signs.int().T
    assert torch.equal(product, n * torch.eye(n, dtype=torch.int32))


def test_width_of_dit_xl_is_36_times_32():
    """1152 = 36 * 32 as in the authors' table of stored matrices: K = 36 from Paley's second construction."""
    sylvester = torch.ones(1, 1, dtype=torch.int64)
    for _ in range(5):
        sylvester = torch.kron(sylvester, torch.tensor([[1, 1], [1, -1]]))
    assert torch.equal(signs_matrix(1152), torch.kron(signs_matrix(36), sylvester))


@pytest.mark.parametrize("n", sorted({12, 48, 128, 192, 384, 1152} | INPUTS))
def test_fast_rotation_is_the_dense_product(n):
    x = torch.randn(2, 3, n, generator=torch.Generator().manual_seed(n))
    dense = (x.double() @ block_diagonal(n, n, torch.float64)).float()
    torch.testing.assert_close(rotate(x, n), dense, rtol=1e-5, atol=2e-6)


def test_rotation_in_float64_is_exact_to_float64():
    x = torch.randn(4, 1152, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = x @ block_diagonal(1152, 1152, torch.float64)
    torch.testing.assert_close(rotate(x, 1152), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("n", "width"), [(128, 128), (192, 64), (512, 128), (1152, 128), (4608, 128), (48, 16)])
def test_blocks_of_128_or_the_largest_power_of_two_below(n, width):
    assert block_width(n, "block-128") == width
    x = torch.randn(5, n, generator=torch.Generator().manual_seed(n))
    expected = x @ block_diagonal(n, width, torch.float32)
    torch.testing.assert_close(rotate(x, width), expected, rtol=1e-5, atol=5e-6)


def test_full_rotation_mixes_all_channels():
    assert block_width(1152, "full") == 1152
    assert (rotate(torch.eye(1152)[:1], 1152) != 0).all()


@given(n=st.sampled_from([12, 48, 96, 128, 192, 384]), seed=st.integers(0, 1000))
def test_rotation_keeps_norms_and_inner_products(n, seed):
    x, y = torch.randn(2, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(rotate(x, n) @ rotate(y, n), x @ y, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(rotate(x, n).norm(), x.norm(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rotation_keeps_shape_and_dtype(dtype):
    x = torch.randn(2, 7, 48, dtype=dtype)
    assert rotate(x, 48).shape == x.shape and rotate(x, 48).dtype == dtype


def test_rotation_spreads_an_outlier():
    """Why rotate at all: one large channel becomes 1 / sqrt(n) of itself in every channel."""
    x = torch.zeros(1, 128)
    x[0, 5] = 128.0
    torch.testing.assert_close(rotate(x, 128).abs(), torch.full((1, 128), 128**0.5))


@pytest.mark.parametrize("n", [3, 6, 10, 92, 184])
def test_a_width_that_cannot_be_built_is_refused(n, refused):
    refused(lambda: signs_matrix(n), n)
    refused(lambda: rotate(torch.zeros(1, n), n), n)


@pytest.mark.parametrize("n", sorted({48, 1152, 4608} | INPUTS))
def test_two_factors_make_the_rotation_cheap(n):
    left, right = factors(n)
    assert len(left) * len(right) == n and len(left) + len(right) < n / 2
