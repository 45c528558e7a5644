"""Time-aware activation quantiser: a static, trained range per interval of time (QuEST, arXiv 2402.03666)."""

import torch
from torch import Tensor, nn

from robuq_bench.quant.quantiser import _Round


class TimedQuantiser(nn.Module):
    """Asymmetric fake quantiser of a whole tensor whose step and offset depend on the sample's time.

    `step`, `offset` [buckets] are trained; gradients reach them through the rounding as in LSQ (arXiv 1902.08153).
    `bucket` [B] is set by `watch_time` before each forward pass of the model.
    """

    def __init__(self, bits: int, buckets: int):
        super().__init__()
        self.bits = bits
        self.step = nn.Parameter(torch.ones(buckets))
        self.offset = nn.Parameter(torch.zeros(buckets))
        self.bucket: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.ndim - 1))
        step = self.step[self.bucket].view(shape).clamp_min(1e-6)
        offset = self.offset[self.bucket].view(shape)
        z = ((x - offset) / step).clamp(0, 2**self.bits - 1)
        return _Round.apply(z, z.detach().round(), None) * step + offset

    @torch.no_grad()
    def fit(self, x: Tensor, bucket: int, candidates: int = 16) -> None:
        """Set the range of `bucket` to the shrunken min-max range with the least squared error on `x`.

        Nothing is read back: a GPU runs ahead.
        """
        low, high = x.min(), x.max()
        shares = torch.linspace(0.3, 1.0, candidates, device=x.device)
        steps, offsets = (high - low) * shares / (2**self.bits - 1), low * shares
        best = torch.stack([self._error(x, *pair) for pair in zip(steps, offsets, strict=True)]).argmin()
        self.step[bucket], self.offset[bucket] = steps.take(best), offsets.take(best)

    def _error(self, x: Tensor, step: Tensor, offset: Tensor) -> Tensor:
        """Mean squared error [] of x rounded to the levels of a range."""
        codes = ((x - offset) / step.clamp_min(1e-6)).round().clamp(0, 2**self.bits - 1)
        return (codes * step + offset - x).square().mean()


def timed_quantisers(model: nn.Module) -> dict[str, TimedQuantiser]:
    return {name: module for name, module in model.named_modules() if isinstance(module, TimedQuantiser)}


def watch_time(model: nn.Module) -> None:
    """Tell every timed quantiser of the model which interval each sample's time lies in, before each forward."""

    def see(module: nn.Module, _: tuple, arguments: dict) -> None:
        for quantiser in timed_quantisers(module).values():
            count = len(quantiser.step)
            quantiser.bucket = (arguments["timestep"] * (count / 1000)).long().clamp(0, count - 1)

    model.register_forward_pre_hook(see, with_kwargs=True)
