"""From a sensitivity profile to the bits of every layer: AMPN's choice, and what it gives up at each cost."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from robuq_bench.allocate.costs import LatencyTable, Linear, costs, read_latency_table
from robuq_bench.allocate.dp import front
from robuq_bench.config.base import Model
from robuq_bench.config.preset import Preset
from robuq_bench.config.recipe import Variant
from robuq_bench.errors import BenchError

PAPER_AVERAGES = {
    "W1.58A2": {"proj": 2.75, "qkv": 2.21, "fc1": 2.00, "fc2": 1.64},
    "W1.58A3": {"proj": 3.89, "qkv": 2.96, "fc1": 3.04, "fc2": 2.31},
}
"""Average bits by layer type that the paper reports for DiT-XL/2 (third-party notes, paper-facts 1.6)."""


BLOCK = {"qkv": (3, 1), "proj": (1, 1), "fc1": (4, 1), "fc2": (1, 4)}
"""Layer type -> (outputs, inputs) in widths of the model: the linears of a DiT block whose bits are chosen."""


class Profile(Model):
    """`profile.json`. Rows of `loss` and `mse` are `layers`, columns `candidates`; see `profile.Sensitivity`.

    shapes: (outputs, inputs) of each layer; macs: per image; fixed: bits of the layers that are not allocated.
    A run that diverged has a reason and nothing measured.
    """

    status: Literal["ok", "diverged"] = "ok"
    reason: str = ""
    recipe: str
    variant: str
    steps: int
    layers: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    shapes: tuple[tuple[int, int], ...] = ()
    tokens: int = 0
    macs: tuple[int, ...] = ()
    fixed: dict[str, int] = Field({})
    candidates: tuple[int, ...] = ()
    loss: tuple[tuple[float, ...], ...] = ()
    mse: tuple[tuple[float, ...], ...] = ()
    base_loss: float | None = None
    images: int = 0
    provenance: dict[str, Any]

    @model_validator(mode="after")
    def _rectangular(self) -> "Profile":
        for name in ("loss", "mse"):
            rows = getattr(self, name)
            if len(rows) != len(self.layers) or any(len(row) != len(self.candidates) for row in rows):
                raise ValueError(f"{name}: needs a row for each layer and a column for each candidate")
        if not len(self.layers) == len(self.types) == len(self.shapes):
            raise ValueError("layers, types and shapes: need one entry for each layer")
        return self


def allocate(profile: Profile, variant: Variant, table: LatencyTable | None = None) -> dict[str, Any]:
    """What `bits.json` holds, but for provenance: the bits of least summed sensitivity within the variant's budget.

    Raises BenchError when a candidate was not profiled, or no allocation meets the budget.
    """
    plan = variant.method.allocation
    if missing := set(plan.candidates) - set(profile.candidates):
        raise BenchError(
            f"the profile has widths {list(profile.candidates)} and lacks {sorted(missing)}; profile this recipe again"
        )
    columns = [profile.candidates.index(bits) for bits in plan.candidates]
    linears = [Linear(name, n, k, profile.tokens) for name, (n, k) in zip(profile.layers, profile.shapes, strict=True)]
    priced = costs(linears, variant, table)
    curve = front(priced.values, np.array(getattr(profile, plan.sensitivity))[:, columns])
    point = curve.best(priced.budget)
    widths = [plan.candidates[column] for column in curve.choice(point)]
    return {
        "cost": plan.cost,
        "unit": priced.unit,
        "sensitivity": plan.sensitivity,
        "bits": dict(zip(profile.layers, widths, strict=True)) | profile.fixed,
        "budget": priced.budget,
        "achieved": int(curve.cost[point]),
        "minimised": float(curve.loss[point]),
        "minimised_uniform": _uniform(profile, variant.activation_bits, plan.sensitivity),
        "predicted_loss_increase": predicted(profile, widths),
        "predicted_loss_increase_uniform": _uniform(profile, variant.activation_bits),
        "averages": averages(profile.types, widths),
        "weighted_average": float(np.average(widths, weights=[linear.macs for linear in linears])),
        "paper_averages": PAPER_AVERAGES.get(variant.name),
        "pareto": [{"cost": int(cost), "loss": float(loss)} for cost, loss in zip(curve.cost, curve.loss, strict=True)],
    }


def check_priced(preset: Preset, variant: Variant) -> None:
    """Raises BenchError when the costs of the preset's layers are not known, or no allocation meets the budget.

    For before any work: it takes no model and no profile.
    """
    plan, width = variant.method.allocation, preset.model.width
    tokens = (preset.side // preset.model.patch) ** 2
    linears = [Linear(kind, n * width, k * width, tokens) for kind, (n, k) in BLOCK.items()]
    priced = costs(linears, variant, read_latency_table(plan.latency_table) if plan.cost == "latency" else None)
    least = int(priced.values.min(axis=1).sum())
    if least > priced.budget:
        raise BenchError(
            f"recipe '{variant.recipe}' at {variant.name}: no allocation meets the budget of {priced.budget} "
            f"{priced.unit} a block; the least achievable is {least}: add a smaller width to allocation.candidates"
        )


def predicted(profile: Profile, widths: Sequence[int], sensitivity: str = "loss") -> float:
    """Sum of the profiled loss rises ("mse": output errors) when each layer has its width of `widths`."""
    rows = zip(getattr(profile, sensitivity), widths, strict=True)
    return sum(row[profile.candidates.index(bits)] for row, bits in rows)


def averages(types: Sequence[str], widths: Sequence[int]) -> dict[str, float]:
    """Plain mean of the bits by layer type."""
    groups = defaultdict(list)
    for kind, bits in zip(types, widths, strict=True):
        groups[kind].append(bits)
    return {kind: fmean(bits) for kind, bits in groups.items()}


def _uniform(profile: Profile, bits: int, sensitivity: str = "loss") -> float | None:
    """The same sum with `bits` in every layer; None when that width was not profiled."""
    return predicted(profile, [bits] * len(profile.layers), sensitivity) if bits in profile.candidates else None
