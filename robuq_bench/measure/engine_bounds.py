"""The least time of a kernel on this hardware: its operations at the probed rate, its bytes at the speed of a copy.

Bytes count every operand once, from and to device memory; operations are those of the product and its branch.
"""

from robuq_bench.engine.kernels.adaln import AdalnStack
from robuq_bench.engine.kernels.packing import RANK
from robuq_bench.measure.engine_records import Bound, Rates, Unit

PLANES = 2  # of a ternary weight
LIBRARY_BYTES = {"bf16": 2, "e4m3": 1, "s8": 1}  # of an operand's element


def ternary_product(
    m: int, n: int, k: int, bits: int, gate_images: int, rates: Rates, feeds: bool = False, fed: bool = False
) -> Bound:
    """[m, k] codes of `bits` bits x ternary [k, n] on the single-bit unit, bias and rank-16 branch included.

    gate_images: rows of gate when gate and residual are applied, else 0. feeds: the next layer's signs and
    down-projection as well; fed: the branch comes as sums of 32 bits.
    """
    ops = 2.0 * m * n * k * bits * PLANES
    tokens = m * (k * bits // 8 + 8 + (4 if fed else 2) * RANK)  # planes, step and code sum, down-projection
    following = m * 4 * RANK + n * (2 + 2 * RANK) if feeds else 0
    channels = n * (k * PLANES // 8 + 12 + 2 * RANK)  # planes, three float32 vectors, up-projection
    fused = 2 * n * (m + gate_images) if gate_images else 0
    branch = (4.0 if feeds else 2.0) * m * n * RANK
    return _bound({"b1": ops, "bf16": branch}, tokens + channels + fused + following + 2 * m * n, rates)


def library_product(m: int, n: int, k: int, unit: Unit, rates: Rates) -> Bound:
    """[m, k] x [k, n] in the unit's type, bfloat16 out."""
    moved = LIBRARY_BYTES[unit] * (m * k + n * k) + 2 * m * n
    return _bound({unit: 2.0 * m * n * k}, moved, rates)


def row_wise(m: int, width: int, bits: int, modulated_images: int, rank: bool, rates: Rates) -> Bound:
    """Tokens [m, width] in bfloat16 to codes of `bits` bits, scale, code sum and, with `rank`, the branch's input.

    modulated_images: rows of scale and shift, 0 when tokens are not modulated. Its arithmetic is not counted.
    """
    moved = m * (2 * width + width * bits // 8 + 8) + 4 * modulated_images * width
    return _bound({}, moved + (2 * RANK * (m + width) if rank else 0), rates)


def modulations(batch: int, stack: AdalnStack, rates: Rates) -> Bound:
    """Every layer's modulation of `batch` vectors: the packed weights once, the output once."""
    n = len(stack.records) * stack.n
    ops = 2.0 * batch * n * stack.k * stack.bits * PLANES
    return _bound({"b1": ops}, stack.records.numel() + 2 * batch * n, rates)


def copy(m: int, width: int, rates: Rates) -> Bound:
    """[m, width] in bfloat16 read and written."""
    return _bound({}, 4 * m * width, rates)


def _bound(ops: dict[Unit, float], moved: float, rates: Rates) -> Bound:
    """The units work one after the other at worst and together at best: the longest counts."""
    known = {unit: rates.best(unit) for unit in ops}
    times = [ops[unit] / rate * 1e6 for unit, rate in known.items() if rate]
    return Bound(
        ops=max(ops.values(), default=None),
        bytes=moved,
        arithmetic_us=max(times) if times and len(times) == len(ops) else None,
        bytes_us=moved / rates.copy_bytes_per_s * 1e6,
    )
