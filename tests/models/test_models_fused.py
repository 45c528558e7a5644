"""The fused transformer block against the plain one: output and all gradients, as near to float32 as autocast is."""

import pytest
import torch
from torch import nn

from robuq_bench.config.preset import DiT
from robuq_bench.models.dit import Shape, predict
from robuq_bench.models.fused import fused

SIZES = [
    (DiT(width=48, depth=2, heads=2, patch=2), Shape(10, 3, 10)),
    (DiT(width=1152, depth=1, heads=16, patch=4), Shape(16, 4, 10)),
]


def outcome(model: nn.Module, shape: Shape, **autocast) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, weights = (torch.randn(3, shape.channels, shape.size, shape.size, generator=generator) for _ in range(2))
    device = next(model.parameters()).device
    time, labels = torch.tensor([0.1, 0.5, 0.9], device=device), torch.tensor([0, 3, 10], device=device)
    model.zero_grad()
    with torch.autocast("cuda", torch.bfloat16, **autocast):
        out = predict(model, x.to(device), time, labels)
    (out.float() * weights.to(device)).sum().backward()
    return {"out": out.detach().float()} | {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("spec", "shape"), SIZES)
def test_output_and_gradients_are_those_of_the_plain_block(denoiser, spec, shape):
    model = denoiser(0, spec, shape).train().cuda()
    exact, plain = (outcome(model, shape, enabled=autocast) for autocast in (False, True))
    with fused(model):
        found = outcome(model, shape, enabled=True)
    for name, expected in exact.items():
        allowed = 1.5 * (plain[name] - expected).norm() + 1e-3 * expected.norm() + 1e-6
        assert (found[name] - expected).norm() < allowed, name


def test_the_model_is_plain_again_afterwards(denoiser, batch):
    model = denoiser()
    expected = model(batch[0], timestep=batch[1], class_labels=batch[2]).sample
    with fused(model):
        assert all("forward" in vars(block) for block in model.transformer_blocks)
    assert not model._forward_pre_hooks
    assert torch.equal(model(batch[0], timestep=batch[1], class_labels=batch[2]).sample, expected)
