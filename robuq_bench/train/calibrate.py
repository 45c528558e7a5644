"""What is looked at before training: input ranges of linears, and the static ranges of time-aware quantisers."""

import torch
from torch import Tensor, nn

from robuq_bench.models.dit import linears, predict
from robuq_bench.quant.timed import TimedQuantiser
from robuq_bench.seeds import seed
from robuq_bench.train.objective import FLOW, draw, loss, noised
from robuq_bench.train.processes import Process

BATCHES, BATCH = 8, 64


@torch.no_grad()
def input_ranges(
    model: nn.Module, signal: Tensor, labels: Tensor, no_class: int, process: Process = FLOW
) -> dict[str, Tensor]:
    """max|x| per input channel [in] of every block linear over 512 noisy training images at random times."""
    found: dict[str, Tensor] = {}

    def watch(name: str):
        def see(_: nn.Module, inputs: tuple[Tensor]) -> None:
            peak = inputs[0].flatten(0, -2).abs().amax(0)
            found[name] = torch.maximum(found[name], peak) if name in found else peak

        return see

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, (_, _, layer) in linears(model).items()]
    try:
        for index in range(BATCHES):
            loss(model, draw(signal, labels, BATCH, no_class, 0.0, seed("calibrate", index), process), process)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@torch.no_grad()
def fit_timed(model: nn.Module, signal: Tensor, labels: Tensor, process: Process = FLOW) -> None:
    """Fit every time-aware quantiser of `model`, interval by interval, to noisy training images of those times.

    Layers see inputs that the layers before them have already quantised, as they will in training. Images are drawn
    where `signal` lies and go to the model: some hundred passes over the inputs of every layer in every interval are
    minutes on a CPU.
    """
    layers = [m for m in model.modules() if isinstance(getattr(m, "activation_quantiser", None), TimedQuantiser)]
    if not layers:
        return
    buckets, device = len(layers[0].activation_quantiser.step), layers[0].weight.device
    for bucket in range(buckets):
        generator = torch.Generator().manual_seed(seed("calibrate", bucket))
        index = torch.randint(len(signal), (BATCH,), generator=generator)
        noise = torch.randn((BATCH, *signal.shape[1:]), generator=generator)
        time = torch.full((BATCH,), (bucket + 0.5) / buckets)
        batch = noised(signal[index], labels[index], noise, time, process).to(device)

        def fit(layer: nn.Module, inputs: tuple[Tensor], bucket: int = bucket) -> None:
            layer.activation_quantiser.fit(layer.hidden(inputs[0]), bucket)

        hooks = [layer.register_forward_pre_hook(fit) for layer in layers]
        try:
            predict(model, batch.x, batch.time, batch.labels)
        finally:
            for hook in hooks:
                hook.remove()
