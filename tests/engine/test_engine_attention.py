"""Which attention takes a shape, and that the kernels compile; without a GPU."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from robuq_bench.engine.kernels import jit
from robuq_bench.engine.kernels.attention import Shape, ShortKernel, StreamKernel, compiled, rule
from robuq_bench.errors import BenchError

HOPPER = ("sm_90a", 132, 232448)
AMPERE = ("sm_80", 108, 166912)
XL, LONG, SMALL = Shape(256, 16, 72), Shape(1024, 16, 72), Shape(64, 6, 64)


@pytest.mark.parametrize(
    ("images", "shape", "gpu", "expected"),
    [
        (1, XL, HOPPER, ShortKernel(XL)),
        (2, XL, HOPPER, ShortKernel(XL)),  # 128 blocks on 132 multiprocessors
        (3, XL, HOPPER, StreamKernel(XL, 128)),
        (4, XL, HOPPER, StreamKernel(XL, 128)),  # 128 halves
        (256, XL, HOPPER, StreamKernel(XL, 256)),
        (64, Shape(256, 6, 64), HOPPER, StreamKernel(Shape(256, 6, 64), 256)),
        (1, XL, AMPERE, ShortKernel(XL)),
        (2, XL, AMPERE, None),
        (64, XL, AMPERE, None),
        (1, LONG, HOPPER, None),
        (22, SMALL, HOPPER, ShortKernel(SMALL)),
        (23, SMALL, HOPPER, None),
        (64, Shape(256, 4, 32), HOPPER, None),
    ],
)
def test_the_rule(images, shape, gpu, expected):
    assert rule(images, shape, *gpu) == expected


@pytest.mark.parametrize("images", [1, 7, 64])
def test_blocks_cover_all_queries(images):
    for kernel in (ShortKernel(XL), StreamKernel(XL, 256), StreamKernel(XL, 128)):
        queries = 64 if isinstance(kernel, ShortKernel) else kernel.queries
        blocks = kernel.blocks(images, 10**6)
        assert blocks * queries == images * XL.heads * XL.tokens
        assert 0 < kernel.blocks(images, 132) <= blocks


def test_two_stages_fit_into_a_block_of_hopper():
    assert StreamKernel(XL, 256).fits("sm_90a", 232448) and StreamKernel(Shape(256, 16, 64), 256).fits("sm_90a", 232448)
    assert not StreamKernel(XL, 256).fits("sm_90a", 221184)  # the barriers want some
    assert not StreamKernel(XL, 256).fits("sm_80", 232448)


@pytest.mark.parametrize(
    ("arch", "kernel"),
    [
        ("sm_80", ShortKernel(XL)),
        ("sm_90a", ShortKernel(SMALL)),
        ("sm_90a", StreamKernel(XL, 256)),
        ("sm_90a", StreamKernel(XL, 128)),
        ("sm_90a", StreamKernel(Shape(256, 6, 64), 256)),
    ],
)
def test_they_compile(compiler, arch, kernel):
    assert compiled(kernel, arch).startswith(b"\x7fELF")


@pytest.fixture
def encoder(monkeypatch):
    """Stands for the driver: notes what maps are asked for, and fills them with their number."""
    asked = []

    def encode(place, kind, rank, address, sizes, strides, box, steps, interleave, swizzle, promotion, fill):
        asked.append((kind, rank, address.value, list(sizes), list(strides), list(box), list(steps), swizzle))
        assert place.value % 64 == 0 and interleave == fill == 0
        ctypes.memset(place, len(asked), 128)
        return encode.status

    encode.status = 0
    monkeypatch.setattr(jit, "driver", lambda: SimpleNamespace(cuTensorMapEncodeTiled=encode))
    return SimpleNamespace(asked=asked, encode=encode)


def test_arguments_of_the_stream(encoder):
    """Both maps, then the output, the scale and the number of items; the size is a multiple of 64, as in CUDA."""
    qkv, out = torch.zeros(512, 3456, dtype=torch.bfloat16), torch.zeros(512, 1152, dtype=torch.bfloat16)
    arguments = StreamKernel(XL, 128).arguments(qkv, out, 2)
    assert ctypes.sizeof(arguments) == 320 and bytes(arguments.maps) == b"\1" * 128 + b"\2" * 128
    assert (arguments.out, arguments.items) == (out.data_ptr(), 2 * 16 * 2)
    assert arguments.scale == pytest.approx(72**-0.5 / 0.6931472)
    matrix = (9, 2, qkv.data_ptr(), [3456, 512], [6912])
    assert encoder.asked == [(*matrix, [64, 128], [1, 1], 3), (*matrix, [8, 128], [1, 1], 0)]


def test_a_map_that_the_driver_refuses_is_an_error(encoder):
    encoder.encode.status = 1
    with pytest.raises(BenchError, match="no tensor map of 512 x 3456 in boxes of 128 x 64"):
        StreamKernel(XL, 128).arguments(torch.zeros(512, 3456, dtype=torch.bfloat16), torch.zeros(1), 2)
