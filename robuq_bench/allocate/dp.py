"""Exact multiple-choice knapsack: one width per layer, least summed loss at every total cost, in one pass.

The undominated (cost, loss) sums of the first layers are extended by one layer at a time (Nemhauser & Ullmann,
Management Science 15(9), 1969). Costs may be any real numbers; losses may be negative or rise with the width.
"""

from dataclasses import dataclass

import numpy as np

from robuq_bench.errors import BenchError

LIMIT = 2**17
"""Most undominated sums kept. 112 layers x 4 widths with random real costs reach 1e4; sums that grow exponentially
need losses that follow the costs to the last digit. Beyond it the problem is refused, never solved approximately."""


@dataclass(frozen=True, eq=False)
class Front:
    """Every undominated allocation: cost float64 [P] strictly increases, loss float64 [P] strictly decreases.

    `order`: the layers as the programme took them; `origins`: for each of them, which candidate and which sum of the
    layers before it (candidate * sums + sum) each of its sums came from.
    """

    cost: np.ndarray
    loss: np.ndarray
    order: np.ndarray
    origins: tuple[np.ndarray, ...]

    def best(self, budget: float) -> int:
        """Index of the point of least loss within `budget`. Raises BenchError when no allocation is."""
        point = int(np.searchsorted(self.cost, budget, side="right")) - 1
        if point < 0:
            raise BenchError(
                f"no allocation meets the budget {budget:.10g}: the least achievable is {self.cost[0]:.10g}"
            )
        return point

    def choice(self, point: int) -> np.ndarray:
        """Index of each layer's candidate at `point`: int64 [layers]."""
        chosen = np.empty(len(self.order), dtype=np.int64)
        before = (1, *(len(origin) for origin in self.origins[:-1]))
        for layer, origin, sums in zip(self.order[::-1], self.origins[::-1], before[::-1], strict=True):
            chosen[layer], point = divmod(origin[point], sums)
        return chosen


def front(cost: np.ndarray, loss: np.ndarray) -> Front:
    """The front of `cost` [layers, candidates] against `loss` [layers, candidates], both finite.

    Whole-number costs are summed exactly. Real ones are first rounded to 2^-52 of the largest total, so that their
    sums are exact, too, and depend on no order. Raises BenchError beyond LIMIT undominated sums.
    """
    cost, loss = np.asarray(cost, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    if cost.ndim != 2 or not cost.size or cost.shape != loss.shape:
        shapes = f"costs {list(cost.shape)}, losses {list(loss.shape)}"
        raise BenchError(f"{shapes}: both must be [layers, candidates] of one shape, and not empty")
    if not (np.isfinite(cost).all() and np.isfinite(loss).all()):
        raise BenchError("a cost or a loss is not finite; measure it again")
    whole, unit = _whole(cost)
    order = np.lexsort(whole.T)  # layers of equal costs side by side keep the sums few
    total, lost, origins = np.zeros(1, dtype=np.int64), np.zeros(1), []
    for layer in order:
        kept = _promising(total, lost, whole[layer], loss[layer])
        candidate, before = np.divmod(kept, len(total))
        totals, losts = whole[layer][candidate] + total[before], loss[layer][candidate] + lost[before]
        best = _undominated(totals, losts)
        kept, total, lost = kept[best], totals[best], losts[best]
        if len(total) > LIMIT:
            raise BenchError(f"more than {LIMIT} undominated sums of these costs; round the costs and run again")
        origins.append(kept.astype(np.int32))
    return Front(total * unit, lost, order, tuple(origins))


def _whole(cost: np.ndarray) -> tuple[np.ndarray, float]:
    """`cost` as int64 multiples of a power of two, and that unit; every sum of one cost a layer has 53 bits or fewer.

    Integers, because they sort in half the time of floats.
    """
    _, exponent = np.frexp(np.abs(cost).max(axis=1).sum())
    unit = np.ldexp(1.0, int(exponent) - 52)
    return np.round(cost / unit).astype(np.int64), unit


def _promising(total: np.ndarray, lost: np.ndarray, cost: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Indices (candidate * sums + sum) of the sums of the next layer that a coarse look does not find dominated.

    The axis of costs is cut into cells of a few points each. What the front offers at the start of a cell bounds all
    in it; the bound is strictly cheaper than what it rules out, so no two sums rule each other out. Three quarters of
    the sums need no sorting then.
    """
    extra = cost - cost.min()
    span = int(total[-1] - total[0] + extra.max())
    shift = (2 * span // len(total)).bit_length()
    cells = (span >> shift) + 2
    cell = (total - total[0]) >> shift
    offered = np.full(cells, np.inf)
    offered[cell + 1] = lost  # falls with the cost: the last one of a cell stays
    np.minimum.accumulate(offered, out=offered)
    bound = np.full(cells, np.inf)
    for move, rise in zip(-(-extra >> shift), loss, strict=True):
        np.minimum(bound[move:], offered[: cells - move] + rise, out=bound[move:])
    return np.flatnonzero(np.add.outer(loss, lost) < bound[np.add.outer(extra >> shift, cell)])


def _undominated(cost: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Indices, by rising cost, of the points that no other undercuts; the first of equal ones."""
    order = np.argsort(cost, kind="stable")  # merges: `cost` consists of sorted runs
    loss = loss[order]
    lower = np.flatnonzero(loss[1:] < np.minimum.accumulate(loss)[:-1]) + 1
    kept = order[np.append(0, lower)]
    cost = cost[kept]
    return kept[np.append(cost[1:] != cost[:-1], True)]  # of equal costs the last one has the least loss
