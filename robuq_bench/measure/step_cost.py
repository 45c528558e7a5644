"""What fake quantisation costs in training: the step of each variant against the full-precision step, in one run."""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode

from robuq_bench import provenance
from robuq_bench.config.preset import DiT
from robuq_bench.config.recipe import Variant, load_variant
from robuq_bench.devices import describe, use
from robuq_bench.errors import unknown
from robuq_bench.files import write_json
from robuq_bench.models.dit import Shape, build, predict
from robuq_bench.progress import Bar
from robuq_bench.quant.convert import convert, uniform_bits
from robuq_bench.train.objective import Batch, loss

EXAMPLE = "robuq-bench step-cost --size S/2 --variant robuq_uniform/W1.58A2 --out results/step_cost/S-2.json"
WARMUP = 4


@dataclass(frozen=True)
class Size:
    """A model, what its images are, images a step, and the device that it is meant for."""

    model: DiT
    shape: Shape
    batch: int
    device: str


LATENTS, PIXELS = Shape(32, 4, 1000), Shape(16, 1, 10)
SIZES = {
    "quick": Size(DiT(width=128, depth=4, heads=4, patch=4), PIXELS, 64, "cpu"),
    "S/2": Size(DiT(width=384, depth=12, heads=6, patch=2), LATENTS, 256, "cuda"),
    "XL/2": Size(DiT(width=1152, depth=28, heads=16, patch=2), LATENTS, 32, "cuda"),
}
VARIANTS = (
    "plain_qat/W1.58A4",
    "bitnet_v2/W1.58A4",
    "baseline/W1.58A2",
    "quest_stable/W3A3",
    "robuq_uniform/W1.58A2",
    "robuq_uniform,attention_bits=null/W1.58A2",
)
FULL = "full_precision/W32A32"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", required=True, help=f"model: {', '.join(SIZES)}; the last two need a GPU")
    parser.add_argument("--batch", type=int, help="images a step (default: the size's own)")
    parser.add_argument("--variant", nargs="+", default=list(VARIANTS), metavar="RECIPE/VARIANT")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=20, help="timed steps of each")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")


def run(args: argparse.Namespace) -> None:
    if args.size not in SIZES:
        raise unknown("size", args.size, SIZES)
    size = SIZES[args.size]
    device, batch = use(size.device, args.threads), args.batch or size.batch
    flops, peak = 3 * batch * forward_flops(size), measured_peak(device)  # backward: two products for each of forward
    variants = {row: load_variant(*row.rsplit("/", 1)) for row in (FULL, *args.variant)}
    rows: list[dict[str, Any]] = []
    with Bar(f"step cost {args.size}", len(variants)) as bar:
        for row, variant in variants.items():
            timing = time_step(prepared(size, variant).to(device), size.shape, batch, args.repeats, device)
            ratios = {f"{kind}ratio": _ratio(timing, rows, f"{name}_ms") for kind, name in KINDS.items()}
            share = flops / timing["median_ms"] * 1e3 / peak
            rows.append({"row": row, **timing, **ratios, "model_flop_utilisation": share})
            bar.advance(1, ms=timing["median_ms"], ratio=ratios["ratio"])
    record = {
        "size": args.size,
        "batch": batch,
        "compiled": device == "cuda",
        "autocast": "bfloat16" if device == "cuda" else None,
        "model_flops": flops,
        "peak_flops": peak,
        "peak_of": f"fastest of ten products of {PEAK_SIDE[device]} x {PEAK_SIDE[device]}, {PEAK_DTYPE[device]}",
        "rows": rows,
        "provenance": provenance.collect(describe(device)),
    }
    write_json(args.out, record)


KINDS = {"": "median", "captured_": "captured"}
"""Prefix of a ratio -> the time that it compares."""


def _ratio(timing: dict[str, Any], rows: list[dict[str, Any]], key: str) -> float | None:
    """Time over that of the first row, which is full precision; None where it was not measured."""
    if timing[key] is None:
        return None
    return timing[key] / rows[0][key] if rows else 1.0


def prepared(size: Size, variant: Variant) -> nn.Module:
    """A fresh model of the variant, uniform bits; the branch starts from zero, which costs no SVD and the same step."""
    method = variant.method
    if method.low_rank is not None:
        blank = method.model_copy(update={"low_rank": method.low_rank.model_copy(update={"init": "zero"})})
        variant = variant.model_copy(update={"method": blank})
    model = build(size.model, size.shape)
    # Patches leave the embedder transposed: one layout for all blocks, so that one compiled graph serves them.
    model.pos_embed.register_forward_hook(lambda _module, _inputs, tokens: tokens.contiguous())
    return convert(model, variant, uniform_bits(model, variant), 0).train()


def forward_flops(size: Size) -> int:
    """Floating-point operations of the full-precision network's products for one image."""
    shape = size.shape
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        x = torch.empty(1, shape.channels, shape.size, shape.size)
        predict(build(size.model, shape), x, torch.empty(1), torch.empty(1, dtype=torch.long))
    return counter.get_total_flops()


PEAK_SIDE = {"cuda": 8192, "cpu": 1024}
PEAK_DTYPE = {"cuda": torch.bfloat16, "cpu": torch.float32}


def measured_peak(device: str) -> float:
    """Operations a second of the fastest of ten products of large square matrices in the dtype that steps use."""
    side = PEAK_SIDE[device]
    a, b = (torch.randn(side, side, device=device, dtype=PEAK_DTYPE[device]) for _ in range(2))
    best = torch.inf
    for _ in range(10):
        _wait(device)
        start = time.perf_counter()
        torch.mm(a, b)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def time_step(model: nn.Module, shape: Shape, batch: int, repeats: int, device: str) -> dict[str, Any]:
    """Milliseconds of forward, backward and AdamW: median, p20, p80; first step (compilation) and peak memory apart.

    On a GPU under bfloat16 autocast, each transformer block compiled: they share one graph, which compiles in a
    fraction of the whole model's time. `graphs` and `graph_breaks` count what the compiler made of the row;
    `captured_ms` is the median of the same step replayed as a CUDA graph: what the device needs, launches left out.
    """
    torch.compiler.reset()  # graphs of the row before would count towards the limit of recompilations
    counters.clear()
    if device == "cuda":
        for block in model.transformer_blocks:
            block.compile()
    step = Step(model, shape, batch, device)
    first = _milliseconds(step, device)
    for _ in range(WARMUP - 1):
        step()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    taken = [_milliseconds(step, device) for _ in range(repeats)]
    p20, median, p80 = (float(value) for value in np.percentile(taken, [20, 50, 80]))
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    replay = step.captured() if device == "cuda" else None
    return {
        "median_ms": median,
        "p20_ms": p20,
        "p80_ms": p80,
        "first_ms": first,
        "captured_ms": float(np.median([_milliseconds(replay, device) for _ in range(repeats)])) if replay else None,
        "peak_bytes": peak,
        "graphs": counters["stats"]["unique_graphs"],
        "graph_breaks": sum(counters["graph_break"].values()),
    }


class Step:
    """One training step on a fixed random batch."""

    def __init__(self, model: nn.Module, shape: Shape, batch: int, device: str):
        self.model, self.device = model, device
        capturable = device == "cuda"
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True, capturable=capturable)
        generator = torch.Generator().manual_seed(0)
        size = (batch, shape.channels, shape.size, shape.size)
        x, target = (torch.randn(size, generator=generator) for _ in range(2))
        labels = torch.randint(shape.classes, (batch,), generator=generator)
        self.batch = Batch(x, torch.rand(batch, generator=generator), labels, target).to(device)

    def __call__(self) -> None:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            value = loss(self.model, self.batch)
        value.backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def captured(self) -> Callable[[], None]:
        """The step as a CUDA graph, after the warm-up on a stream of its own that a capture needs."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self()
        return graph.replay


def _milliseconds(call: Callable[[], None], device: str) -> float:
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return (time.perf_counter() - start) * 1e3


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
