"""Passes of changing inputs through a captured graph, each against plain launches, while other processes use the GPU.

python tests/engine/stress.py [PASSES]   # needs a CUDA device; one line a batch, ends with 1 when a pass was wrong
"""

import multiprocessing
import sys
import tempfile
from pathlib import Path

import torch

from robuq_bench.config.preset import DiT
from robuq_bench.config.recipe import load_variant
from robuq_bench.engine.denoiser import DeployedDenoiser, deploy
from robuq_bench.engine.standin import standin
from robuq_bench.models.dit import LINEARS, Shape

SHAPE, SPEC = Shape(size=32, channels=4, classes=1000), DiT(width=1152, depth=28, heads=16, patch=2)
ROW, BATCHES, INPUTS, RIVALS = "robuq_uniform/W1.58A2", (1, 2, 4, 8), 3, 3


def load_the_gpu(side: int) -> None:
    """Products of one size for ever."""
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    while True:
        for _ in range(200):
            a @ b
        torch.cuda.synchronize()


def inputs(batch: int, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, SHAPE.channels, SHAPE.size, SHAPE.size, generator=generator)
    time = torch.rand(batch, generator=generator) * 1000
    labels = torch.randint(SHAPE.classes, (batch,), generator=generator)
    return x.cuda(), time.cuda(), labels.cuda()


def wrong(graphs: DeployedDenoiser, plain: DeployedDenoiser, batch: int, passes: int) -> int:
    given, expected = [inputs(batch, seed) for seed in range(INPUTS)], []
    for one in given:
        expected.append(plain(*one).sample)
        torch.cuda.synchronize()
    count = torch.zeros((), dtype=torch.int64, device="cuda")
    for turn in range(passes):
        count += (graphs(*given[turn % INPUTS]).sample != expected[turn % INPUTS]).any()
    return int(count)


def main(passes: int) -> int:
    rivals = [
        multiprocessing.get_context("spawn").Process(target=load_the_gpu, args=(256 << i,), daemon=True)
        for i in range(RIVALS)
    ]
    for rival in rivals:
        rival.start()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "packed.safetensors"
        bits = {f"blocks.{i}.{kind}": 4 if kind == "adaln" else 2 for i in range(SPEC.depth) for kind in LINEARS}
        standin(SPEC, SHAPE, load_variant(*ROW.split("/")), bits, path)
        graphs, plain = deploy(path), deploy(path, graphs=False)
    counts = []
    for batch in BATCHES:
        counts.append(wrong(graphs, plain, batch, passes))
        print(f"batch {batch}: {counts[-1]} of {passes} passes wrong", flush=True)
    return int(any(counts))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 300))
