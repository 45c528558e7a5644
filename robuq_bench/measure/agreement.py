"""How far the deployed model may be from the simulated one: as far as its rounding alone moves the simulated one."""

from torch import Tensor, nn

from robuq_bench.models.dit import FusedAttention
from robuq_bench.quant.convert import quant_linears

SLACK = 1.25
"""A deployed model's error over what rounding alone does; two roundings of one model differ by about as much."""


def relative_error(output: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected, in float64."""
    expected = expected.double()
    return ((output.double() - expected).norm() / expected.norm()).item()


def round_as_deployed(model: nn.Module) -> None:
    """Give a simulated model what differs on a GPU: bfloat16 between linears, attention not in 8 bits.

    Few bits make codes jump at the edges of cells, so rounding is not small at the output, and grows with depth.
    """

    def rounded(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        return output.bfloat16().float()

    for layer in quant_linears(model).values():
        layer.register_forward_hook(rounded)
    for block in model.transformer_blocks:
        block.attn1.set_processor(FusedAttention())
        block.register_forward_hook(rounded)
