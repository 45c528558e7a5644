"""Activation bits that fall during training: wide at first, so that weights settle before activations are rounded."""

from dataclasses import replace

from torch import nn

from robuq_bench.config.recipe import Schedule
from robuq_bench.quant.convert import quant_linears
from robuq_bench.quant.quantiser import Quantiser


class WarmBits:
    """During the first `warm_share` of training, layers of `model` with fewer activation bits have `warm_bits`."""

    def __init__(self, model: nn.Module, schedule: Schedule):
        bits = schedule.warm_bits or 0
        self.share, self.warm = schedule.warm_share, False
        self.pairs = [
            (layer, own, replace(own, bits=bits))
            for layer in quant_linears(model).values()
            if isinstance(own := layer.activation_quantiser, Quantiser) and own.bits < bits
        ]

    def at(self, progress: float) -> bool:
        """Set the bits of `progress` (0..1); whether that changed any."""
        warm = bool(self.pairs) and progress < self.share
        changed, self.warm = warm != self.warm, warm
        if changed:
            for layer, own, wide in self.pairs:
                layer.activation_quantiser = wide if warm else own
        return changed
