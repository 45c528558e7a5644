"""The kernel of all blocks' adaLN linears, checked and timed beside one bfloat16 product over all of them."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from robuq_bench.engine.kernels import reference
from robuq_bench.engine.kernels.adaln import AdalnLayer, AdalnStack, modulations, pack_adaln
from robuq_bench.engine.kernels.packing import RANK
from robuq_bench.engine.support import kernel_rotation
from robuq_bench.errors import BenchError
from robuq_bench.measure import engine_bounds as bounds
from robuq_bench.measure.engine_records import KernelRow, Rates
from robuq_bench.measure.engine_timing import graph_times, settle

WIDTH, DEPTH, BITS = 1152, 28, 4  # of DiT-XL
BATCHES = (1, 2, 16, 64)
SETS = 3
ERROR = 1e-2  # relative: rounding to bfloat16, and a code in ten thousand that falls on the other side of an edge
DEVICE = "cuda"


def modulation_rows(rates: Rates) -> Iterator[KernelRow]:
    """XL's 28 adaLN linears at several batches. Raises BenchError when the kernel disagrees with torch."""
    layers = [random_layer() for _ in range(DEPTH)]
    stacks = [pack_adaln(layers, BITS)]
    stacks += [replace(stacks[0], records=stacks[0].records.clone()) for _ in range(SETS - 1)]
    n = DEPTH * 6 * WIDTH
    dense = [torch.randn(n, WIDTH, device=DEVICE, dtype=torch.bfloat16).T for _ in range(SETS)]
    for batch in BATCHES:
        vectors = torch.randn(batch, WIDTH, device=DEVICE)
        facts = {"kind": "adaln", "size": "XL", "shape": f"{DEPTH} adaLN", "m": batch, "n": n, "k": WIDTH}
        out = torch.empty(batch, n, dtype=torch.bfloat16, device=DEVICE)
        library = graph_times([partial(torch.mm, vectors.bfloat16(), weight, out=out) for weight in dense])
        bound = bounds.library_product(batch, n, WIDTH, "bf16", rates)
        yield KernelRow(**facts, sets=SETS, kernel="torch.mm bf16", unit="bf16", bound=bound, over_bf16=1, **library)
        error = disagreement(vectors, layers, stacks[0])
        own = graph_times([partial(modulations, vectors, stack) for stack in stacks])
        row = {"kernel": f"W1.58A{BITS}", "bits": BITS, "unit": "b1", "relative_error": error}
        row |= {"bound": bounds.modulations(batch, stacks[0], rates), "over_bf16": library["us"] / own["us"]}
        yield KernelRow(**facts, sets=SETS, **row, **own)


def random_layer() -> AdalnLayer:
    signs = torch.randint(0, 2, (WIDTH,), device=DEVICE) * 2 - 1
    ternary = torch.randint(-1, 2, (6 * WIDTH, WIDTH), device=DEVICE)
    alpha, bias = (torch.rand(6 * WIDTH, device=DEVICE) for _ in range(2))
    up, down = torch.randn(6 * WIDTH, RANK, device=DEVICE), torch.randn(RANK, WIDTH, device=DEVICE)
    return AdalnLayer(kernel_rotation(WIDTH, "full", signs), ternary, alpha, bias, up, down)


def disagreement(vectors: Tensor, layers: list[AdalnLayer], stack: AdalnStack) -> float:
    """Relative error of all layers together against torch. Raises BenchError above ERROR."""
    out = torch.full((len(layers), len(vectors), stack.n), float("nan"), dtype=torch.bfloat16, device=vectors.device)
    settle()
    modulations(vectors, stack, out)
    expected = torch.stack([expected_of(vectors, layer) for layer in layers])
    error = ((out.double() - expected).norm() / expected.norm()).item()
    if not error < ERROR:
        raise BenchError(f"the adaLN kernel disagrees with torch by {error:.2g} at {len(vectors)} vectors")
    return error


def expected_of(vectors: Tensor, layer: AdalnLayer) -> Tensor:
    """One layer in float64 from codes that torch makes in float32: [batch, n]."""
    made = reference.rotate_quantize_reference(vectors, layer.rotation, BITS)
    tokens = made["step"].double().reshape(-1, 1) * (made["codes"].double() - (2**BITS - 1) / 2)
    branch = made["rotated"].double() @ layer.down.bfloat16().double().T @ layer.up.bfloat16().double().T
    return tokens @ layer.ternary.double().T * layer.alpha.double() + branch + layer.bias.double()
