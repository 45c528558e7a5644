"""The held-out loss: how well a model does on images that it was not trained on."""

import torch
from torch import nn

from robuq_bench.models.dit import predict
from robuq_bench.seeds import seed
from robuq_bench.train.examples import Examples
from robuq_bench.train.objective import noised

TIMES = 8


@torch.no_grad()
def held_out_loss(model: nn.Module, held_out: Examples, device: str, size: int = 128) -> tuple[float, float]:
    """(loss, loss of predicting zero) on held-out images with fixed noise and evenly spread times.

    A model that does not beat the second has learnt, or kept, nothing.
    """
    total, trivial, count, process = 0.0, 0.0, 0, held_out.process
    size = min(size, len(held_out))
    for start in range(0, len(held_out) - size + 1, size):
        generator = torch.Generator().manual_seed(seed("held-out", start))
        part = slice(start, start + size)
        signal = held_out.signal[part]
        noise = torch.randn(signal.shape, generator=generator)
        time = ((torch.arange(size) + start // size) % TIMES + 0.5) / TIMES
        batch = noised(signal, held_out.labels[part], noise, time, process).to(device)
        output = predict(model, batch.x, batch.time, batch.labels)
        total += process.loss(output, batch.x, batch.time, batch.target).item()
        trivial += process.loss(torch.zeros_like(output), batch.x, batch.time, batch.target).item()
        count += 1
    return total / count, trivial / count
