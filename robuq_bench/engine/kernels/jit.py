"""CUDA C++ compiled at run time without nvcc: NVRTC and the driver API, both through ctypes.

torch's CUDA wheels bring NVRTC along, and the driver is there wherever a GPU is, so nothing is built at install time
and importing this module needs neither. Compiled machine code (cubin) is kept on disk under a key made of the source,
the architecture, the macros and the NVRTC version; `ROBUQ_BENCH_CACHE` moves that folder.
"""

import ctypes
import functools
import hashlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from robuq_bench.errors import BenchError
from robuq_bench.files import atomic

CUDA_FOLDER = Path(__file__).parent / "cuda"
OLDEST = (8, 0)  # the first architecture with the single-bit and.popc tensor-core instruction


def cache_folder() -> Path:
    """Where compiled kernels are kept: `$ROBUQ_BENCH_CACHE`, else the platform's cache folder."""
    given = os.environ.get("ROBUQ_BENCH_CACHE")
    if given:
        return Path(given)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "robuq-bench" / "kernels"


def architecture(device: torch.device | None = None) -> str:
    """The target of a CUDA device, e.g. `sm_90a`. Raises BenchError when there is none, or it is too old."""
    if not torch.cuda.is_available():
        raise BenchError("the kernels need an NVIDIA GPU (sm_80 or newer) and a CUDA build of torch; none was found")
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        name = torch.cuda.get_device_name(device)
        raise BenchError(f"{name} is sm_{capability[0]}{capability[1]}; the kernels need sm_80 or newer")
    # The suffix unlocks wgmma, which only Hopper has.
    return "sm_90a" if capability == (9, 0) else f"sm_{capability[0]}{capability[1]}"


@functools.cache
def nvrtc() -> ctypes.CDLL:
    """The NVRTC library that belongs to this torch. Raises BenchError when it is not installed."""
    major = (torch.version.cuda or "13").split(".")[0]
    name = f"libnvrtc.so.{major}"
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    places = [path for root in roots for path in sorted(root.glob(f"*/lib/{name}"))]
    for place in [*places, name]:
        try:
            return ctypes.CDLL(str(place))
        except OSError:
            continue
    raise BenchError(f"{name} was not found; install nvidia-cuda-nvrtc, or a CUDA build of torch, which brings it")


def nvrtc_version() -> str:
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def read_source(*names: str) -> str:
    """The files of the `cuda` folder, joined in order (NVRTC knows no include path here)."""
    return "\n".join((CUDA_FOLDER / name).read_text(encoding="utf-8") for name in names)


def compile_cubin(source: str, arch: str, macros: Mapping[str, object] | None = None) -> bytes:
    """Machine code of `source` for `arch`, from the disk cache when it is there.

    Raises BenchError with the compiler's first error line, or when NVRTC is missing.
    """
    options = [f"--gpu-architecture={arch}", "--std=c++17", "-default-device"]
    options += [f"-D{name}={value}" for name, value in sorted((macros or {}).items())]
    key = hashlib.sha256("\0".join([nvrtc_version(), *options, source]).encode()).hexdigest()
    cached = cache_folder() / f"{key}.cubin"
    try:
        return cached.read_bytes()
    except OSError:
        pass
    cubin = _compile(source, options)
    with atomic(cached) as temporary:
        temporary.write_bytes(cubin)
    return cubin


def _compile(source: str, options: list[str]) -> bytes:
    library, program = nvrtc(), ctypes.c_void_p()
    library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    try:
        array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        if library.nvrtcCompileProgram(program, len(options), array):
            raise BenchError(f"a kernel did not compile: {_first_error(program)}")
        size = ctypes.c_size_t()
        library.nvrtcGetCUBINSize(program, ctypes.byref(size))
        code = ctypes.create_string_buffer(size.value)
        library.nvrtcGetCUBIN(program, code)
        return code.raw
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _first_error(program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    nvrtc().nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc().nvrtcGetProgramLog(program, log)
    lines = log.value.decode(errors="replace").splitlines()
    return next((line.strip() for line in lines if "error" in line), "no message")


@functools.cache
def driver() -> ctypes.CDLL:
    """The CUDA driver. Raises BenchError when it is not there."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError as error:
        raise BenchError("the CUDA driver was not found; the kernels need an NVIDIA GPU and its driver") from error
    library.cuLaunchKernelEx.argtypes = [ctypes.c_void_p] * 4
    return library


def pointer(tensor: torch.Tensor | None) -> int | None:
    """A kernel argument: the tensor's address, or null."""
    return None if tensor is None else tensor.data_ptr()


def _check(status: int, what: str) -> None:
    if status:
        text = ctypes.c_char_p()
        driver().cuGetErrorString(status, ctypes.byref(text))
        raise BenchError(f"{what} failed: {(text.value or b'unknown error').decode()}")


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: an identifier and a 64-byte value."""

    _fields_ = (("id", ctypes.c_int), ("gap", ctypes.c_int), ("value", ctypes.c_int), ("rest", ctypes.c_int * 15))


class _Launch(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


_joining: set[int] = set()  # streams whose next launch is not an early one


def join() -> None:
    """Torch's current stream has been told to wait for another: its next launch will be an ordinary one."""
    _joining.add(torch.cuda.current_stream().cuda_stream)


class Kernel:
    """One compiled kernel, loaded on one device: before any CUDA graph capture, as loading synchronises.

    `arguments` of a launch is a ctypes.Structure, passed by value as the kernel's only parameter.
    """

    def __init__(self, cubin: bytes, name: str, shared_bytes: int, device: torch.device):
        module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        self.shared_bytes, self.device = shared_bytes, device
        # Programmatic stream serialisation: a launch may overlap the end of the kernel before; ours wait by themselves.
        hopper = torch.cuda.get_device_capability(device) >= (9, 0)
        self._early = ctypes.pointer(_Attribute(id=6, value=1)) if hopper else None
        with torch.cuda.device(device):
            torch.cuda.current_stream().synchronize()  # makes torch's context the current one
            _check(driver().cuModuleLoadData(ctypes.byref(module), cubin), f"loading kernel {name}")
        found = driver().cuModuleGetFunction(ctypes.byref(self._function), module, name.encode())
        _check(found, f"finding kernel {name}")
        raised = driver().cuFuncSetAttribute(self._function, 8, shared_bytes)  # 8: most dynamic shared memory
        _check(raised, f"kernel {name}: taking {shared_bytes} bytes of shared memory")

    def __call__(self, blocks: int, threads: int, arguments: ctypes.Structure) -> None:
        """Launch on torch's current stream."""
        only = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        with torch.cuda.device(self.device):
            stream = torch.cuda.current_stream().cuda_stream
            early = None if stream in _joining else self._early
            _joining.discard(stream)
            launch = _Launch((blocks, 1, 1), (threads, 1, 1), self.shared_bytes, stream, early, early is not None)
            status = driver().cuLaunchKernelEx(ctypes.byref(launch), self._function, only, None)
        _check(status, "a kernel launch")
