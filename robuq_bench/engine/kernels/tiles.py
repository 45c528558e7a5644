"""How the bit-serial product is cut: three kernels, each with its own tiles, and which to take for a shape."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from robuq_bench.engine.kernels import jit

STATIC = 2048  # bytes of shared memory that the kernels and the driver take besides
THREADS = 640  # of 96 registers each, that a multiprocessor holds
CHANNEL_BYTES = 48  # of the constants of one output channel


class Tile(ABC):
    """One way to run the product; `bm` tokens x `bn` channels are a block's tile, a worker is 128 threads."""

    bm: int
    bn: int
    workers: int
    persistent: bool = True

    @property
    def threads(self) -> int:
        return self.workers * 128

    def blocks(self, m: int, n: int, processors: int) -> int:
        """Thread blocks for an output [m, n]."""
        tiles = -(-m // self.bm) * -(-n // self.bn)
        return min(tiles, processors) if self.persistent else tiles

    @abstractmethod
    def shared_bytes(self, units: int, bits: int) -> int:
        """Dynamic shared memory of a block, for `units` of 128 input channels."""

    @abstractmethod
    def source(self) -> tuple[str, dict[str, int]]:
        """The kernel and its own macros."""

    def fits(self, units: int, bits: int, shared: int) -> bool:
        return self.shared_bytes(units, bits) <= shared - STATIC

    def resident(self, units: int, bits: int, shared: int) -> int:
        """Blocks that a multiprocessor holds at a time; `shared` is the shared memory that one block can have."""
        by_memory = shared // (self.shared_bytes(units, bits) + STATIC)
        return min(by_memory, THREADS // self.threads)


@dataclass(frozen=True)
class MmaTile(Tile):
    """mma.sync, sm_80 and newer: `workers` on 128 tokens each, with `stages` of `chunk` units."""

    bn: int
    workers: int
    chunk: int
    stages: int
    bm = 128

    def shared_bytes(self, units: int, bits: int) -> int:
        ring = self.workers * self.stages * self.chunk * self.bm * 16
        return units * 2 * self.bn * 16 + ring + self.bn * CHANNEL_BYTES + 64

    def source(self) -> tuple[str, dict[str, int]]:
        return jit.read_source("gemm_common.cuh", "gemm_mma.cu"), {"CHUNK": self.chunk, "STAGES": self.stages}


@dataclass(frozen=True)
class StreamTile(Tile):
    """Hopper, many tokens: weights stay, tokens stream past; `side` workers of 128 channels each share a stream.

    turns: teams of workers multiply in turns, one finishing its tile while the next multiplies.
    """

    workers: int
    side: int
    chunk: int
    stages: int
    turns: bool = False
    bm = 64

    @property
    def bn(self) -> int:
        return 128 * self.side

    @property
    def threads(self) -> int:
        return self.workers * 128 + 128  # and those who feed them

    def shared_bytes(self, units: int, bits: int) -> int:
        rings = self.workers // self.side * self.stages * self.chunk * self.bm * 16
        return units * 2 * self.bn * 16 + rings + self.bn * CHANNEL_BYTES + 64

    def source(self) -> tuple[str, dict[str, int]]:
        text = jit.read_source("gemm_common.cuh", "gemm_hopper.cuh") + wgmma_source(128)
        macros = {"SIDE": self.side, "CHUNK": self.chunk, "STAGES": self.stages, "TURNS": int(self.turns)}
        return text + jit.read_source("gemm_wgmma.cu"), macros


@dataclass(frozen=True)
class SingleTile(Tile):
    """Hopper, few tokens: a block for each tile, split among `n_split` x `k_split` workers."""

    bn: int
    n_split: int
    k_split: int
    loads: int = 1  # pieces in which a worker's share of K comes
    bm = 64
    persistent = False

    @property
    def workers(self) -> int:
        return self.n_split * self.k_split

    def shared_bytes(self, units: int, bits: int) -> int:
        operands = units * 2 * self.bn * 16 + bits * units * self.bm * 16
        exchange = self.k_split * self.bn * 256 if self.k_split > 1 else 0
        return max(operands, exchange) + self.bn * CHANNEL_BYTES + 64

    def source(self) -> tuple[str, dict[str, int]]:
        text = jit.read_source("gemm_common.cuh", "gemm_hopper.cuh") + wgmma_source(self.bn // self.n_split)
        return text + jit.read_source("gemm_tile.cu"), {
            "NSPLIT": self.n_split,
            "KSPLIT": self.k_split,
            "LOADS": self.loads,
        }


def wgmma_source(bn: int) -> str:
    """The one instruction of the Hopper kernels, 64 x bn x 256 bits: its operand list is too long to write by hand."""
    count = bn // 2
    registers = ", ".join(f"%{i}" for i in range(count))
    operands = ", ".join(f'"+r"((&d[0][0])[{i}])' for i in range(count))
    return f"""
__device__ __forceinline__ void wgmma(int (&d)[{bn // 8}][4], unsigned long long a, unsigned long long w) {{
  asm volatile("{{\\n.reg .pred add;\\nsetp.eq.u32 add, 0, 0;\\n"
               "wgmma.mma_async.sync.aligned.m64n{bn}k256.s32.b1.b1.and.popc {{{registers}}}, "
               "%{count}, %{count + 1}, add;\\n}}"
               : {operands} : "l"(a), "l"(w));
}}
"""
