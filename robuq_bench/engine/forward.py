"""The forward pass of a DiT over deployed linears, the same on CPU and GPU (arXiv 2212.09748, adaLN-Zero blocks)."""

from collections.abc import Callable
from functools import partial
from math import log

import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import Tensor
from torch.nn import functional as F

from robuq_bench.engine.adaln import KernelModulations, ReferenceModulations
from robuq_bench.engine.kernels.attention import Shape, attention, chosen
from robuq_bench.engine.kernels.conditioning import Embedders, condition
from robuq_bench.engine.kernels.last import fits, last_linear
from robuq_bench.engine.layers import kernel_linears, reference_linears
from robuq_bench.engine.layout import EMBEDDER, TIME_CHANNELS
from robuq_bench.engine.packed import Stored
from robuq_bench.engine.streams import Beside, InOrder
from robuq_bench.quant.attention import EightBitAttention

# LayerNorm's epsilon before attention, before the MLP, and at the end, as diffusers' model has them.
EPSILON_ATTENTION, EPSILON_MLP, EPSILON_OUT = 1e-6, 1e-5, 1e-6
LAST_PERIOD = 10000

GPU_NOTES = (
    "activations between linears, patch embedding, final modulation and linear in bfloat16",
    "modulated tokens in float16, sums inside the rotation to 11 bits",
    "low-rank branch in bfloat16 or float16 with float32 sums",
)
BF16_ATTENTION = ("attention in bfloat16, not 8 bits",)


class Forward:
    """forward(x [B, C, H, W] float32, time [B] float32, labels [B] int64) -> [B, C, H, W] float32, without checks.

    `notes`: what differs from the simulated model besides the order of float sums.
    """

    def __init__(self, stored: Stored, device: torch.device):
        card, gpu = stored.card, device.type == "cuda"
        method, model = card.variant.method, card.model
        linears = kernel_linears if gpu else reference_linears
        modulations = KernelModulations if gpu else ReferenceModulations
        self.dtype = torch.bfloat16 if gpu else torch.float32
        self.heads, self.patch, self.shape = model.heads, model.patch, card.shape
        self.side = card.shape.size // model.patch
        layers = stored.layers
        self.blocks = [
            linears({kind: layers[f"blocks.{i}.{kind}"] for kind in ("qkv", "proj", "fc1", "fc2")}, method, device)
            for i in range(model.depth)
        ]
        self.modulations = modulations([layers[f"blocks.{i}.adaln"] for i in range(model.depth)], method, device)
        eight_bits = method.attention_bits == 8
        operands = EightBitAttention() if eight_bits and not gpu else F.scaled_dot_product_attention
        self.attend = partial(_attend_on_gpu if gpu else _attend, operands, heads=model.heads)
        self.notes = (GPU_NOTES + BF16_ATTENTION * eight_bits) if gpu else ()
        self.beside = Beside() if gpu else InOrder()
        self._outer(stored.rest, device)
        self.condition = partial(condition, embedders=self.embedders) if gpu else self._condition
        outputs = card.shape.outputs * model.patch**2
        self.images = self._images_on_gpu if gpu and fits(model.width, outputs, self.side) else self._images

    def _outer(self, rest: dict[str, Tensor], device: torch.device) -> None:
        """Take over everything outside the blocks' linears."""

        def take(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
            return rest[name].to(device, dtype)

        def linear(path: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
            return take(f"{path}.weight", dtype), take(f"{path}.bias", dtype)

        half = TIME_CHANNELS // 2
        frequencies = torch.exp(-log(LAST_PERIOD) * torch.arange(half) / (half - 1)).to(device)
        first, second = (linear(f"{EMBEDDER}.timestep_embedder.linear_{i}") for i in (1, 2))
        labels = take(f"{EMBEDDER}.class_embedder.embedding_table.weight")
        labels = labels + second[1]  # the bias of the second linear, so that nobody need add it each time
        labels = F.pad(labels, (0, 0, 0, 1), value=torch.nan)  # where labels out of range end up
        self.embedders = Embedders(frequencies, *first, second[0], labels)
        weight, bias = linear("pos_embed.proj")
        positions = get_2d_sincos_pos_embed(len(bias), self.side, base_size=self.side, output_type="pt")
        self.embed = weight.flatten(1).T.to(self.dtype)
        self.position = (positions.to(bias) + bias).to(self.dtype)
        self.last_modulation = linear("proj_out_1", self.dtype)
        self.last = linear("proj_out_2")

    def __call__(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        with self.beside() as tokens_made:
            hidden = self._tokens(x)
        conditioning = self.condition(time, labels)
        modulations = self.modulations(conditioning)
        with self.beside() as last_made:
            last = self._last_linear(conditioning)
        tokens_made()
        for i, (block, modulation) in enumerate(zip(self.blocks, modulations, strict=True)):
            hidden = self._block(block, hidden, modulation, settled=i > 0)
        last_made()
        return self.images(hidden, *last)

    def _condition(self, time: Tensor, labels: Tensor) -> Tensor:
        """[B, width], SiLU applied."""
        own = self.embedders
        angle = time[:, None] * own.frequencies
        hidden = F.silu(F.linear(torch.cat([angle.cos(), angle.sin()], -1), own.first, own.bias))
        embedding = own.embedding[labels.clamp(-1, len(own.embedding) - 1)]
        return F.silu(torch.addmm(embedding, hidden, own.second.T))

    def _tokens(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B T, width]."""
        batch, channels, side, patch = len(x), self.shape.channels, self.side, self.patch
        cut = x.to(self.dtype).view(batch, channels, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5)
        pixels = cut.reshape(batch, side * side, -1)
        embed, position = (part.expand(batch, -1, -1) for part in (self.embed, self.position))
        return torch.baddbmm(position, pixels, embed).flatten(0, 1)

    def _block(self, block: dict, hidden: Tensor, modulation: tuple[Tensor, ...], settled: bool) -> Tensor:
        """One transformer block; hidden [B T, width], modulation six times [B, width], settled: made long before."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = modulation
        qkv = block["qkv"](hidden, modulation=(scale, shift), settled=settled, epsilon=EPSILON_ATTENTION)
        mixed = self.attend(qkv, images=len(gate))
        hidden = block["proj"](mixed, epilogue="gate", gate=gate, residual=hidden)
        mlp = {"modulation": (scale_mlp, shift_mlp), "settled": True, "epsilon": EPSILON_MLP}
        inner = block["fc1"](hidden, **mlp, epilogue="gelu")
        return block["fc2"](inner, epilogue="gate", gate=gate_mlp, residual=hidden)

    def _last_linear(self, conditioning: Tensor) -> tuple[Tensor, Tensor]:
        """(weight [B, outputs, width], bias [B, outputs]) of the last linear with each image's modulation in it:

        (n (1 + s) + t) W^T = n ((1 + s) W)^T + t W^T.
        """
        weight, bias = self.last
        shift, scale = F.linear(conditioning.to(self.dtype), *self.last_modulation).to(weight.dtype).chunk(2, -1)
        own = torch.addcmul(weight, weight, scale[:, None]).to(self.dtype)
        return own, F.linear(shift, weight, bias)

    def _images(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """[B T, width] -> [B, C, H, W]: LayerNorm, then the modulated last linear."""
        batch, side, patch = len(bias), self.side, self.patch
        normal = F.layer_norm(hidden, hidden.shape[-1:], eps=EPSILON_OUT).view(batch, side * side, -1)
        out = torch.bmm(normal, weight.transpose(1, 2)) + bias[:, None]
        patches = out.view(batch, side, side, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
        return patches.reshape(batch, -1, side * patch, side * patch)

    def _images_on_gpu(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The same in one kernel."""
        return last_linear(hidden, weight, bias, self.patch, EPSILON_OUT)


def _attend(operands: Callable[..., Tensor], qkv: Tensor, images: int, heads: int) -> Tensor:
    """[images T, 3 width] -> [images T, width]; q, k and v are views, and flash attention's output needs no copy."""
    tokens, width = len(qkv) // images, qkv.shape[1] // 3
    query, key, value = qkv.view(images, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    return operands(query, key, value).transpose(1, 2).reshape(images * tokens, width)


def _attend_on_gpu(operands: Callable[..., Tensor], qkv: Tensor, images: int, heads: int) -> Tensor:
    """The same by a kernel of the engine, where one is faster."""
    shape = Shape(len(qkv) // images, heads, qkv.shape[1] // 3 // heads)
    kernel = chosen(images, shape, qkv.device)
    return attention(qkv, images, heads, kernel) if kernel else _attend(operands, qkv, images, heads)
