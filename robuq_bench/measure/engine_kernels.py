"""Check, then time, the engine's kernels beside what they replace, and set each against the bound of this hardware.

Every product is compared with float64, every quantised token with torch in float32, before it is timed; times are CUDA
graph replays that rotate over several sets of inputs, so that the L2 cache does not flatter.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robuq_bench import provenance
from robuq_bench.config.base import build
from robuq_bench.engine.kernels import gemm, jit, pack_down, pack_next, packing, reference, rotate_quantize
from robuq_bench.engine.kernels.choice import tile_for
from robuq_bench.engine.kernels.int8 import gemm_int8, int8_weight
from robuq_bench.engine.kernels.rowwise import roundings
from robuq_bench.engine.support import kernel_rotation
from robuq_bench.errors import BenchError, unknown
from robuq_bench.files import read_json, write_json
from robuq_bench.measure import engine_bounds as bounds
from robuq_bench.measure.engine_modulations import modulation_rows
from robuq_bench.measure.engine_records import KernelRow, Kernels, Missing, Rates
from robuq_bench.measure.engine_timing import graph_times, sets, settle
from robuq_bench.progress import Bar

EXAMPLE = "robuq-bench engine-kernels --rates results/engine/rates.json --out results/engine/kernels.json"
WIDTHS = {"XL": 1152, "quick": 128, "S": 384, "B": 768, "L": 1024}
TOKENS = {"XL": (16384, 4096, 512, 1024, 256)}  # the most telling first
FEW_TOKENS = (16384, 4096, 512)
BITS = (1, 2, 3, 4)
IMAGE_TOKENS = 256
ROUNDING = 3e-3  # relative error of a product rounded once to bfloat16 is about 1.7e-3
WRONG_CODES = 1e-4
DEVICE = "cuda"


@dataclass(frozen=True)
class Linear:
    """A block linear: [n, k], the epilogue it has in the network, and whether it begins the next one's low-rank branch
    (`feeds`) or has its own begun so (`fed`).
    """

    name: str
    n: int
    k: int
    epilogue: str
    feeds: bool = False
    fed: bool = False


def linears(width: int) -> tuple[Linear, ...]:
    return (
        Linear("qkv", 3 * width, width, "none"),
        Linear("proj", width, width, "gate"),
        Linear("fc1", 4 * width, width, "gelu", feeds=True),
        Linear("fc2", width, 4 * width, "gate", fed=True),
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rates", type=Path, required=True, help="JSON of `robuq-bench engine-rates`, same GPU")
    parser.add_argument("--size", nargs="+", default=list(WIDTHS), help=f"shapes of which DiTs: {', '.join(WIDTHS)}")
    parser.add_argument("--tokens", type=int, nargs="+", help="rows of the products (default: a choice for each size)")
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin no more shapes after this many seconds")
    parser.add_argument("--state", type=Path, help="JSON to go on from and to write after every M (default: --out)")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")


def run(args: argparse.Namespace) -> None:
    jit.architecture()
    for size in args.size:
        if size not in WIDTHS:
            raise unknown("size", size, WIDTHS)
    rates = build(Rates, read_json(args.rates), str(args.rates))
    if rates.hardware.name != torch.cuda.get_device_name():
        raise BenchError(f"{args.rates}: rates of {rates.hardware.name}, but this is {torch.cuda.get_device_name()}")
    state = args.state or args.out
    for record in measure(args.size, args.tokens, rates, args.seconds, kept(state, rates)):
        for path in {state, args.out}:
            write_json(path, record.model_dump(mode="json"))


def measure(
    sizes: Sequence[str], tokens: Sequence[int] | None, rates: Rates, seconds: float, have: Kernels | None = None
) -> Iterator[Kernels]:
    """The record after every size and M that `have` lacks; what is left after `seconds` is listed as missing.

    Raises BenchError when a kernel does not compute what it should.
    """
    torch.manual_seed(0)
    deadline = time.monotonic() + seconds
    steps = [(size, m) for size in sizes for m in tokens or TOKENS.get(size, FEW_TOKENS)]
    rows, missing = (list(have.rows), list(have.missing)) if have else ([], [])
    done = {(row.size, row.m) for row in rows if row.kind == "product"}
    if "XL" in sizes and not any(row.kind == "adaln" for row in rows):
        rows += modulation_rows(rates)
    todo = [step for step in steps if step not in done]
    if not todo:
        yield _record(rows, missing, rates)
    with Bar("kernels", len(todo)) as bar:
        for count, (size, m) in enumerate(todo, start=1):
            for linear in linears(WIDTHS[size]):
                rows += with_ratios(list(product_rows(size, linear, m, rates, missing)))
            rows += row_wise_rows(size, m, rates)
            bar.advance()
            over = time.monotonic() > deadline
            left = [_unreached(step, seconds) for step in todo[count:] if over]
            yield _record(rows, [*missing, *left], rates)
            if over:
                return


LIMIT = "(--seconds) was reached"


def _unreached(step: tuple[str, int], seconds: float) -> Missing:
    size, m = step
    return Missing(what=f"kernels of {size}, M = {m}", reason=f"the limit of {seconds:g} s {LIMIT}")


def kept(path: Path, rates: Rates) -> Kernels | None:
    """What an earlier run measured, whole sizes and M, when it holds: same code, same rates, and so the same GPU."""
    if not path.is_file():
        return None
    earlier = build(Kernels, read_json(path), str(path))
    if (earlier.provenance.get("code"), earlier.rates) != (code(), rates):
        return None
    return earlier.model_copy(update={"missing": tuple(m for m in earlier.missing if LIMIT not in m.reason)})


def code() -> str:
    return provenance.code_digest(__name__)


def _record(rows: list[KernelRow], missing: list[Missing], rates: Rates) -> Kernels:
    facts = {"protocol": "graph replays over rotating inputs", "nvrtc": jit.nvrtc_version(), "cuda": torch.version.cuda}
    facts["code"] = code()
    record = provenance.collect(torch.cuda.get_device_name(), **facts)
    return Kernels(rows=tuple(rows), missing=tuple(missing), rates=rates, provenance=record)


def product_rows(size: str, linear: Linear, m: int, rates: Rates, missing: list[Missing]) -> Iterator[KernelRow]:
    """One linear at m tokens: libraries, then this engine at every width, plain and as the network uses it."""
    n, k = linear.n, linear.k
    count = sets(2 * m * (n + k))
    facts = {"kind": "product", "size": size, "shape": linear.name, "m": m, "n": n, "k": k, "sets": count}
    outs = [torch.empty(m, n, dtype=torch.bfloat16, device=DEVICE) for _ in range(count)]
    a = [torch.randn(m, k, dtype=torch.bfloat16, device=DEVICE) for _ in outs]
    w = [torch.randn(n, k, dtype=torch.bfloat16, device=DEVICE).T for _ in outs]
    for unit, name, calls in (
        ("bf16", "torch.mm bf16", [partial(torch.mm, *pair, out=out) for *pair, out in zip(a, w, outs, strict=True)]),
        ("e4m3", "torch._scaled_mm fp8", _float8(a, w)),
        ("s8", "torch._int_mm int8", _int8(a, w)),
    ):
        try:
            times = graph_times(calls)
        except (RuntimeError, NotImplementedError) as error:  # a library refuses a shape or a GPU
            missing.append(Missing(what=f"{name} {linear.name} {size} m={m}", reason=str(error).splitlines()[0]))
            continue
        yield KernelRow(**facts, kernel=name, unit=unit, bound=bounds.library_product(m, n, k, unit, rates), **times)
    del a, w
    yield from _int8_rows(facts, outs[:1], rates, missing)
    images = max(1, m // IMAGE_TOKENS)
    fused = _epilogue(linear.epilogue, m, n, images)
    for bits in BITS:
        plain = random_operands(m, n, k, bits)
        for more in ({}, fused) if fused else ({},):
            operands = as_in_network(linear, *plain) if more else plain
            pairs = [operands, *((_copy(operands[0]), _copy(operands[1])) for _ in outs[1:])]
            if more and linear.feeds:
                more = more | {"sums": packing.empty_sums(m, operands[0].step.device).zero_()}
            error = disagreement(*operands, **more)
            calls = [partial(gemm, *pair, out=out, **more) for pair, out in zip(pairs, outs, strict=True)]
            name = " ".join([f"W1.58A{bits}", *([more["epilogue"]] if more else [])])
            gates = images if more.get("epilogue") == "gate" else 0
            begun = {"feeds": linear.feeds, "fed": linear.fed} if more else {}
            bound = bounds.ternary_product(m, n, k, bits, gates, rates, **begun)
            row = {"kernel": name, "bits": bits, "unit": "b1", "bound": bound, "relative_error": error}
            row["tile"] = str(tile_for(operands[0].planes.device, m, n, operands[0].planes.shape[2] * 128, bits))
            yield KernelRow(**facts, **row, **graph_times(calls))


def _int8_rows(facts: dict[str, Any], outs: list[Tensor], rates: Rates, missing: list[Missing]) -> Iterator[KernelRow]:
    """This engine's path for GPUs without a fast single-bit unit: the same operands on the INT8 tensor cores."""
    m, n, k = facts["m"], facts["n"], facts["k"]
    x, weight = random_operands(m, n, k, 2)
    try:
        bytes_of = int8_weight(weight)
        error = disagreement(x, weight, multiply=lambda x, _, **more: gemm_int8(x, bytes_of, **more))
        times = graph_times([partial(gemm_int8, x, bytes_of, out=out) for out in outs])
    except BenchError as error:
        missing.append(Missing(what=f"INT8 A2 {facts['shape']} {facts['size']} m={m}", reason=str(error)))
        return
    bound = bounds.library_product(m, n, k, "s8", rates)
    yield KernelRow(**facts, kernel="INT8 A2", bits=2, unit="s8", bound=bound, relative_error=error, **times)


def with_ratios(rows: list[KernelRow]) -> list[KernelRow]:
    """Rows of one linear with the libraries' times over theirs."""
    base = {row.kernel: row.us for row in rows}
    bf16, fp8 = base.get("torch.mm bf16"), base.get("torch._scaled_mm fp8")
    ratio = {"over_bf16": bf16, "over_fp8": fp8}
    return [row.model_copy(update={name: us and us / row.us for name, us in ratio.items()}) for row in rows]


def random_operands(m: int, n: int, k: int, bits: int) -> tuple[packing.PackedActivation, packing.PackedWeight]:
    """Random packed operands on the current GPU, low-rank branch and bias included."""
    codes = torch.randint(0, 2**bits, (m, k), device=DEVICE)
    ternary = torch.randint(-1, 2, (n, k), device=DEVICE)
    alpha, step = torch.rand(n, device=DEVICE) / 10, torch.rand(m, device=DEVICE)
    bias, up, down = (torch.randn(*shape, device=DEVICE) for shape in ((n,), (n, 16), (m, 16)))
    return packing.pack_activation(codes, bits, step, down=down), packing.pack_weight(ternary, alpha, bias, up)


def as_in_network(
    linear: Linear, x: packing.PackedActivation, weight: packing.PackedWeight
) -> tuple[packing.PackedActivation, packing.PackedWeight]:
    """The operands with what fc1 does for fc2: signs and down-projection that fc1 is given, sums that fc2 is."""
    if linear.feeds:
        rotation = random_rotation(linear.n)
        down, _ = pack_next(torch.randn(packing.RANK, linear.n, device=DEVICE), rotation)
        return x, replace(weight, next_flips=rotation.flips, next_down=down)
    if linear.fed:
        return replace(x, down=packing.pack_sums((4 * x.down.float()).round().int())), weight
    return x, weight


def _copy(packed: Any) -> Any:
    """The same operand at other addresses."""
    tensors = {f.name: getattr(packed, f.name) for f in fields(packed)}
    return replace(packed, **{name: t.clone() for name, t in tensors.items() if isinstance(t, Tensor)})


def _epilogue(name: str, m: int, n: int, images: int) -> dict[str, Any]:
    if name != "gate":
        return {} if name == "none" else {"epilogue": name}
    gate, residual = (torch.randn(rows, n, device=DEVICE).bfloat16() for rows in (images, m))
    return {"epilogue": "gate", "gate": gate, "residual": residual}


def _float8(a: list[Tensor], w: list[Tensor]) -> list[Callable[[], Tensor]]:
    one, eight = torch.ones((), device=DEVICE), torch.float8_e4m3fn
    multiply = partial(torch._scaled_mm, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)
    return [partial(multiply, x.to(eight), y.to(eight)) for x, y in zip(a, w, strict=True)]


def _int8(a: list[Tensor], w: list[Tensor]) -> list[Callable[[], Tensor]]:
    def codes(x: Tensor) -> Tensor:
        return (x * 30).round().clamp(-127, 127).to(torch.int8)

    return [partial(torch._int_mm, codes(x), codes(y)) for x, y in zip(a, w, strict=True)]


def disagreement(
    x: packing.PackedActivation, weight: packing.PackedWeight, multiply: Callable[..., Tensor] = gemm, **epilogue: Any
) -> float:
    """Relative error of the product against float64; with `sums`, theirs if larger.

    Raises BenchError beyond the rounding of bfloat16.
    """
    sums = epilogue.get("sums")
    expected = reference.gemm_reference(x, weight, **{k: v for k, v in epilogue.items() if k != "sums"})
    settle()
    out = torch.full((x.m, weight.n), float("nan"), dtype=torch.bfloat16, device=x.planes.device)
    error = ((multiply(x, weight, out=out, **epilogue).double() - expected).norm() / expected.norm()).item()
    if sums is not None:
        wanted = reference.sums_reference(out, weight.next_down)
        error = max(error, ((packing.unpack_sums(sums, x.m) - wanted).norm() / wanted.norm()).item())
    if not error < ROUNDING:
        raise BenchError(f"the kernel disagrees with float64 by {error:.2g} at m={x.m}, n={weight.n}, k={x.k}")
    return error


def row_wise_rows(size: str, m: int, rates: Rates) -> Iterator[KernelRow]:
    """The row-wise kernel as the network uses it, beside a copy: modulated tokens, attention's output, the MLP's, which
    come signed and with their low-rank branch begun ("signed").
    """
    width = WIDTHS[size]
    for use, channels in (("modulate", width), ("none", width), ("signed", 4 * width)):
        pre = "none" if use == "signed" else use
        count = sets(2 * m * channels)
        facts = {"kind": "row-wise", "size": size, "shape": f"{use} {channels}", "m": m, "k": channels, "sets": count}
        x = [torch.randn(m, channels, dtype=torch.bfloat16, device=DEVICE) for _ in range(count)]
        images = max(1, m // IMAGE_TOKENS)
        shift_and_scale = [torch.randn(images, channels, device=DEVICE).bfloat16() for _ in range(2)]
        given = {"pre": pre, "modulation": tuple(shift_and_scale) if pre == "modulate" else None}
        rotation = random_rotation(channels).of_signed() if use == "signed" else random_rotation(channels)
        to = torch.empty_like(x[0])
        times = graph_times([partial(to.copy_, part) for part in x])
        yield KernelRow(**facts, kernel="copy", bound=bounds.copy(m, channels, rates), **times)
        down = pack_down(torch.randn(packing.RANK, channels, device=DEVICE), rotation, pre)
        branched = () if use == "signed" else tuple((bits, down) for bits in BITS)
        for bits, branch in (*((bits, None) for bits in (BITS if use == "signed" else (2,))), *branched):
            wrong = wrong_codes(x[0], rotation, bits, **given)
            outs = [rotate_quantize(part, rotation, bits, down=branch, **given) for part in x]
            run = partial(rotate_quantize, rotation=rotation, bits=bits, down=branch, **given)
            calls = [partial(run, part, out=out) for part, out in zip(x, outs, strict=True)]
            name = f"row-wise A{bits}" + (" and rank 16" if branch is not None else "")
            bound = bounds.row_wise(m, channels, bits, images if pre == "modulate" else 0, branch is not None, rates)
            yield KernelRow(**facts, kernel=name, bits=bits, bound=bound, wrong_codes=wrong, **graph_times(calls))


def random_rotation(width: int) -> Any:
    """The recipe's full-width rotation with random signs, on the current GPU."""
    signs = torch.randint(0, 2, (width,), device=DEVICE) * 2 - 1
    return kernel_rotation(width, "full", signs)


def wrong_codes(x: Tensor, rotation: Any, bits: int, **given: Any) -> float:
    """Fraction of codes that differ from torch in float32 with the kernel's roundings.

    Raises BenchError above 1e-4, or when one is off by two.
    """
    settle()
    packed = rotate_quantize(x, rotation, bits, **given)
    rounded = roundings(rotation, len(x), x.device, **given)
    expected = reference.rotate_quantize_reference(x, rotation, bits, **given, **rounded)["codes"]
    off = (packing.unpack_activation(packed) - expected).abs()
    wrong = (off > 0).double().mean().item()
    if wrong > WRONG_CODES or off.max() > 1:
        raise BenchError(f"row-wise codes disagree with torch: {wrong:.2g} of them, by up to {off.max().item()}")
    return wrong
