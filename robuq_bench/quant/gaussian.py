"""Uniform grids that are optimal for N(0, 1): the constants behind every Gaussian quantiser here.

Mid-rise steps equal the table of RobuQ's author-adjacent code and QuEST's 2a*/(2^b - 1) (paper-facts 1.5, 4b).
`tests/quant/test_quant_gaussian.py` derives each number again by minimising the exact mean squared error.
"""

from math import pi, sqrt

MEAN_ABS_TO_SIGMA = sqrt(pi / 2)
"""sigma = MEAN_ABS_TO_SIGMA * E|x| for a zero-mean normal x."""

STEPS: dict[str, dict[float, float]] = {
    "midrise": {
        1: 1.5957691,
        2: 0.9956867,
        3: 0.5860194,
        4: 0.3352006,
        6: 0.1040630,
        8: 0.0307624,
    },
    # Levels {-2^(b-1) ... 2^(b-1) - 1} * step: one more below zero than above.
    "midtread": {
        2: 1.0483853,
        3: 0.6018242,
        4: 0.3386079,
        6: 0.1041794,
        8: 0.0307656,
    },
    "ternary": {1.58: 1.2240064},
}
"""Step in units of sigma that minimises the mean squared error of N(0, 1), by format and bits."""


def step(format: str, bits: float, table: str = "own") -> float:
    """Optimal step for `format` at `bits`; table="midrise" takes the mid-rise step whatever the format."""
    return STEPS["midrise" if table == "midrise" else format][bits]


LLOYD_MAX: dict[float, tuple[float, ...]] = {
    1: (0.7978846,),
    2: (0.4527800, 1.5104176),
    3: (0.2450942, 0.7560053, 1.3439093, 2.1519457),
    4: (0.1283950, 0.3880483, 0.6567591, 0.9423405, 1.2562312, 1.6180464, 2.0690172, 2.7325896),
}
"""Positive levels of the best non-uniform quantiser of N(0, 1), in units of sigma (Lloyd 1982, Max 1960)."""


def lloyd_max(bits: float) -> tuple[float, ...]:
    """All 2^bits levels in ascending order."""
    positive = LLOYD_MAX[bits]
    return tuple(-level for level in reversed(positive)) + positive
