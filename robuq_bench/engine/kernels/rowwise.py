"""Tokens to packed codes in one pass: modulate or GELU, rotate, scale, quantise, pack, project down."""

import ctypes
import functools
from dataclasses import dataclass
from math import gcd, pi, sqrt
from typing import Any

import torch
from torch import Tensor

from robuq_bench.engine.kernels import jit
from robuq_bench.engine.kernels.packing import RANK, ROWS, PackedActivation
from robuq_bench.engine.kernels.rotation import Rotation
from robuq_bench.engine.kernels.tensor_map import BYTES, tensor_map
from robuq_bench.errors import BenchError
from robuq_bench.quant import gaussian

POINTERS = ("x", "scale", "shift", "mix", "flips", "down", "planes", "code_sum", "step", "offset", "low", "cleared")
STATIC = 12 * 1024  # bytes: the portable kernel's other shared memory, and what the driver keeps of each block
PRE = {"none": 0, "modulate": 1, "gelu": 2}
TOKENS = {"none": torch.bfloat16, "modulate": torch.float16, "gelu": torch.bfloat16}  # as they enter the rotation


class _Arguments(ctypes.Structure):
    """`struct Rowwise` of rowwise.cu."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in POINTERS]
        + [(name, ctypes.c_int) for name in ("m", "image_tokens", "clears", "settled")]
        + [("modulation_stride", ctypes.c_longlong)]
        + [(name, ctypes.c_float) for name in ("norm", "unscale", "cell", "epsilon")]
    )


class _Signed(ctypes.Structure):
    """`struct Signed` of rowwise_signed.cu."""

    _fields_ = (("tokens", ctypes.c_ubyte * BYTES), ("rowwise", _Arguments), ("rest", ctypes.c_ubyte * 56))


@dataclass(frozen=True)
class Plan:
    """The portable kernel, rowwise_mma.cu, and how its work is shared out."""

    rows: int
    columns: int
    layers: int
    slot: int
    blocks: int  # of a multiprocessor
    warps: int

    sources = ("rowwise_layout.cuh", "rowwise_prepare.cuh", "rowwise_product.cuh", "rowwise_mma.cu")

    @property
    def tokens(self) -> int:
        """What a block does at a time."""
        return 4 * self.layers

    def shared(self, bits: int, pre: str) -> int:
        """Bytes of shared memory that a block asks for."""
        return self.tokens * (2 * self.rows * self.columns + 64)

    def macros(self, image_tokens: int) -> dict[str, int]:
        # With ONE_IMAGE no block meets tokens of two images at a time.
        return {"LAYERS": self.layers, "SLOT": self.slot, "ONE_IMAGE": int(image_tokens % self.tokens == 0)}


@dataclass(frozen=True)
class TeamPlan:
    """The same for rowwise_wgmma.cu: Hopper, rotations of 36 rows by 32 or 128 columns."""

    rows: int
    columns: int
    teams: int  # of a block; of one warpgroup or, for 128 columns, of two
    steps: int
    blocks: int

    sources = ("rowwise_hopper.cuh", "rowwise_team.cuh", "rowwise_wgmma.cu")

    @property
    def step_tokens(self) -> int:
        return 4 if self.columns == 32 else 2

    @property
    def tokens(self) -> int:
        return self.step_tokens * self.teams * self.steps

    @property
    def warps(self) -> int:
        return self.teams * (4 if self.columns == 32 else 8)

    def shared(self, bits: int, pre: str) -> int:
        step = 9504 if self.columns == 32 else 18688  # bytes of a step's tokens, SLOT in the source
        signs = 2048 * (4 if self.columns == 32 else 8)
        codes = self.tokens * bits * self.rows * self.columns // 8
        tables = self.teams * 8 * self.rows * self.columns if pre == "modulate" else 0
        return 2 * self.teams * self.steps * step + signs + 12800 + codes + tables

    def macros(self, image_tokens: int) -> dict[str, int]:
        return {"TEAMS": self.teams, "STEPS": self.steps}


@dataclass(frozen=True)
class SignedPlan:
    """The same for rowwise_signed.cu: Hopper, rotations of 36 rows by 128 columns, tokens that bring their signs."""

    rows: int
    columns: int
    blocks: int = 2
    ring: int = 3
    teams = 1
    tokens = 2
    warps = 8

    sources = ("rowwise_hopper.cuh", "rowwise_signed.cu")

    def shared(self, bits: int, pre: str) -> int:
        width = self.rows * self.columns
        return self.ring * 4 * width + 2048 * 8 + 12800 + 2 * bits * width // 4

    def macros(self, image_tokens: int) -> dict[str, int]:
        return {"RING": self.ring}

    def launch_arguments(self, x: Tensor, arguments: _Arguments) -> ctypes.Structure:
        """With the map by which tokens x come."""
        tokens = tensor_map(x.view(-1, self.columns), 2 * self.rows, 64, swizzled=True)
        return _Signed((ctypes.c_ubyte * BYTES)(*tokens), arguments)


def plan(rows: int, columns: int, shared: int) -> Plan:
    """The portable plan for tokens [rows, columns] on a multiprocessor with `shared` bytes of shared memory."""
    # What rows leave over 16 is stacked, four tokens or two in a warp; four of wide rows would keep the others waiting.
    slot = next(size for size in (0, 4 if columns < 128 else 8, 8, 16) if rows % 16 <= size)
    warps = 4 * (rows // 16) + slot // 4
    # A thread holds sums of 16 rows and 64 or 128 channels: then 28 or 20 warps fill a multiprocessor's registers.
    layers = max(64 // columns, 1)
    most = max((20 if columns == 128 else 28) // warps, 1)
    plans = (Plan(rows, columns, layers, slot, blocks, warps) for blocks in range(most, 0, -1))
    for fitting in plans:
        if fitting.blocks * (fitting.shared(4, "none") + STATIC) <= shared:
            return fitting
    raise BenchError(f"tokens of {rows * columns} channels do not fit in {shared} bytes of shared memory")


def team_plan(rows: int, columns: int, pre: str, m: int, image_tokens: int, processors: int) -> TeamPlan | None:
    """Hopper's plan for m tokens, if there is one. image_tokens: a divisor of the number of tokens of an image."""
    if rows != 36 or columns not in (32, 128):
        return None
    if pre == "modulate" and (columns == 128 or image_tokens % 4):  # a warp has a whole token, a team one image
        return None
    few = m <= 4 * processors  # a block for every four tokens
    if columns == 32:
        return TeamPlan(rows, columns, 1, 1, 4) if few else TeamPlan(rows, columns, 2, 1, 2)
    return TeamPlan(rows, columns, 2, 1 if few else 2, 1)


def source_and_macros(
    plan: Plan | TeamPlan, bits: int, pre: str, rank: bool, center: bool, levels: str, image_tokens: int
) -> tuple[str, dict[str, int]]:
    """What NVRTC is given for one kernel. image_tokens: a divisor of the number of tokens of an image."""
    macros = {"R": plan.rows, "C": plan.columns, "BLOCKS": plan.blocks, "BITS": bits, "PRE": PRE[pre]}
    macros |= {"RANK": int(rank), "CENTER": int(center), "MIDTREAD": int(levels == "midtread")}
    return jit.read_source("rowwise_common.cuh", *plan.sources), macros | plan.macros(image_tokens)


@functools.cache
def _choose(
    rotation: tuple[int, int], pre: str, m: int, image_tokens: int, bare: bool, device: torch.device
) -> Plan | TeamPlan | SignedPlan:
    properties = torch.cuda.get_device_properties(device)
    if bare and rotation == (36, 128) and jit.architecture(device) == "sm_90a":
        return SignedPlan(*rotation)
    teams = team_plan(*rotation, pre, m, image_tokens, properties.multi_processor_count)
    if teams and jit.architecture(device) == "sm_90a":
        return teams
    return plan(*rotation, properties.shared_memory_per_block_optin)


def roundings(
    rotation: Rotation, m: int, device: torch.device, *, pre: str, modulation: tuple[Tensor, Tensor] | None = None
) -> dict[str, Any]:
    """Where the kernel for such tokens rounds: options of `reference.rotate_quantize_reference`."""
    chosen = _choose((len(rotation.mix), rotation.columns), pre, m, _image_tokens(m, modulation), False, device)
    return {"rounded": TOKENS[pre], "tf32": isinstance(chosen, TeamPlan)}


@functools.cache
def _kernel(
    chosen: Plan | TeamPlan,
    bits: int,
    pre: str,
    rank: bool,
    center: bool,
    levels: str,
    image_tokens: int,
    device: torch.device,
) -> jit.Kernel:
    source, macros = source_and_macros(chosen, bits, pre, rank, center, levels, image_tokens)
    cubin = jit.compile_cubin(source, jit.architecture(device), macros)
    return jit.Kernel(cubin, "rowwise", chosen.shared(bits, pre), device)


def rotate_quantize(
    x: Tensor,
    rotation: Rotation,
    bits: int,
    *,
    pre: str = "none",
    modulation: tuple[Tensor, Tensor] | None = None,
    down: Tensor | None = None,
    center: bool = False,
    levels: str = "midrise",
    epsilon: float = 1e-6,
    settled: bool = False,
    clears: Tensor | None = None,
    out: PackedActivation | None = None,
) -> PackedActivation:
    """Quantised and packed tokens of x, bfloat16 [m, width], on torch's current stream.

    pre: "none"; "gelu" (tanh form); "modulate", LayerNorm without affine, then (1 + scale) * . + shift with
    modulation = (scale, shift), each bfloat16 [images, width], whose rows may lie further apart than `width`. down:
    `pack_down` of the low-rank branch's first factor, applied to the rotated, unquantised token. center: quantise
    around the token's mean (gives `offset`). levels: "midrise" or "midtread". The step is sqrt(pi / 2) * mean|x| times
    the optimal step for N(0, 1). settled: the modulation was made three launches ago or earlier on this stream, so that
    it may be read before the launch before has ended.
    clears: set to zero besides (`empty_sums`), for the product after this.
    out: what an earlier call with the same options gave, to be overwritten.
    What precedes the rotation is rounded once: modulated tokens to float16 (|1 + scale| below 1900 keeps them finite),
    GELU to bfloat16. On Hopper the sums over columns of some rotations are rounded to 11 bits: see docs/engine.md.
    The rotation and `down` are constants: no kernel launched just before may write them.
    Raises BenchError on operands that do not fit, no GPU, or one older than sm_80.
    """
    device = x.device
    jit.architecture(device)
    m, width = _check(x, rotation, bits, levels, pre, modulation)
    if down is not None and (down.numel() != width * RANK or down.dtype != TOKENS[pre]):
        raise BenchError(f"the down-projection is not that of a layer with {width} inputs and pre='{pre}'")
    shift = -(2**bits - 1) / 2 if levels == "midrise" else -(2.0 ** (bits - 1))
    if out is None:
        out = _empty(m, width, bits, shift, center, down is not None, device)
    elif (out.m, out.k, out.bits, out.shift, out.offset is not None, out.down is not None, out.step.device) != (
        *(m, width, bits, shift, center, down is not None, device),
    ):
        raise BenchError("`out` comes from a call with other sizes or options")
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    image_tokens = _image_tokens(m, modulation)
    bare = pre == "none" and down is None and not rotation.signed
    chosen = _choose((len(rotation.mix), rotation.columns), pre, m, gcd(image_tokens, 16), bare, device)
    kernel = _kernel(chosen, bits, pre, down is not None, center, levels, gcd(image_tokens, 16), device)
    scale, shift_by = modulation or (None, None)
    tensors = (x, scale, shift_by, rotation.mix, rotation.flips, down)
    outputs = (out.planes, out.code_sum, out.step, out.offset, out.down, clears)
    arguments = _Arguments(
        *map(jit.pointer, (*tensors, *outputs)),
        m=m,
        image_tokens=image_tokens,
        clears=0 if clears is None else clears.numel() // 4,
        settled=settled,
        modulation_stride=scale.stride(0) // 8 if scale is not None else 0,
        norm=rotation.norm,
        unscale=1 / rotation.norm,
        cell=sqrt(pi / 2) * gaussian.step(levels, bits) * rotation.norm / width,
        epsilon=epsilon,
    )
    if isinstance(chosen, SignedPlan):
        arguments = chosen.launch_arguments(x, arguments)
    blocks = min(-(-m // chosen.tokens), processors * chosen.blocks)
    kernel(blocks, 32 * chosen.warps, arguments)
    return out


def _image_tokens(m: int, modulation: tuple[Tensor, Tensor] | None) -> int:
    return m // len(modulation[0]) if modulation else 16


def _empty(
    m: int, width: int, bits: int, shift: float, center: bool, rank: bool, device: torch.device
) -> PackedActivation:
    return PackedActivation(
        # Rows past m are multiplied, but their outputs are never stored.
        planes=torch.empty(-(-m // ROWS), bits, width // 128, ROWS, 4, dtype=torch.int32, device=device),
        code_sum=torch.empty(m, dtype=torch.int32, device=device),
        step=torch.empty(m, device=device),
        m=m,
        k=width,
        bits=bits,
        shift=shift,
        offset=torch.empty(m, device=device) if center else None,
        down=torch.empty(m, RANK, dtype=torch.bfloat16, device=device) if rank else None,
    )


def _check(
    x: Tensor,
    rotation: Rotation,
    bits: int,
    levels: str,
    pre: str,
    modulation: tuple[Tensor, Tensor] | None,
) -> tuple[int, int]:
    if x.ndim != 2 or x.dtype != torch.bfloat16 or not x.is_contiguous() or x.shape[1] != rotation.width:
        raise BenchError(f"tokens must be contiguous bfloat16 [m, {rotation.width}], not {x.dtype} {list(x.shape)}")
    if not len(x):
        raise BenchError("there are no tokens to quantise")
    if bits not in gaussian.STEPS.get(levels, {}) or bits not in (1, 2, 3, 4) or pre not in PRE:
        raise BenchError(f"{levels} levels of {bits} bits after pre-operation '{pre}' are not supported")
    if (pre == "modulate") != (modulation is not None):
        raise BenchError("a modulation goes with pre='modulate'")
    for tensor in modulation or ():
        if tensor.dtype != torch.bfloat16 or tensor.shape[1:] != x.shape[1:] or tensor.stride(1) != 1:
            raise BenchError(f"the modulation must be bfloat16 [images, {x.shape[1]}] with contiguous rows")
        if tensor.stride() != modulation[0].stride() or tensor.shape != modulation[0].shape:
            raise BenchError("scale and shift must have one shape and one distance between rows")
        if not len(tensor) or len(x) % len(tensor):
            raise BenchError(f"{len(x)} tokens cannot be shared out evenly among {len(tensor)} rows of modulation")
        if tensor.stride(0) % 8:
            raise BenchError("rows of the modulation must lie a multiple of 8 channels apart")
    if any(tensor.data_ptr() % 16 for tensor in (x, *(modulation or ()))):
        raise BenchError("tokens and modulation must start at a multiple of 16 bytes")
    return x.shape
