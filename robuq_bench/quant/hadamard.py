"""Orthonormal Hadamard rotation of any width K * 2^m, without padding (H_K from Paley's constructions).

Row-vector convention: a token x [n] becomes x @ H, with H = H_K (x) H_2 (x) ... (x) H_2, divided by sqrt(n).
"""

from functools import lru_cache
from math import gcd

import torch
from torch import Tensor

from robuq_bench.config.hadamard import base, construction
from robuq_bench.errors import BenchError

BLOCK = 128


def _jacobsthal(q: int) -> Tensor:
    """Q[i, j] = quadratic character of i - j modulo the odd prime q."""
    squares = {k * k % q for k in range(1, q)}
    character = torch.tensor([0] + [1 if k in squares else -1 for k in range(1, q)])
    index = torch.arange(q)
    return character[(index[:, None] - index[None, :]) % q]


def _paley(order: int) -> Tensor:
    """A Hadamard matrix (int64, +-1) of `order` by Paley I (order - 1 prime) or II (order / 2 - 1 prime)."""
    if construction(order) == 1:
        q = order - 1
        core = torch.zeros(order, order, dtype=torch.int64)
        core[0, 1:], core[1:, 0] = 1, -1
        core[1:, 1:] = _jacobsthal(q)
        return core + torch.eye(order, dtype=torch.int64)
    q = order // 2 - 1
    core = torch.zeros(q + 1, q + 1, dtype=torch.int64)
    core[0, 1:], core[1:, 0] = 1, 1
    core[1:, 1:] = _jacobsthal(q)
    eye = torch.eye(q + 1, dtype=torch.int64)
    return torch.kron(core, torch.tensor([[1, 1], [1, -1]])) + torch.kron(eye, torch.tensor([[1, -1], [-1, -1]]))


@lru_cache
def signs_matrix(n: int) -> Tensor:
    """An n x n Hadamard matrix of +-1 (int64). Raises BenchError when n is not K * 2^m with a K built here."""
    order = base(n)
    if order is None:
        raise BenchError(f"no Hadamard matrix of order {n} is built here; use a width K * 2^m, K = 1, 12, 20, 28, 36")
    matrix, rest = torch.ones(1, 1, dtype=torch.int64) if order == 1 else _paley(order), n // order
    sylvester = torch.tensor([[1, 1], [1, -1]])
    while rest > 1:
        matrix, rest = torch.kron(matrix, sylvester), rest // 2
    return matrix


def block_width(n: int, kind: str) -> int:
    """Channels mixed by one transform: all n ("full"), or the largest power of two up to 128 that divides n."""
    return n if kind == "full" else gcd(n, BLOCK)


@lru_cache
def factors(n: int) -> tuple[Tensor, Tensor]:
    """(A, B), orthonormal float64, with H = A (x) B: two small products instead of one n x n product."""
    right = 1
    while n % (right * 2) == 0 and right * right < n and base(n // (right * 2)) is not None:
        right *= 2
    left = n // right
    return tuple(signs_matrix(order).double() / order**0.5 for order in (left, right))


def mix(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """x [..., n] @ blockdiag(A (x) B, ...), the shape kept; A and B in the dtype and on the device of `x`."""
    blocks = x.reshape(-1, a.shape[0], b.shape[0])
    return torch.matmul(a.T, torch.matmul(blocks, b)).reshape(x.shape)


def rotate(x: Tensor, width: int) -> Tensor:
    """x [..., n] @ blockdiag(H, ..., H) with blocks of `width`; orthonormal, same shape and dtype."""
    return mix(x, *(factor.to(x) for factor in factors(width)))
