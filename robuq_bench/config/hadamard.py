"""Which widths a full Hadamard rotation can have, by numbers alone: n = K * 2^m with K from Paley's constructions."""

from math import isqrt


def construction(order: int) -> int:
    """1 or 2, Paley's construction that makes a Hadamard matrix of `order`; 0 when neither does."""
    q = order - 1
    if q % 4 == 3 and _is_prime(q):
        return 1
    q = order // 2 - 1
    return 2 if order % 4 == 0 and q % 4 == 1 and _is_prime(q) else 0


def base(n: int) -> int | None:
    """The order K to start from for a matrix of order n = K * 2^m: 1 for powers of two; None if there is none."""
    power = n & -n
    if power == n:
        return 1
    odd = n // power
    orders = (odd * 2**k for k in range(2, power.bit_length()))
    return next((order for order in orders if construction(order)), None)


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, isqrt(n) + 1))
