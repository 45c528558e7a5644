"""Images in bfloat16: nearly those of float32, and on a GPU through the fused kernels and one graph."""

import numpy as np
import pytest
import torch

from robuq_bench import cli
from robuq_bench.engine import packed
from robuq_bench.quant.convert import quant_linears
from robuq_bench.quant.frozen import FrozenLinear
from robuq_bench.sample.archive import load
from robuq_bench.sample.simulated import denoiser

ROWS = ("robuq_uniform/W1.58A2", "baseline/W1.58A2", "bitnet_v2/W1.58A4", "terdit/W1.58A32")


def sample(path, out, **changes) -> int:
    given = {"sample.n": 6, "sample.steps": 3, "sample.lane": 4} | changes
    text = ",".join(f"{key}={value}" for key, value in given.items())
    return cli.main(["sample", "--preset", "smoke", "--set", text, "--packed", str(path), "--out", str(out)])


@pytest.fixture
def model(tmp_path, converted, card):
    path = tmp_path / "packed.safetensors"
    packed.export(converted("robuq_uniform/W1.58A2"), card("robuq_uniform/W1.58A2"), path)
    return path


def test_bfloat16_draws_nearly_the_same_and_says_so(in_root, model, tmp_path):
    assert sample(model, tmp_path / "a.npz") == 0
    assert sample(model, tmp_path / "b.npz", **{"sample.precision": "bfloat16"}) == 0
    exact, half = (load(tmp_path / f"{name}.npz") for name in "ab")
    gap = np.abs(exact.images.astype(float) - half.images).mean()
    assert 0 < gap < 10
    assert [s.card["protocol"]["precision"] for s in (exact, half)] == ["float32", "bfloat16"]


def test_a_lane_that_does_not_fit(in_root, model, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("robuq_bench.sample.stage.generate", full)
    assert sample(model, tmp_path / "a.npz") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "does not hold a lane of 4 images; try --set sample.lane=2" in error
    assert not (tmp_path / "a.npz").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("row", ROWS)
def test_frozen_layers_compute_what_the_plain_path_does(row, tmp_path, converted, card):
    """Against float32: no further away than twice what the plain path is in bfloat16."""
    path = tmp_path / "packed.safetensors"
    packed.export(converted(row), card(row), path)
    plain, quick = packed.load(path)[0].cuda(), packed.load(path)[0]
    shape = card(row).shape
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(32, shape.channels, shape.size, shape.size, generator=generator, device="cuda")
    given = (
        x,
        torch.rand(32, generator=generator, device="cuda") * 1000,
        torch.zeros(32, dtype=torch.int64, device="cuda"),
    )
    with torch.inference_mode():
        exact = plain(given[0], timestep=given[1], class_labels=given[2]).sample
        with torch.autocast("cuda", torch.bfloat16):
            rounded = plain(given[0], timestep=given[1], class_labels=given[2]).sample.float()
        drawn = denoiser(quick, "bfloat16", "cuda")(*given).sample
    assert (drawn - exact).norm() <= 2 * (rounded - exact).norm() + 1e-3 * exact.norm()
    assert row.startswith("terdit") or any(isinstance(m, FrozenLinear) for m in quick.modules())
    assert not row.startswith("terdit") or quant_linears(quick)
