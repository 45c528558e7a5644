"""Probe what the GPU can do: issue rates of its tensor-core instructions, copy bandwidth; clocks are read, never set.

A rate counts two operations a multiply-accumulate (single-bit and.popc products too), on random operands that never
leave registers or shared memory; the best of a few launch shapes is kept.
"""

import argparse
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from robuq_bench import provenance
from robuq_bench.engine.kernels import jit
from robuq_bench.errors import BenchError
from robuq_bench.files import write_json
from robuq_bench.measure.engine_records import Rate, Rates
from robuq_bench.measure.engine_timing import hardware
from robuq_bench.progress import Bar

EXAMPLE = "robuq-bench engine-rates --out results/engine/rates.json"
STEPS = 4  # instructions between two waits of a wgmma probe, as in rates.cu
CHAINS = 8
TARGET_MS = 4.0  # of one launch: long enough for the clock that steady work runs at
COPY_BYTES = 1 << 30


@dataclass(frozen=True)
class Instruction:
    """A tensor-core instruction m x n x k; `operands`: what PTX writes after the descriptors of a wgmma."""

    unit: str
    name: str
    m: int
    n: int
    k: int
    mnemonic: str
    oldest: tuple[int, int]
    operands: str = ""

    @property
    def warpgroup(self) -> bool:
        return self.name.startswith("wgmma")

    @property
    def floating(self) -> bool:
        return self.unit in ("e4m3", "bf16")


def _mma(unit: str, k: int, types: str, oldest: tuple[int, int] = (8, 0)) -> Instruction:
    name = f"mma.sync m16n8k{k}"
    return Instruction(unit, name, 16, 8, k, f"mma.sync.aligned.m16n8k{k}.row.col.{types}", oldest)


def _wgmma(unit: str, k: int, types: str, operands: str = "", n: int = 256) -> Instruction:
    mnemonic = f"wgmma.mma_async.sync.aligned.m64n{n}k{k}.{types}"
    return Instruction(unit, f"wgmma m64n{n}k{k}", 64, n, k, mnemonic, (9, 0), operands)


INSTRUCTIONS = (
    _mma("b1", 256, "s32.b1.b1.s32.and.popc"),
    _mma("s8", 32, "s32.s8.s8.s32"),
    _mma("e4m3", 32, "f32.e4m3.e4m3.f32", (8, 9)),
    _mma("bf16", 16, "f32.bf16.bf16.f32"),
    _wgmma("b1", 256, "s32.b1.b1.and.popc"),
    _wgmma("b1", 256, "s32.b1.b1.and.popc", n=128),
    _wgmma("s8", 32, "s32.s8.s8"),
    _wgmma("e4m3", 32, "f32.e4m3.e4m3", ", 1, 1"),
    _wgmma("bf16", 16, "f32.bf16.bf16", ", 1, 1, 0, 0"),
)


class _Arguments(ctypes.Structure):
    """`struct Rates` of rates.cu."""

    _fields_ = (
        *[(name, ctypes.c_void_p) for name in ("span", "sink")],
        *[(name, ctypes.c_int) for name in ("turns", "never")],
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")


def run(args: argparse.Namespace) -> None:
    jit.architecture()
    write_json(args.out, probe().model_dump(mode="json"))


def probe() -> Rates:
    """All rates of the current GPU. An instruction that it lacks is listed with the reason."""
    device = torch.device("cuda", torch.cuda.current_device())
    with Bar("tensor-core rates", len(INSTRUCTIONS)) as bar:
        found = []
        for instruction in INSTRUCTIONS:
            found.append(_rate(instruction, device))
            bar.advance()
    return Rates(
        rates=tuple(found),
        copy_bytes_per_s=_copy_rate(),
        hardware=hardware(),
        provenance=provenance.collect(torch.cuda.get_device_name(), nvrtc=jit.nvrtc_version()),
    )


def _rate(instruction: Instruction, device: torch.device) -> Rate:
    facts = {"unit": instruction.unit, "instruction": instruction.name}
    capability = torch.cuda.get_device_capability(device)
    if capability < instruction.oldest or (instruction.warpgroup and capability != (9, 0)):
        return Rate(**facts, reason=f"sm_{capability[0]}{capability[1]} has no such instruction")
    best = max((_measure(instruction, threads, device) for threads in _shapes(instruction)), key=lambda rate: rate[0])
    return Rate(**facts, ops_per_s=best[0], threads=best[1], clock_mhz=best[2])


def _shapes(instruction: Instruction) -> Iterator[int]:
    """Threads of a block to try: accumulators of wide wgmma tiles leave registers for two warpgroups."""
    yield from ((256,) if instruction.n == 256 else (256, 384, 512))


def source_and_macros(instruction: Instruction, threads: int) -> tuple[str, dict[str, object]]:
    """What NVRTC is given for one probe."""
    macros = {"WARPGROUP": int(instruction.warpgroup), "THREADS": threads, "NARROW": int(instruction.floating)}
    macros |= {"VALUE": "float" if instruction.floating else "int", "ACCUMULATORS": _accumulators(instruction)}
    macros |= {"CHAINS": CHAINS, "N": instruction.n}
    return _issue(instruction) + jit.read_source("rates.cu"), macros


def _accumulators(instruction: Instruction) -> int:
    return instruction.n // 2 if instruction.warpgroup else 4


def _issue(instruction: Instruction) -> str:
    """The function `issue` that rates.cu calls: one instruction, its operand list written out."""
    count = _accumulators(instruction)
    letter, value = ("f", "float") if instruction.floating else ("r", "int")
    registers = ", ".join(f"%{i}" for i in range(count))
    results = ", ".join(f'"+{letter}"(d[{i}])' for i in range(count))
    if instruction.warpgroup:
        tail = f"%{count}, %{count + 1}, add{instruction.operands};"
        body = f'"{{.reg .pred add; setp.eq.u32 add, 0, 0; {instruction.mnemonic} {{{registers}}}, {tail}}}"'
        inputs, takes = '"l"(a), "l"(b)', "unsigned long long a, unsigned long long b"
    else:
        a, b = (", ".join(f"%{count + i}" for i in part) for part in (range(4), range(4, 6)))
        body = f'"{instruction.mnemonic} {{{registers}}}, {{{a}}}, {{{b}}}, {{{registers}}};"'
        inputs = '"r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])'
        takes = "const unsigned (&a)[4], const unsigned (&b)[2]"
    head = f"__device__ __forceinline__ void issue({value} (&d)[{count}], {takes})"
    return f"{head} {{\n  asm volatile({body} : {results} : {inputs});\n}}\n"


def _measure(instruction: Instruction, threads: int, device: torch.device) -> tuple[float, int, float]:
    """(operations a second, threads, SM clock in MHz while it ran) of one launch shape."""
    source, macros = source_and_macros(instruction, threads)
    shared = STEPS * (64 + instruction.n) * 32 if instruction.warpgroup else 0
    kernel = jit.Kernel(jit.compile_cubin(source, jit.architecture(device), macros), "rates", shared, device)
    blocks = torch.cuda.get_device_properties(device).multi_processor_count
    span = torch.zeros(blocks, 2, dtype=torch.int64, device=device)
    sink = torch.zeros(1, device=device)

    def milliseconds(turns: int) -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        kernel(blocks, threads, _Arguments(span.data_ptr(), sink.data_ptr(), turns, 0))
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop)

    milliseconds(100)
    turns = max(100, round(1000 * TARGET_MS / milliseconds(1000)))
    taken = min(milliseconds(turns) for _ in range(5))
    teams, each = (threads // 128, STEPS) if instruction.warpgroup else (threads // 32, CHAINS)
    operations = 2.0 * instruction.m * instruction.n * instruction.k * teams * each * turns * blocks
    cycles, nanoseconds = span.double().mean(0).tolist()
    if not nanoseconds:
        raise BenchError(f"{instruction.name}: the probe kernel did not run")
    return operations / (taken / 1e3), threads, cycles / nanoseconds * 1e3


def _copy_rate() -> float:
    """Bytes a second of a large device copy, read and written bytes counted."""
    one, other = (torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda") for _ in range(2))
    times = []
    for _ in range(8):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        other.copy_(one)
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return 2.0 * COPY_BYTES / (min(times) / 1e3)
