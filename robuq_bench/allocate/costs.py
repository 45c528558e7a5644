"""What a bit of activation costs in each layer: four integer cost models over the block linears."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from robuq_bench.config.base import Model, build
from robuq_bench.config.recipe import Variant
from robuq_bench.errors import BenchError
from robuq_bench.files import read_json

LATENCY_TABLES = (Path("results/engine/kernels.json"), Path("results/reference/engine/kernels.json"))
"""The user's own measurements first, then the committed ones."""
LATENCY_MAKER = "snakemake --cores all engine_kernels"
KERNEL = re.compile(r"W1\.58A(\d)")
TERNARY_PLANES = 2


@dataclass(frozen=True)
class Linear:
    """A block linear, "blocks.3.fc2", of shape [n outputs, k inputs], applied to `tokens` rows per image."""

    name: str
    n: int
    k: int
    tokens: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return self.n * self.k * self.tokens


class Timing(Model, extra="ignore"):
    """One kernel; a matrix product is [m, k] x [k, n]. us: median microseconds."""

    kernel: str
    m: int
    k: int
    n: int | None = None
    us: float = Field(gt=0, allow_inf_nan=False)


class LatencyTable(Model, extra="ignore"):
    """`kernels.json`: what the engine's benchmark measured on one device."""

    rows: tuple[Timing, ...]
    provenance: dict[str, Any]

    @property
    def device(self) -> str:
        return self.provenance.get("device", "an unnamed device")

    def products(self) -> dict[tuple[int, int, int, int], int]:
        """(n, k, activation bits, m) -> nanoseconds of each product of ternary weights without a fused epilogue."""
        found = ((row, KERNEL.fullmatch(row.kernel)) for row in self.rows)
        return {(row.n, row.k, int(match[1]), row.m): round(row.us * 1000) for row, match in found if match}


@dataclass(frozen=True, eq=False)
class Costs:
    """int64 [layers, widths] in `unit`, and the `budget`: what uniform activations of the variant's bits cost."""

    values: np.ndarray
    budget: int
    unit: str


def costs(linears: Sequence[Linear], variant: Variant, table: LatencyTable | None = None) -> Costs:
    """Under the cost model of the variant's allocation; only "latency" needs the `table`.

    Raises BenchError when the table lacks one of the products.
    """
    allocation, bits = variant.method.allocation, variant.activation_bits
    cost, unit = MODELS[allocation.cost](linears, variant, table)
    values = [[cost(linear, width) for width in allocation.candidates] for linear in linears]
    return Costs(np.array(values, dtype=np.int64), sum(cost(linear, bits) for linear in linears), unit)


def common_macs(linears: Iterable[Linear]) -> int:
    """Greatest common divisor of the layers' MACs: 3 : 1 : 4 : 4 in any DiT block with 4x MLPs."""
    return gcd(*(linear.macs for linear in linears))


Cost = Callable[[Linear, int], int]
"""Cost of a layer at a width."""


def _average_bits(linears: Sequence[Linear], variant: Variant, table: None) -> tuple[Cost, str]:
    return lambda linear, bits: bits, "bits"


def _macs(linears: Sequence[Linear], variant: Variant, table: None) -> tuple[Cost, str]:
    """Bits weighted by MACs: the paper's averages by layer type are 1.995 under this mean (paper-facts 1.6)."""
    unit = common_macs(linears)
    return lambda linear, bits: linear.macs // unit * bits, f"bits x {unit} MACs per image"


def _bitops(linears: Sequence[Linear], variant: Variant, table: None) -> tuple[Cost, str]:
    """MACs x weight bits x activation bits, a ternary weight counting as the two bit planes a kernel multiplies.

    All block linears have equal weight bits, so this is `macs` in another unit and has the same optimum.
    """
    unit = common_macs(linears)
    planes = TERNARY_PLANES if variant.weight_bits == 1.58 else int(variant.weight_bits)
    return lambda linear, bits: linear.macs // unit * planes * bits, f"{unit} BitOPs per image"


def _latency(linears: Sequence[Linear], variant: Variant, table: LatencyTable) -> tuple[Cost, str]:
    """Measured time of each layer's product in whole nanoseconds, at the largest m that the table has for all."""
    widths = {*variant.method.allocation.candidates, variant.activation_bits}
    needed = {(linear.n, linear.k, bits) for linear in linears for bits in widths}
    found = table.products()
    counts = Counter(m for n, k, bits, m in found if (n, k, bits) in needed)
    batch = max((m for m, count in counts.items() if count == len(needed)), default=None)
    if batch is None:
        n, k, bits = min(needed - {key[:3] for key in found}, default=min(needed))
        raise BenchError(
            f"the latency table of {table.device} has no m with every product of this model; among the missing: "
            f"n {n}, k {k}, {bits} bits; measure its shapes (`{LATENCY_MAKER}`)"
        )
    return lambda linear, bits: found[linear.n, linear.k, bits, batch], f"ns on {table.device} at m = {batch}"


MODELS: dict[str, Callable[..., tuple[Cost, str]]] = {
    "average_bits": _average_bits,
    "macs": _macs,
    "bitops": _bitops,
    "latency": _latency,
}


def latency_path(name: str | None) -> Path:
    """Where the measurements lie: `name` if given, else the first of LATENCY_TABLES that is there."""
    known = [Path(name)] if name else LATENCY_TABLES
    return next((path for path in known if path.is_file()), known[0])


def read_latency_table(name: str | None) -> LatencyTable:
    """The engine's measurements. Raises BenchError naming the command that makes them when there are none."""
    path = latency_path(name)
    if not path.is_file():
        raise BenchError(f"{path}: no latency table; on a GPU `{LATENCY_MAKER}` measures one")
    return build(LatencyTable, read_json(path), str(path))
