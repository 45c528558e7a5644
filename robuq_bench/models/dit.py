"""The denoiser: diffusers' DiTTransformer2DModel, with the embedders tied and one fused qkv linear per block.

diffusers gives every block its own timestep and label embedder (750 M parameters for XL/2 instead of 675 M) and
drops labels independently in each, so guidance could not be learnt. Here all blocks share the first block's embedder
and label dropout belongs to the data (robuq_bench.train.objective).
"""

from dataclasses import dataclass

import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from robuq_bench.config.preset import DiT, Positive
from robuq_bench.seeds import seed

LINEARS = {
    "qkv": "attn1.to_qkv",
    "proj": "attn1.to_out.0",
    "fc1": "ff.net.0.proj",
    "fc2": "ff.net.2",
    "adaln": "norm1.linear",
}
"""Layer type (the recipes' word) -> module path inside a transformer block."""


@dataclass(frozen=True)
class Shape:
    """What a model sees: side in pixels or latents, channels, classes; `variance`: it predicts that as well."""

    size: Positive
    channels: Positive
    classes: Positive
    variance: bool = False

    @property
    def outputs(self) -> int:
        """Channels that the model predicts."""
        return self.channels * (2 if self.variance else 1)


class FusedAttention:
    """Attention processor over one fused qkv linear; `operands.joint` may fake-quantise q, k, v and probabilities."""

    def __init__(self, operands=None):
        self.operands = operands

    def __call__(self, attn, hidden_states: Tensor, *_, **__) -> Tensor:
        batch, tokens, width = hidden_states.shape
        qkv = attn.to_qkv(hidden_states).view(batch, tokens, 3, attn.heads, width // attn.heads)
        joint = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*joint) if self.operands is None else self.operands.joint(joint)
        return attn.to_out[0](mixed.transpose(1, 2).reshape(batch, tokens, width))


def build(spec: DiT, shape: Shape, init_seed: int = 0) -> DiTTransformer2DModel:
    """A freshly initialised denoiser: adaLN-zero, Xavier linears, as in the DiT paper (arXiv 2212.09748, sec. 3.2).

    Called as model(x [B, C, H, W], timestep [B] in 0..1000, class_labels [B] int64); label `shape.classes` means
    "no class". Returns diffusers' Transformer2DModelOutput with .sample [B, C, H, W] (2 C channels with variance).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed("model", init_seed))
        model = DiTTransformer2DModel(
            num_attention_heads=spec.heads,
            attention_head_dim=spec.width // spec.heads,
            in_channels=shape.channels,
            out_channels=shape.outputs,
            num_layers=spec.depth,
            sample_size=shape.size,
            patch_size=spec.patch,
            num_embeds_ada_norm=shape.classes,
        )
        for block in model.transformer_blocks:
            _fuse_qkv(block.attn1)
        _tie_embedders(model)
        _initialise(model)
    return model


def linears(model: nn.Module) -> dict[str, tuple[nn.Module, str, nn.Module]]:
    """The linears of all blocks: "blocks.3.fc2" -> (parent module, attribute, the linear)."""
    found = {}
    for index, block in enumerate(model.transformer_blocks):
        for kind, path in LINEARS.items():
            parent, _, name = path.rpartition(".")
            holder = block.get_submodule(parent)
            found[f"blocks.{index}.{kind}"] = (holder, name, holder.get_submodule(name))
    return found


def layer_type(name: str) -> str:
    """ "blocks.3.fc2" -> "fc2"."""
    return name.rpartition(".")[2]


def predict(model: nn.Module, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
    """The model's output [B, outputs, H, W] at time [B] in [0, 1] (1 is pure noise)."""
    return model(x, timestep=time * 1000, class_labels=labels).sample


def _fuse_qkv(attention: nn.Module) -> None:
    width = attention.to_q.in_features
    attention.to_qkv = nn.Linear(width, 3 * width, bias=attention.to_q.bias is not None)
    del attention.to_q, attention.to_k, attention.to_v
    attention.set_processor(FusedAttention())


def _tie_embedders(model: nn.Module) -> None:
    shared = model.transformer_blocks[0].norm1.emb
    shared.class_embedder.dropout_prob = 0.0  # keeps the "no class" row, drops the dropout
    for block in model.transformer_blocks[1:]:
        del block.norm1.emb
        # A plain attribute: used in forward, but registered (saved, moved, counted) only in the first block.
        object.__setattr__(block.norm1, "emb", shared)


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    embedder = model.transformer_blocks[0].norm1.emb
    nn.init.normal_(embedder.class_embedder.embedding_table.weight, std=0.02)
    for linear in (embedder.timestep_embedder.linear_1, embedder.timestep_embedder.linear_2):
        nn.init.normal_(linear.weight, std=0.02)
    for zeroed in [model.proj_out_1, model.proj_out_2, *(block.norm1.linear for block in model.transformer_blocks)]:
        nn.init.zeros_(zeroed.weight)
        nn.init.zeros_(zeroed.bias)
