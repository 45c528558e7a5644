"""The INT8 path without a GPU, in Triton's interpreter (which needs a process of its own), and its packing."""

import os
import subprocess
import sys

import pytest
import torch

from robuq_bench.engine.kernels import pack_weight
from robuq_bench.engine.kernels.int8 import int8_weight

SCRIPT = """
import torch
from robuq_bench.engine.kernels import pack_activation, pack_weight
from robuq_bench.engine.kernels.int8 import Int8Tile, gemm_int8, int8_weight, unpack_codes
from robuq_bench.engine.kernels.packing import unpack_activation
from robuq_bench.engine.kernels.reference import gemm_reference

torch.manual_seed(0)
for m, n, k, bits, epilogue in ((33, 40, 96, 2, "none"), (20, 33, 128, 4, "gelu"), (34, 40, 160, 1, "gate")):
    x = pack_activation(torch.randint(0, 2**bits, (m, k)), bits, torch.rand(m), offset=torch.randn(m) / 10)
    weight = pack_weight(torch.randint(-1, 2, (n, k)), torch.rand(n) / 10, torch.randn(n))
    assert torch.equal(unpack_codes(x)[:, :k].long(), unpack_activation(x))
    more = {}
    if epilogue == "gate":
        more = {"gate": torch.randn(2, 3 * n).bfloat16()[:, n : 2 * n], "residual": torch.randn(m, n).bfloat16()}
    out = gemm_int8(x, int8_weight(weight), epilogue=epilogue, tile=Int8Tile(16, 32, 32, 4, 1), **more)
    expected = gemm_reference(x, weight, epilogue, **more)
    # The interpreter cuts bfloat16 off instead of rounding: up to 2^-7.
    torch.testing.assert_close(out.double(), expected, rtol=2**-7, atol=2e-3)
"""


def test_it_is_the_same_function_as_the_bit_serial_product():
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_weights_are_the_same_layer_padded_to_whole_units():
    ternary, alpha, up = torch.randint(-1, 2, (40, 96)), torch.rand(40), torch.randn(40, 16).bfloat16()
    weight = int8_weight(pack_weight(ternary, alpha, up=up))
    assert weight.ternary.dtype == torch.int8 and tuple(weight.ternary.shape) == (40, 128)
    assert torch.equal(weight.ternary[:, :96].long(), ternary) and not weight.ternary[:, 96:].any()
    assert torch.equal(weight.alpha, alpha) and torch.equal(weight.up, up)
    assert torch.equal(weight.weight_sum, ternary.sum(-1).float())
