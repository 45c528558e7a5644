"""Two GPUs at one training over NCCL, as users call it; see test_train_distributed for the same over gloo."""

import time

import numpy as np
import pytest
import torch
from test_train_distributed import AT_ONCE, PLAN, command, lose_a_process, run, said, weights

from robuq_bench.files import read_json

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
GPUS = PLAN + ",device=cuda"


@pytest.fixture(scope="module")
def pair(tmp_path_factory, warm):
    """What two processes that nothing disturbs leave behind."""
    folder = tmp_path_factory.mktemp("pair")
    done = run(warm, folder, GPUS)
    assert done.returncode == 0, done.stderr
    return folder


def test_two_gpus_give_the_curve_of_one(pair, tmp_path, warm):
    done = run(warm, tmp_path, AT_ONCE + ",device=cuda", processes=None)
    assert done.returncode == 0, done.stderr
    mine, theirs = (read_json(folder / "curve.json") for folder in (pair, tmp_path))
    np.testing.assert_allclose(mine["losses"], theirs["losses"], rtol=1e-3)
    assert mine["provenance"]["processes"] == 2


def test_a_lost_gpu_is_one_line_and_the_same_command_goes_on(pair, tmp_path, warm):
    code, errors = lose_a_process(command(tmp_path, GPUS), tmp_path)
    assert code == 2 and "Traceback" not in errors
    (line,) = said(errors)
    assert "was lost" in line and "run the same command again" in line
    done = run(warm, tmp_path, GPUS)
    assert done.returncode == 0, done.stderr
    expected, actual = weights(pair), weights(tmp_path)
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


def test_a_mistake_of_one_process_ends_all_in_its_line(tmp_path, warm):
    (tmp_path / "file").write_text("")
    started = time.monotonic()
    done = run(warm, tmp_path, GPUS, curve=tmp_path / "file/curve.json")
    (line,) = said(done.stderr)
    assert done.returncode == 2 and "file" in line and time.monotonic() - started < 100
