"""What fake quantisation costs in training: the step of each variant against the full-precision step, in one run.

Under `robuq-bench launch` or torchrun several GPUs share each step, as they do in training.
"""

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
from robuq_bench.config.preset import DiT, Training, load_preset
from robuq_bench.config.recipe import Variant, load_variant
from robuq_bench.devices import describe, use
from robuq_bench.errors import unknown
from robuq_bench.files import write_json
from robuq_bench.models.dit import Shape, build, predict
from robuq_bench.progress import Bar
from robuq_bench.quant.convert import convert, uniform_bits
from robuq_bench.train.captured import WARMUP, Captured
from robuq_bench.train.distributed import ALONE, World, together
from robuq_bench.train.objective import Batch, draw
from robuq_bench.train.update import Update, quick

EXAMPLE = "robuq-bench step-cost --size S/2 --variant robuq_uniform/W1.58A2 --out results/step_cost/S-2.json"


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
IMAGES = 512
"""Random images that batches are drawn from."""


def size_of(name: str) -> Size:
    """One of SIZES, or "gpu": the model and batch of that preset. Raises BenchError for another name."""
    if name == "gpu":
        preset = load_preset(name)
        return Size(preset.model, Shape(preset.data.size, 3, 10), preset.qat.batch, "cuda")
    if name not in SIZES:
        raise unknown("size", name, [*SIZES, "gpu"])
    return SIZES[name]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", required=True, help=f"model: {', '.join(SIZES)}, gpu; all but the first need a GPU")
    parser.add_argument("--batch", type=int, help="images a step, over all GPUs (default: the size's own)")
    parser.add_argument("--variant", nargs="+", default=list(VARIANTS), metavar="RECIPE/VARIANT")
    parser.add_argument(
        "--blocks",
        choices=("compiled", "fused"),
        default="compiled",
        help="on a GPU: by torch.compile or own kernels",
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=20, help="timed steps of each")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")


def run(args: argparse.Namespace) -> None:
    size = size_of(args.size)
    device, batch = use(size.device, args.threads), args.batch or size.batch
    compile = args.blocks == "compiled" and device == "cuda"
    variants = {row: load_variant(*row.rsplit("/", 1)) for row in (FULL, *args.variant)}
    rows: list[dict[str, Any]] = []
    with together(device) as world:
        flops = 3 * batch * forward_flops(size)  # backward: two products for each of forward
        peak = measured_peak(device) * world.size
        with Bar(f"step cost {args.size}", len(variants)) as bar:
            for row, variant in variants.items():
                model = prepared(size, variant).to(device)
                timing = time_step(model, size.shape, batch, args.repeats, device, compile, world)
                ratios = {f"{kind}ratio": _ratio(timing, rows, f"{name}_ms") for kind, name in KINDS.items()}
                share = flops / timing["median_ms"] * 1e3 / peak
                rows.append({"row": row, **timing, **ratios, "model_flop_utilisation": share})
                bar.advance(1, ms=timing["median_ms"], ratio=ratios["ratio"])
    if not world.leads:
        return
    record = {
        "size": args.size,
        "batch": batch,
        "blocks": args.blocks if device == "cuda" else "plain",
        "autocast": "bfloat16" if device == "cuda" else None,
        "model_flops": flops,
        "peak_flops": peak,
        "peak_of": f"fastest of ten products of {PEAK_SIDE[device]} x {PEAK_SIDE[device]}, {PEAK_DTYPE[device]}",
        "rows": rows,
        "provenance": provenance.collect(describe(device), processes=world.size),
    }
    write_json(args.out, record)


KINDS = {"": "median", "issued_": "issued"}
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


def time_step(
    model: nn.Module,
    shape: Shape,
    batch: int,
    repeats: int,
    device: str,
    compile: bool,
    world: World = ALONE,
) -> dict[str, Any]:
    """Milliseconds of a step of the training loop: forward, backward, clipping, AdamW, averaging. Median, p20, p80.

    On a GPU as training runs it: bfloat16 autocast, blocks compiled or fused, the step a CUDA graph. `issued_ms` is
    the median of the same step issued kernel by kernel; `first_ms` the first step (compilation), `ready_ms` all until
    the first replay; `graphs` and `graph_breaks` count what the compiler made of the row. Of `batch` images this
    process of `world` takes its part.
    """
    torch.compiler.reset()  # graphs of the row before would count towards the limit of recompilations
    counters.clear()
    cuda = device == "cuda"
    plan = _plan(batch, cuda, compile)
    with quick(model, plan):
        update = Update(model, plan, world=world)
        step = _Steps(Captured(update) if cuda else update, shape, batch, device, world.part(batch))
        first = _milliseconds(step, device)
        ready = first + sum(_milliseconds(step, device) for _ in range(WARMUP))
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        taken = [_milliseconds(step, device) for _ in range(repeats)]
        peak = torch.cuda.max_memory_reserved() if cuda else None
        issued = None
        if cuda:
            with torch.cuda.stream(step.run.stream):  # where the parameters' gradients have been summed so far
                step.run = update  # and the recording gives its memory back
                issued = float(np.median([_milliseconds(step, device) for _ in range(max(3, repeats // 2))]))
    p20, median, p80 = (float(value) for value in np.percentile(taken, [20, 50, 80]))
    return {
        "median_ms": median,
        "p20_ms": p20,
        "p80_ms": p80,
        "issued_ms": issued,
        "first_ms": first,
        "ready_ms": ready,
        "reserved_bytes": peak,
        "graphs": counters["stats"]["unique_graphs"],
        "graph_breaks": sum(counters["graph_break"].values()),
    }


def _plan(batch: int, cuda: bool, compile: bool) -> Training:
    precision = "bfloat16" if cuda else "float32"
    return Training(
        steps=1, batch=batch, threads=1, lr=1e-4, warmup=0, ema=0.99, save_every=1, precision=precision, compile=compile
    )


class _Steps:
    """Called, it takes the next step of training on random images."""

    def __init__(self, run: Callable[[Batch], torch.Tensor], shape: Shape, batch: int, device: str, part: slice):
        self.run, self.batch, self.part, self.no_class, self.step = run, batch, part, shape.classes, 0
        generator = torch.Generator().manual_seed(0)
        self.signal = torch.rand(IMAGES, shape.channels, shape.size, shape.size, generator=generator).to(device) * 2 - 1
        self.labels = torch.randint(shape.classes, (IMAGES,), generator=generator).to(device)

    def __call__(self) -> None:
        batch = draw(self.signal, self.labels, self.batch, self.no_class, 0.1, self.step, part=self.part)
        self.run.prepare(self.step, 1e-4)
        self.run(batch)
        self.step += 1


def _milliseconds(call: Callable[[], None], device: str) -> float:
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return (time.perf_counter() - start) * 1e3


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
