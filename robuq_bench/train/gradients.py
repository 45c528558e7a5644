"""Gradients summed over the processes of a job while the backward pass still makes others."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from robuq_bench.train.distributed import Sum, World

BUCKET = 1 << 26
"""Numbers to a collective: 256 MiB of float32."""


class Gradients:
    """Those of `parameters`. A bucket is on its way as soon as it is full; what gets no gradient is not waited for."""

    def __init__(self, parameters: Iterable[Tensor], world: World):
        self.world, self.last = world, False
        self.bucket: list[Tensor] = []
        self.under_way: list[tuple[list[Tensor], Tensor, Sum]] = []
        if world.size > 1:
            for parameter in parameters:
                parameter.register_post_accumulate_grad_hook(self._made)

    @contextmanager
    def summed(self) -> Iterator[None]:
        """The step's last backward pass goes in here; afterwards every gradient is the sum over all processes."""
        self.last = True
        try:
            yield
            self._send()
            for gradients, flat, total in self.under_way:
                total.wait()
                parts = flat.split([gradient.numel() for gradient in gradients])
                torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])
        finally:
            self.last, self.bucket, self.under_way = False, [], []

    def _made(self, parameter: Tensor) -> None:
        if not self.last:  # other images of this step add to it
            return
        self.bucket.append(parameter.grad)
        if sum(gradient.numel() for gradient in self.bucket) >= BUCKET:
            self._send()

    def _send(self) -> None:
        if self.bucket:
            flat = torch.cat([gradient.reshape(-1) for gradient in self.bucket])
            self.under_way.append((self.bucket, flat, self.world.start_sum(flat)))
            self.bucket = []
