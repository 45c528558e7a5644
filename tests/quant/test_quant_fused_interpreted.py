"""The kernels of the fused path without a GPU, by Triton's interpreter, in a process of its own (interpreted.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton comes with torch for CUDA")


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, float]]:
    """Relative errors of outputs and gradients, by case."""
    script = Path(__file__).with_name("interpreted.py")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_linears_differ_by_rounding_alone(found):
    for name, errors in found.items():
        if not name.startswith("attention"):
            rotated = name not in ("plain", "absmax")  # these meet edges of cells: see test_quant_fused_gpu
            assert max(errors.values()) < (0.007 if rotated else 0.02), (name, errors)


def test_attention_differs_by_rounding_alone(found):
    cases = [errors for name, errors in found.items() if name.startswith("attention")]
    assert len(cases) == 2 and max(error for errors in cases for error in errors.values()) < 0.005, cases
