"""A published DiT, as diffusers saves it (`facebook/DiT-XL-2-256`), turned into the model that is trained here.

diffusers repeats the timestep and label embedder in every block. Published weights hold 28 equal copies, which become
the one that all blocks share; the query, key and value linears become one.
"""

from pathlib import Path

import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from torch import Tensor, nn

from robuq_bench.config.preset import DiT, Pretrained
from robuq_bench.errors import BenchError
from robuq_bench.models import checkpoint, dit, folders

EMBEDDER = "norm1.emb."
SPLIT = ("to_q", "to_k", "to_v")
FIXED = {"norm_type": "ada_norm_zero", "activation_fn": "gelu-approximate", "attention_bias": True, "dropout": 0.0}
"""What this project's model has no other value for; absent keys have these values."""


def load(source: Pretrained, spec: DiT, shape: dit.Shape) -> tuple[nn.Module, str]:
    """(the model of `spec` and `shape` with the published weights, SHA-256 of the tensors in the folder).

    Raises BenchError when the folder holds another model, is damaged, or its blocks differ in their embedders.
    """
    folder = folders.locate(source.path, "transformer")
    check_configuration(folder, spec, shape)
    published = folders.load(DiTTransformer2DModel, folder).state_dict()
    found = folders.digest(published)
    folders.check_digest(found, source.sha256, folder)
    model = dit.build(spec, shape)
    checkpoint.load_into(model, fused(tied(published, spec.depth, folder)), folder)
    return model, found


def check_configuration(folder: Path, spec: DiT, shape: dit.Shape) -> None:
    """Raises BenchError naming the first key in which the folder's model is not the preset's."""
    found = folders.configuration(folder)
    inputs = found.get("in_channels", 4)
    wanted = FIXED | {
        "num_attention_heads": spec.heads,
        "attention_head_dim": spec.width // spec.heads,
        "num_layers": spec.depth,
        "patch_size": spec.patch,
        "sample_size": shape.size,
        "in_channels": shape.channels,
        "out_channels": shape.outputs,
        "num_embeds_ada_norm": shape.classes,
    }
    for key, value in wanted.items():
        theirs = found.get(key, FIXED.get(key))
        if key == "out_channels" and theirs is None:  # diffusers: as many as come in
            theirs = inputs
        if theirs != value:
            raise BenchError(f"{folder}: another model than the preset's: {key} is {theirs} there and {value} here")


def tied(tensors: dict[str, Tensor], depth: int, where: object) -> dict[str, Tensor]:
    """`tensors` with the first block's embedder alone. Raises BenchError when another block's differs from it."""
    first = {name: value for name, value in tensors.items() if name.startswith(f"transformer_blocks.0.{EMBEDDER}")}
    kept = dict(tensors)
    for block in range(1, depth):
        for name, value in first.items():
            own = name.replace("transformer_blocks.0.", f"transformer_blocks.{block}.", 1)
            if own not in kept or not torch.equal(kept.pop(own), value):
                raise BenchError(
                    f"{where}: the embedder of block {block} is not that of block 0 ({own}): a model with an embedder "
                    "per block is not DiT and cannot be used here"
                )
    return kept


def fused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` with each block's query, key and value linears stacked into one, in this order."""
    kept = dict(tensors)
    for name in tensors:
        if f".{SPLIT[0]}." in name:
            parts = [kept.pop(name.replace(SPLIT[0], part)) for part in SPLIT]
            kept[name.replace(SPLIT[0], "to_qkv")] = torch.cat(parts)
    return kept
