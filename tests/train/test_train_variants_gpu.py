"""What recipes may change about QAT, on a GPU: the recorded step takes the plain step's path, on the fused kernels."""

import logging

import pytest
import torch

from robuq_bench.config.preset import DiT, Training
from robuq_bench.models.dit import Shape
from robuq_bench.quant.convert import convert, quant_linears, uniform_bits
from robuq_bench.quant.warm import WarmBits
from robuq_bench.train import loop
from robuq_bench.train.loop import train
from robuq_bench.train.objective import Teacher
from robuq_bench.train.state import State

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

CHANGES = [
    "activation.stretch=0.8",
    "activation.estimator=trust",
    "weight.scale=absmean",
    "low_rank.rank=20,low_rank.ranks.adaln=6",
    "schedule.warm_bits=8,schedule.warm_share=0.5",
    "loss=distil,distil_share=0.5",
]


@pytest.mark.parametrize("change", CHANGES)
def test_recorded_and_plain_runs_agree(change, denoiser, variant, tmp_path, monkeypatch, caplog):
    row = variant(f"robuq_uniform,{change}/W1.58A2")
    size, shape = DiT(width=128, depth=2, heads=2, patch=2), Shape(16, 3, 10)
    generator = torch.Generator().manual_seed(0)
    data = torch.rand(64, 3, 16, 16, generator=generator) * 2 - 1, torch.arange(64) % 10
    plan = Training(
        steps=24, batch=16, threads=1, lr=1e-3, warmup=3, ema=0.9, save_every=9, precision="bfloat16"
    )  # fmt: skip

    def run(name: str) -> list[float]:
        model = denoiser(0, size, shape)
        model = convert(model, row, uniform_bits(model, row), 0).cuda()
        assert all(layer.fused for layer in quant_linears(model).values())
        own = {layer: quantiser.activation_quantiser for layer, quantiser in quant_linears(model).items()}
        method, state = row.method, State(tmp_path / name, "x")
        teacher = Teacher(denoiser(1, size, shape).cuda(), method.distil_share) if method.loss == "distil" else None
        warm = WarmBits(model, method.schedule)
        found = train(model, *data, 10, plan, 0, state, device="cuda", teacher=teacher, warm=warm)
        assert own == {layer: quantiser.activation_quantiser for layer, quantiser in quant_linears(model).items()}
        return found.losses

    with caplog.at_level(logging.WARNING):
        recorded = run("recorded")
    assert "cannot be recorded" not in caplog.text
    monkeypatch.setattr(loop, "Captured", lambda update: update)
    assert recorded == pytest.approx(run("plain"), rel=0.02)
