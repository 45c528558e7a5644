"""Streaming statistics of tokens: how normal each is, and what quantisers lose on it.

Sums are kept in float64 and memory does not grow with the number of tokens.
"""

from dataclasses import dataclass, field
from math import ceil, log, sqrt

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from robuq_bench.config.recipe import Quantiser as Spec
from robuq_bench.errors import BenchError
from robuq_bench.measure.inspect_records import BITS, PROBABILITIES, Floors, Summary, View
from robuq_bench.quant import gaussian
from robuq_bench.quant.quantiser import Quantiser

QUANTISERS = {
    "gaussian": Spec(format="midrise", granularity="token", scale="mean_abs"),
    "minmax": Spec(format="asymmetric", granularity="token", scale="minmax"),
}
REJECTED_ABOVE = -2 * log(0.05)
"""95 % quantile of chi-squared with two degrees of freedom, the limit of the Jarque-Bera statistic."""
BINS_PER_SIGMA = 100


def token_statistics(x: Tensor) -> dict[str, Tensor]:
    """Field of `Summary` (errors as "gaussian 2") -> its value for each token of `x` [tokens, n], float64.

    Skewness and kurtosis are the estimates G1, G2 of Joanes & Gill 1998, unbiased for normal tokens. Nothing else
    is centred, for the quantisers do not centre either. Raises BenchError when a token's values are all equal.
    """
    x, n = x.double(), x.shape[-1]
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1)
    if not bool((variance > 0).all()):
        raise BenchError("a token's values are all equal: it has no shape to speak of; is this model trained?")
    z = centred / variance.sqrt()[:, None]
    g1, g2 = (z**3).mean(-1), (z**4).mean(-1) - 3
    energy = x.square().sum(-1)
    found = {
        "kurtosis": (n - 1) / ((n - 2) * (n - 3)) * ((n + 1) * g2 + 6),
        "skewness": sqrt(n * (n - 1)) / (n - 2) * g1,
        "outlier": x.abs().amax(-1) / (energy / n).sqrt(),
        "rejected": (n / 6 * (g1.square() + g2.square() / 4) > REJECTED_ABOVE).double(),
    }
    for name, spec in QUANTISERS.items():
        for bits in BITS:
            found[f"{name} {bits}"] = (Quantiser(spec, bits)(x) - x).square().sum(-1) / energy
    return found


@dataclass
class Totals:
    """Sums over tokens. `powers`: sums of x, x^2, x^3, x^4 over all values."""

    tokens: int = 0
    values: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    powers: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))

    def add(self, x: Tensor) -> None:
        """Count tokens `x` [tokens, n] in."""
        self.tokens += len(x)
        self.values += x.numel()
        for name, values in token_statistics(x).items():
            self.sums[name] = self.sums.get(name, 0.0) + values.sum().item()
        values = x.double()
        self.powers += torch.stack([(values**k).sum() for k in (1, 2, 3, 4)]).cpu()

    def __add__(self, other: "Totals") -> "Totals":
        names = self.sums.keys() | other.sums.keys()
        sums = {name: self.sums.get(name, 0.0) + other.sums.get(name, 0.0) for name in names}
        return Totals(self.tokens + other.tokens, self.values + other.values, sums, self.powers + other.powers)

    def summary(self) -> Summary:
        mean = {name: total / self.tokens for name, total in self.sums.items()}
        errors = {name: tuple(mean.pop(f"{name} {bits}") for bits in BITS) for name in QUANTISERS}
        skewness, kurtosis = self._pooled()
        return Summary(tokens=self.tokens, pooled_skewness=skewness, pooled_kurtosis=kurtosis, **errors, **mean)

    def _pooled(self) -> tuple[float, float]:
        """Skewness and excess kurtosis of all values together, from their power sums."""
        m1, m2, m3, m4 = (self.powers / self.values).tolist()
        variance = m2 - m1**2
        third = m3 - 3 * m1 * m2 + 2 * m1**3
        fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        return third / variance**1.5, fourth / variance**2 - 3


class Histogram:
    """Counts of z = x / rms of its token, in bins of 1/100. |z| never exceeds sqrt(n), so the bins hold all."""

    def __init__(self, width: int):
        self.side = ceil(sqrt(width)) * BINS_PER_SIGMA
        self.counts = torch.zeros(2 * self.side, dtype=torch.int64)

    def add(self, x: Tensor) -> None:
        """Count tokens `x` [tokens, n] in."""
        z = x.double() / x.double().square().mean(-1, keepdim=True).sqrt()
        bins = (z * BINS_PER_SIGMA).floor().long() + self.side
        counts = torch.bincount(bins.clamp(0, 2 * self.side - 1).flatten(), minlength=2 * self.side)
        self.counts += counts.cpu()

    def _edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Bin edges and the share of values below each."""
        below = np.concatenate([[0], self.counts.cumsum(0).numpy()])
        return np.arange(-self.side, self.side + 1) / BINS_PER_SIGMA, below / below[-1]

    def quantiles(self) -> tuple[float, ...]:
        """At PROBABILITIES, linear within a bin."""
        edges, below = self._edges()
        inner = np.flatnonzero(np.diff(below) > 0)  # flat stretches have no inverse
        kept = np.unique(np.concatenate([inner, inner + 1]))
        return tuple(np.interp(PROBABILITIES, below[kept], edges[kept]).tolist())

    def wasserstein(self) -> float:
        """Wasserstein-1 distance from N(0, 1): the area between the two distribution functions."""
        edges, below = self._edges()
        return float(np.abs(below - norm.cdf(edges)).sum() / BINS_PER_SIGMA)


def view(by_time: list[Totals], histogram: Histogram) -> View:
    """The record of one layer's tokens: sums of each time, and all of them in the histogram."""
    return View(
        overall=sum(by_time, Totals()).summary(),
        by_time=tuple(totals.summary() for totals in by_time),
        quantiles=histogram.quantiles(),
        wasserstein=histogram.wasserstein(),
    )


def normal_error(levels: np.ndarray) -> float:
    """E (x - q(x))^2 for x ~ N(0, 1) and the nearest of `levels` (ascending), in closed form."""
    edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    density = norm.pdf(edges)
    mass, first = np.diff(norm.cdf(edges)), -np.diff(density)
    second = mass - np.diff(np.where(np.isinf(edges), 0.0, edges) * density)
    return float((second - 2 * levels * first + levels**2 * mass).sum())


def floors() -> Floors:
    """The least errors on N(0, 1). A uniform grid does best mid-rise, with the step of quant.gaussian (Max 1960)."""
    uniform = [(np.arange(2**bits) - (2**bits - 1) / 2) * gaussian.step("midrise", bits) for bits in BITS]
    return Floors(
        uniform=tuple(map(normal_error, uniform)),
        lloyd_max=tuple(normal_error(np.array(gaussian.lloyd_max(bits))) for bits in BITS),
    )
