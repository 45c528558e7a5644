"""Check, then time, the kernels beside what they replace: `python -m robuq_bench.engine.benchmark --out DIR`.

Writes kernels.json and kernels.csv: microseconds as median, p20 and p80 of CUDA graph replays that rotate over several
sets of inputs, so that the L2 cache does not flatter. GEMM rows: this engine at 1 to 4 bits (low-rank branch, bias and
epilogue to bfloat16 included), torch.mm in bfloat16, torch._scaled_mm in float8. Row-wise rows: against a device copy.
"""

import argparse
import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robuq_bench.engine.kernels import jit, packing, reference
from robuq_bench.engine.kernels.bitserial import gemm
from robuq_bench.engine.kernels.rotation import full_rotation, pack_down
from robuq_bench.engine.kernels.rowwise import rotate_quantize
from robuq_bench.errors import BenchError
from robuq_bench.files import atomic, write_json
from robuq_bench.provenance import collect
from robuq_bench.quant.hadamard import signs_matrix

SHAPES = {"qkv": (3456, 1152), "proj": (1152, 1152), "fc1": (4608, 1152), "fc2": (1152, 4608)}
TOKENS = (256, 1024, 4096, 16384)
ROWWISE = (("modulate", 1152), ("none", 1152), ("none", 4608), ("gelu", 4608))
CACHE_BYTES = 128 << 20  # the inputs and outputs of all sets together: well above any L2
IMAGE_TOKENS = 256


def time_us(calls: list[Callable[[], Any]], replays: int = 30) -> dict[str, float]:
    """Microseconds of one call: median, p20 and p80 over replays of a graph that makes all `calls` twice in turn."""
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
    for i in range(replays + 3):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        if i >= 3:  # warm-up
            times.append(start.elapsed_time(stop) * 1e3 / len(calls) / 2)
    p20, median, p80 = torch.tensor(times).quantile(torch.tensor([0.2, 0.5, 0.8])).tolist()
    return {"us": median, "us_p20": p20, "us_p80": p80}


def random_operands(m: int, n: int, k: int, bits: int) -> tuple[packing.PackedActivation, packing.PackedWeight]:
    """Random packed operands on the current GPU, low-rank branch and bias included."""
    codes = torch.randint(0, 2**bits, (m, k), device="cuda")
    ternary = torch.randint(-1, 2, (n, k), device="cuda")
    alpha, step = torch.rand(n, device="cuda") / 10, torch.rand(m, device="cuda")
    bias, up, down = (torch.randn(*shape, device="cuda") for shape in ((n,), (n, 16), (m, 16)))
    return packing.pack_activation(codes, bits, step, down=down), packing.pack_weight(ternary, alpha, bias, up)


def _sets(bytes_of_one: int) -> int:
    return max(3, min(16, CACHE_BYTES // bytes_of_one + 1))


def gemm_rows(name: str, m: int) -> list[dict[str, Any]]:
    """Rows of one shape at m tokens. Raises BenchError when a kernel does not agree with float64."""
    n, k = SHAPES[name]
    count = _sets(2 * m * (n + k))
    outs = [torch.empty(m, n, dtype=torch.bfloat16, device="cuda") for _ in range(count)]
    rows = _library_rows(m, n, k, outs)
    for bits in (1, 2, 3, 4):
        operands = [random_operands(m, n, k, bits) for _ in outs]
        error = _disagreement(*operands[0])
        calls = [partial(gemm, *pair, out=out) for pair, out in zip(operands, outs, strict=True)]
        rows.append({"kernel": f"W1.58A{bits}", "relative_error": error} | time_us(calls))
        if bits == 2 and name != "qkv":  # as the network uses it
            more = _epilogue(name, m, n)
            calls = [partial(call, **more) for call in calls]
            rows.append({"kernel": f"W1.58A{bits} {more['epilogue']}"} | time_us(calls))
    base = {row["kernel"]: row["us"] for row in rows}
    for row in rows:
        row |= {"shape": name, "m": m, "n": n, "k": k, "sets": count}
        row["over_bf16"] = base["torch.mm bf16"] / row["us"]
        row["over_fp8"] = base["torch._scaled_mm fp8"] / row["us"]
    return rows


def _epilogue(name: str, m: int, n: int) -> dict[str, Any]:
    if name == "fc1":
        return {"epilogue": "gelu"}
    gate, residual = (torch.randn(rows, n, device="cuda").bfloat16() for rows in (m // IMAGE_TOKENS, m))
    return {"epilogue": "gate", "gate": gate, "residual": residual}


def _library_rows(m: int, n: int, k: int, outs: list[Tensor]) -> list[dict[str, Any]]:
    a = [torch.randn(m, k, dtype=torch.bfloat16, device="cuda") for _ in outs]
    w = [torch.randn(n, k, dtype=torch.bfloat16, device="cuda").T for _ in outs]
    mm = time_us([partial(torch.mm, *pair, out=out) for *pair, out in zip(a, w, outs, strict=True)])
    one, eight = torch.ones((), device="cuda"), torch.float8_e4m3fn
    float8 = partial(torch._scaled_mm, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)
    scaled = time_us([partial(float8, x.to(eight), y.to(eight)) for x, y in zip(a, w, strict=True)])
    return [{"kernel": "torch.mm bf16"} | mm, {"kernel": "torch._scaled_mm fp8"} | scaled]


def _disagreement(x: packing.PackedActivation, weight: packing.PackedWeight) -> float:
    expected = reference.gemm_reference(x, weight)
    error = ((gemm(x, weight).double() - expected).norm() / expected.norm()).item()
    if not error < 3e-3:  # the rounding of bf16 alone is about 1.7e-3
        raise BenchError(f"the kernel disagrees with float64 by {error:.2g} at m={x.m}, n={weight.n}, k={x.k}")
    return error


def rowwise_rows(pre: str, width: int, m: int) -> list[dict[str, Any]]:
    """Rows of the row-wise kernel at 2 and 4 bits, with and without the down-projection, beside a device copy."""
    count = _sets(2 * m * width)
    x = [torch.randn(m, width, dtype=torch.bfloat16, device="cuda") for _ in range(count)]
    images = m // IMAGE_TOKENS
    modulation = None
    if pre == "modulate":
        modulation = tuple(torch.randn(images, width, device="cuda").bfloat16() for _ in range(2))
    signs = torch.randint(0, 2, (width,), device="cuda") * 2 - 1
    rotation = full_rotation(signs_matrix(36).cuda(), width, signs)
    down = pack_down(torch.randn(16, width, device="cuda"), rotation)
    to = torch.empty_like(x[0])
    rows = [{"kernel": "copy", "bytes": 4 * m * width} | time_us([partial(to.copy_, part) for part in x])]
    for bits, rank in ((2, None), (2, down), (4, down)):
        wrong = _wrong_codes(x[0], rotation, bits, pre, modulation)
        run = partial(rotate_quantize, rotation=rotation, bits=bits, pre=pre, modulation=modulation, down=rank)
        moved = m * width * 2 + m * width * bits // 8 + m * 8 + (m * 32 if rank is not None else 0)
        kernel = f"row-wise A{bits}" + (" and rank 16" if rank is not None else "")
        rows.append({"kernel": kernel, "bytes": moved, "wrong_codes": wrong})
        rows[-1] |= time_us([partial(run, part) for part in x])
    for row in rows:
        row |= {"shape": f"{pre} {width}", "m": m, "k": width, "sets": count}
        row["tb_per_s"] = row["bytes"] / row["us"] / 1e6
    return rows


def _wrong_codes(x: Tensor, rotation: Any, bits: int, pre: str, modulation: Any) -> float:
    """Fraction of codes that differ from torch in float32. Raises BenchError above 1e-4, or when one is off by two."""
    packed = rotate_quantize(x, rotation, bits, pre=pre, modulation=modulation)
    expected = reference.rotate_quantize_reference(x, rotation, bits, pre=pre, modulation=modulation)["codes"]
    off = (packing.unpack_activation(packed) - expected).abs()
    wrong = (off > 0).double().mean().item()
    if wrong > 1e-4 or off.max() > 1:
        raise BenchError(f"row-wise codes disagree with torch: {wrong:.2g} of them, by up to {off.max().item()}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for kernels.json and kernels.csv")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    options = parser.parse_args()
    jit.architecture()
    torch.manual_seed(0)
    rows = [row for name in SHAPES for m in options.tokens for row in gemm_rows(name, m)]
    rows += [row for pre, width in ROWWISE for m in options.tokens if m >= 4096 for row in rowwise_rows(pre, width, m)]
    facts = {"protocol": "graph replays over rotating inputs", "nvrtc": jit.nvrtc_version()}
    record = {
        "rows": rows,
        "provenance": collect(torch.cuda.get_device_name(), cuda=torch.version.cuda, **facts),
    }
    write_json(options.out / "kernels.json", record)
    columns = list(dict.fromkeys(key for row in rows for key in ("shape", "m", "n", "k", *row)))
    with atomic(options.out / "kernels.csv") as path, open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, columns)
        writer.writeheader()
        writer.writerows({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    for row in rows:
        if "over_bf16" in row:
            rate = f"{row['over_bf16']:.2f} x bf16  {row['over_fp8']:.2f} x fp8"
        else:
            rate = f"{row['tb_per_s']:.2f} TB/s"
        print(f"{row['shape']:14} m={row['m']:<6} {row['kernel']:24} {row['us']:8.1f} us  {rate}")


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        raise SystemExit(f"error: {error}") from None
