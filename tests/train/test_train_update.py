"""One training step, and the context in which blocks are compiled."""

import torch

from robuq_bench.config.preset import Training
from robuq_bench.train.objective import draw, loss
from robuq_bench.train.update import Update, compiled, quick

PLAN = Training(steps=12, batch=8, threads=1, lr=1e-3, warmup=3, ema=0.9, save_every=5)


def test_an_update_is_clipped_adamw_by_hand(denoiser):
    """First step of AdamW without decay: every weight moves by lr * g / (|g| + eps), however far g is clipped."""
    model = denoiser()
    signal, labels = torch.rand(16, 1, 8, 8) * 2 - 1, torch.arange(16) % 10
    batch = draw(signal, labels, 8, 10, 0.1, draw_seed=0)
    loss(model, batch).backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients.values()]))
    scale = min(1.0, PLAN.grad_clip / norm.item())
    model.zero_grad()
    update = Update(model, PLAN)
    update.prepare(0, 2e-3)
    update(batch)
    for name, p in model.named_parameters():
        g = gradients[name] * scale
        torch.testing.assert_close(p.detach(), before[name] - 2e-3 * g / (g.abs() + 1e-8), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(update.average.weights[name], torch.lerp(before[name], p.detach(), 0.9))


def test_compiled_leaves_the_model_as_it_was(denoiser):
    """Inside, all blocks have one structure, so that one graph serves them; the same parameters are trained."""
    model = denoiser()
    names, entries = list(dict(model.named_parameters())), list(model.state_dict())
    with compiled(model):
        structures = {frozenset(name for name, _ in block.named_modules()) for block in model.transformer_blocks}
        assert len(structures) == 1 and list(dict(model.named_parameters())) == names
        assert all(block._compiled_call_impl is not None for block in model.transformer_blocks)
    assert list(dict(model.named_parameters())) == names and list(model.state_dict()) == entries
    assert all(block._compiled_call_impl is None for block in model.transformer_blocks)
    assert not model.pos_embed._forward_hooks


def test_all_blocks_see_one_layout(denoiser):
    """Tokens leave the patch embedder transposed; blocks that differ in layout would each be compiled."""
    model, seen = denoiser(), []
    with compiled(model):
        for block in model.transformer_blocks:
            block._compiled_call_impl = None
            block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
        model(torch.zeros(2, 1, 8, 8), timestep=torch.zeros(2), class_labels=torch.zeros(2, dtype=torch.long))
    assert seen == [True] * len(model.transformer_blocks)


def test_blocks_run_as_the_plan_asks(denoiser):
    model = denoiser()
    with quick(model, PLAN):
        assert all(
            block._compiled_call_impl is None and "forward" not in vars(block) for block in model.transformer_blocks
        )
    with quick(model, PLAN.model_copy(update={"compile": True})):
        assert all(block._compiled_call_impl is not None for block in model.transformer_blocks)
