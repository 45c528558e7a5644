"""One training step: forward, backward, clipping, AdamW, averaging."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robuq_bench.config.preset import Training
from robuq_bench.models.fused import fused
from robuq_bench.train.distributed import ALONE, World
from robuq_bench.train.gradients import Gradients
from robuq_bench.train.objective import FLOW, Batch, Teacher, loss, taught
from robuq_bench.train.processes import Process

ALIGNED = 64
"""Values that a parameter's place in a joint buffer is a multiple of."""


class Average:
    """Exponential moving average of the trainable weights, with the usual warm-up of the decay.

    On a GPU both lie in one buffer each, and averaging is one kernel instead of one for every parameter.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        live = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.weights = {name: p.detach().clone() for name, p in live.items()}
        self.pairs = list(zip(self.weights.values(), live.values(), strict=True))
        if self.pairs[0][0].is_cuda:
            self.pairs = [(_joined(list(self.weights.values())), _joined(list(live.values())))]
        self.share = self.pairs[0][0].new_zeros(())

    def prepare(self, step: int) -> None:
        """Set what the weights after `step` weigh in the average."""
        self.share.fill_(1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def update(self) -> None:
        own, live = zip(*self.pairs, strict=True)
        torch._foreach_lerp_(list(own), [p.detach() for p in live], [self.share] * len(live))


def _joined(tensors: list[Tensor]) -> Tensor:
    """One buffer [n] with the values of all; each becomes a view of its part, aligned to 256 bytes."""
    sizes = [-(-t.numel() // ALIGNED) * ALIGNED for t in tensors]
    buffer = tensors[0].new_zeros(sum(sizes))
    for tensor, part in zip(tensors, buffer.split(sizes), strict=True):
        part = part[: tensor.numel()].view(tensor.shape)
        tensor.data = part.copy_(tensor.detach())
    return buffer


class Update:
    """One step on a batch: called with it, after `prepare`, it returns the loss [] on the device.

    What changes from step to step - batch, learning rate, share of the average - lies in tensors on a CUDA device, and
    nothing is read back, so that the step can be captured (robuq_bench.train.captured).
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Training,
        teacher: Teacher | None = None,
        process: Process = FLOW,
        world: World = ALONE,
    ):
        self.model, self.plan, self.teacher, self.process, self.world = model, plan, teacher, process, world
        trained = [p for p in model.parameters() if p.requires_grad]
        cuda = trained[0].is_cuda
        self.rate = torch.tensor(plan.lr, device=trained[0].device) if cuda else plan.lr
        self.optimiser = torch.optim.AdamW(
            trained, lr=self.rate, weight_decay=plan.weight_decay, betas=(0.9, 0.99), fused=True, capturable=cuda
        )
        self.average = Average(model, plan.ema)
        self.gradients = Gradients(trained, world)

    def prepare(self, step: int, lr: float) -> None:
        """Set the learning rate and the average's share of `step`."""
        if isinstance(self.rate, Tensor):
            self.rate.fill_(lr)
        else:
            self.rate = lr
        for group in self.optimiser.param_groups:  # also after a state was loaded
            group["lr"] = self.rate
        self.average.prepare(step)

    def __call__(self, batch: Batch) -> Tensor:
        whole = len(batch) * self.world.size
        *others, last = batch.split(self.plan.micro_batch)
        losses = [self._backward(part, len(part) / whole) for part in others]
        with self.gradients.summed():
            losses.append(self._backward(last, len(last) / whole))
        value = torch.stack(losses).sum()
        self.world.sum(value)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.grad_clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.average.update()
        return value

    def _backward(self, batch: Batch, share: float) -> Tensor:
        """Add the gradients of these images' share of the step's loss; return it, []."""
        with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=self.plan.precision == "bfloat16"):
            if self.teacher is not None:
                batch = taught(self.teacher, batch, self.process)
            value = loss(self.model, batch, self.process) * share
        value.backward()
        return value.detach()


def quick(model: nn.Module, plan: Training) -> AbstractContextManager[None]:
    """The context in which blocks run as `plan` asks: compiled, else fused on a GPU in bfloat16, else plainly."""
    if plan.compile:
        return compiled(model)
    fuses = plan.precision == "bfloat16" and next(model.parameters()).is_cuda
    return fused(model) if fuses else nullcontext()


@contextmanager
def compiled(model: nn.Module) -> Iterator[None]:
    """In the context each transformer block is compiled; all share one graph, made in a fraction of the model's time.

    Afterwards the model is as it was, so that other shapes and modes are not compiled as well.
    """
    # One layout and one structure for all blocks, so that one graph serves them: patches leave the embedder
    # transposed, and the first block alone has the tied embedder as a module.
    hook = model.pos_embed.register_forward_hook(lambda _module, _inputs, tokens: tokens.contiguous())
    norms = [block.norm1 for block in model.transformer_blocks]
    shared = norms[0].emb
    for block, norm in zip(model.transformer_blocks, norms, strict=True):
        norm.emb = shared
        block.compile(dynamic=False)
    try:
        yield
    finally:
        hook.remove()
        for block in model.transformer_blocks:
            block._compiled_call_impl = None
        for norm in norms[1:]:
            del norm.emb
            object.__setattr__(norm, "emb", shared)


@contextmanager
def checkpointed(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """In the context each transformer block keeps its input alone and computes the rest again in the backward pass."""
    if not wanted:
        yield
        return
    model.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False, preserve_rng_state=False))
    try:
        yield
    finally:
        model.disable_gradient_checkpointing()
