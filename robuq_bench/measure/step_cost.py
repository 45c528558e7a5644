"""What fake quantisation costs in training: the step of each variant against the full-precision step, in one run."""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from robuq_bench import provenance
from robuq_bench.config.preset import DiT
from robuq_bench.config.recipe import Variant, load_variant
from robuq_bench.devices import describe, use
from robuq_bench.errors import unknown
from robuq_bench.files import write_json
from robuq_bench.models.dit import Shape, build
from robuq_bench.progress import Bar
from robuq_bench.quant.convert import convert, uniform_bits
from robuq_bench.train.objective import Batch, loss

EXAMPLE = "robuq-bench step-cost --size S/2 --batch 256 --device cuda --compile --variant robuq/W1.58A2 --out cost.json"
LATENTS, PIXELS = Shape(32, 4, 1000), Shape(16, 1, 10)
SIZES = {
    "quick": (DiT(width=128, depth=4, heads=4, patch=4), PIXELS),
    "S/2": (DiT(width=384, depth=12, heads=6, patch=2), LATENTS),
    "XL/2": (DiT(width=1152, depth=28, heads=16, patch=2), LATENTS),
}
VARIANTS = ("plain_qat/W1.58A4", "bitnet_v2/W1.58A4", "baseline/W1.58A2", "quest_stable/W3A3", "robuq_uniform/W1.58A2")
FULL = "full_precision/W32A32"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", required=True, help=f"model: {', '.join(SIZES)}")
    parser.add_argument("--batch", type=int, required=True, help="images a step")
    parser.add_argument("--variant", nargs="+", default=list(VARIANTS), metavar="RECIPE/VARIANT")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="torch.compile each transformer block")
    parser.add_argument("--repeats", type=int, default=20, help="timed steps of each")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")


def run(args: argparse.Namespace) -> None:
    if args.size not in SIZES:
        raise unknown("size", args.size, SIZES)
    device = use(args.device, args.threads)
    spec, shape = SIZES[args.size]
    rows: list[dict[str, Any]] = []
    with Bar(f"step cost {args.size}", 1 + len(args.variant)) as bar:
        for row in (FULL, *args.variant):
            model = prepared(spec, shape, load_variant(*row.rsplit("/", 1))).to(device)
            timing = time_step(model, shape, args.batch, args.repeats, device, args.compile)
            ratio = timing["median_ms"] / rows[0]["median_ms"] if rows else 1.0
            rows.append({"row": row, **timing, "ratio": ratio})
            bar.advance(1, ms=timing["median_ms"], ratio=ratio)
    record = {
        "size": args.size,
        "batch": args.batch,
        "compiled": args.compile,
        "autocast": "bfloat16" if device == "cuda" else None,
        "rows": rows,
        "provenance": provenance.collect(describe(device)),
    }
    write_json(args.out, record)


def prepared(spec: DiT, shape: Shape, variant: Variant) -> nn.Module:
    """A fresh model of the variant, uniform bits; the branch starts from zero, which costs no SVD and the same step."""
    method = variant.method
    if method.low_rank is not None:
        blank = method.model_copy(update={"low_rank": method.low_rank.model_copy(update={"init": "zero"})})
        variant = variant.model_copy(update={"method": blank})
    model = build(spec, shape)
    return convert(model, variant, uniform_bits(model, variant), 0).train()


def time_step(model: nn.Module, shape: Shape, batch: int, repeats: int, device: str, compiled: bool) -> dict[str, Any]:
    """Milliseconds of forward, backward and AdamW: median, p20, p80; first step (compilation) and peak memory apart."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    if compiled:
        torch.compiler.reset()  # graphs of the variant before would count towards the limit of recompilations
        for block in model.transformer_blocks:
            block.compile()  # block by block: they share one graph, which compiles in a fraction of the whole's time
    generator = torch.Generator().manual_seed(0)
    size = (batch, shape.channels, shape.size, shape.size)
    taken, first = [], 0.0
    for turn in range(repeats + 4):
        x, target = (torch.randn(size, generator=generator) for _ in range(2))
        labels = torch.randint(shape.classes, (batch,), generator=generator)
        data = Batch(x, torch.rand(batch, generator=generator), labels, target).to(device)
        if turn == 4 and device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        _wait(device)
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            value = loss(model, data)
        value.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        _wait(device)
        elapsed = (time.perf_counter() - start) * 1e3
        first = first or elapsed
        if turn >= 4:
            taken.append(elapsed)
    p20, median, p80 = (float(value) for value in np.percentile(taken, [20, 50, 80]))
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return {"median_ms": median, "p20_ms": p20, "p80_ms": p80, "first_ms": first, "peak_bytes": peak}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
