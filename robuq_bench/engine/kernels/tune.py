"""Choosing tiles by measurement: every candidate of a shape is timed once on this GPU, the fastest kept (choice.py)."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from robuq_bench.engine.kernels import choice, jit
from robuq_bench.engine.kernels.bitserial import gemm, source_and_macros
from robuq_bench.engine.kernels.choice import Choice, Shape
from robuq_bench.engine.kernels.int8 import gemm_int8, int8_tiles, int8_weight
from robuq_bench.engine.kernels.packing import PackedActivation, PackedWeight, pack_activation, pack_weight
from robuq_bench.engine.kernels.tiles import Tile
from robuq_bench.errors import BenchError

CACHE_BYTES = 96 << 20  # operands and outputs of all sets together: above the L2 of any GPU so far
REPLAYS = 7


def tune(shapes: Iterable[Shape], device: torch.device, int8: bool = True) -> list[Choice]:
    """The choice for each shape, measured now unless this GPU's file has it; new ones are kept there.

    int8: time the INT8 path too (`Choice.int8_wins`). `Choice.seconds` says what choosing took, to be reported apart
    from latency. Raises BenchError when no candidate fits a shape.
    """
    known = choice.choices(device)
    shapes = list(dict.fromkeys(shapes))
    new = [_measure(shape, device, int8) for shape in shapes if shape not in known]
    if new:
        choice.keep(device, new)
    return [choice.choices(device)[shape] for shape in shapes]


def _measure(shape: Shape, device: torch.device, int8: bool) -> Choice:
    start = time.perf_counter()
    arch, shared = jit.architecture(device), choice.limits(device)[1]
    tiles = choice.candidates(arch, shape.n, shape.k, shape.bits, shared)
    if not tiles:
        raise BenchError(f"{shape.k} input channels do not fit into {shared} bytes of shared memory")
    _compile(tiles, shape.k, arch)
    count = max(2, min(8, CACHE_BYTES // (2 * shape.m * shape.n + shape.n * shape.k // 4)))
    operands = [_operands(shape, device) for _ in range(count)]
    outs = [torch.empty(shape.m, shape.n, dtype=torch.bfloat16, device=device) for _ in operands]
    us = {}
    for tile in tiles:
        calls = [partial(gemm, *pair, out=out, tile=tile) for pair, out in zip(operands, outs, strict=True)]
        us[str(tile)] = _time_us(calls)
    if int8:
        weights = [int8_weight(weight) for _, weight in operands]
        times = []
        for tile in int8_tiles(shape.m):
            sets = zip(operands, weights, outs, strict=True)
            times.append(_time_us([partial(gemm_int8, x, w, out=out, tile=tile) for (x, _), w, out in sets]))
        us["int8"] = min(times)
    best = min(tiles, key=lambda tile: us[str(tile)])
    return Choice(shape, best, us, time.perf_counter() - start)


def _compile(tiles: Iterable[Tile], k: int, arch: str) -> None:
    """Fill the cache on disk side by side, for the launches that follow one by one."""

    def compile_one(tile: Tile) -> None:
        source, macros = source_and_macros(tile, k, "none", rank=True, offset=False)
        jit.compile_cubin(source, arch, macros)

    with ThreadPoolExecutor() as pool:
        list(pool.map(compile_one, tiles))


def _operands(shape: Shape, device: torch.device) -> tuple[PackedActivation, PackedWeight]:
    """Operands of the shape with all that the network's have; their values do not matter for the time."""
    codes = torch.randint(0, 2**shape.bits, (shape.m, shape.k), device=device)
    ternary = torch.randint(-1, 2, (shape.n, shape.k), device=device)
    down, up = (torch.zeros(rows, 16, device=device) for rows in (shape.m, shape.n))
    step, alpha = (torch.ones(rows, device=device) for rows in (shape.m, shape.n))
    return pack_activation(codes, shape.bits, step, down=down), pack_weight(ternary, alpha, None, up)


def _time_us(calls: list[Callable[[], Tensor]]) -> float:
    """Microseconds of one call: median over replays of a CUDA graph that makes all calls twice."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls * 2:
            call()
    times = []
    for _ in range(REPLAYS + 1):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 500 / len(calls))
    return sorted(times[1:])[REPLAYS // 2]
