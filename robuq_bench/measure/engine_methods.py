"""Ways to run a whole DiT: the deployed model at several activation bits, and what a user would run instead.

A method is loaded onto the current GPU as a callable of (images [B, C, H, W], timestep [B], class_labels [B]) that
returns the prediction [B, C, H, W].
"""

import gc
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from torch import Tensor, nn

from robuq_bench.config.preset import DiT
from robuq_bench.config.recipe import load_variant
from robuq_bench.engine import packed
from robuq_bench.engine.denoiser import deploy
from robuq_bench.engine.graphs import Graphs
from robuq_bench.engine.standin import standin
from robuq_bench.errors import BenchError
from robuq_bench.models.dit import Shape, layer_type

SHAPE = Shape(size=32, channels=4, classes=1000)  # latents of 256 x 256 images
SIZES = {
    "S/2": DiT(width=384, depth=12, heads=6, patch=2),
    "B/2": DiT(width=768, depth=12, heads=12, patch=2),
    "L/2": DiT(width=1024, depth=24, heads=16, patch=2),
    "XL/2": DiT(width=1152, depth=28, heads=16, patch=2),
}
RECIPE = "robuq_uniform"
DEVICE = "cuda"
MIXED = {"qkv": 2.2143, "proj": 2.7857, "fc1": 2.0, "fc2": 1.6429}
"""Average activation bits by layer type: as published for W1.58A2, to the nearest 1/28 that makes 2.000 by MACs."""
MACS = {"qkv": 3, "proj": 1, "fc1": 4, "fc2": 4}
Forward = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Method:
    """One way to run a model; exactly one of `bits` (deployed: bits per layer type) and `precision` is given.

    bound: relative error against fp32 that the arithmetic explains; None: measured, see `agreement`.
    compiled: by torch.compile with "reduce-overhead"; quantised: torchao's kind, compiled too, see `_captured`;
    tuned: with torchao's own settings of the compiler, which search for minutes. needs: a package that must be there.
    """

    name: str
    bound: float | None
    bits: dict[str, float] | None = None
    precision: torch.dtype | None = None
    tf32: bool = False
    compiled: bool = False
    quantised: str | None = None
    tuned: bool = False
    needs: str | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of its row should know."""
        if self.quantised is None:
            return ()
        return (
            "torchao's dynamic quantisation of the blocks' linears but adaLN, which has too few rows for its kernels",
            "blocks compiled one by one, the whole pass in one CUDA graph",
            "compiler tuned as torchao does (coordinate descent)" if self.tuned else "compiler at its own settings",
        )

    @property
    def deployed(self) -> bool:
        return self.bits is not None

    @property
    def reference(self) -> str:
        """Name of the model that says what is right: the packed file's simulated one, or fp32."""
        return self.name if self.deployed else "fp32"


def _uniform(bits: int) -> dict[str, float]:
    return dict.fromkeys(MACS, float(bits))


# Bounds: fp32 repeats itself; the others are a few times what rounding of their type adds up to over 28 blocks.
METHODS = {
    method.name: method
    for method in (
        Method("W1.58A2", None, bits=_uniform(2)),
        Method("W1.58A2 mixed", None, bits=MIXED),
        Method("W1.58A1", None, bits=_uniform(1)),
        Method("W1.58A3", None, bits=_uniform(3)),
        Method("W1.58A4", None, bits=_uniform(4)),
        Method("fp32 eager", 1e-4, precision=torch.float32),
        Method("tf32 eager", 1e-2, precision=torch.float32, tf32=True),
        Method("bf16 eager", 3e-2, precision=torch.bfloat16),
        Method("bf16 compiled", 3e-2, precision=torch.bfloat16, compiled=True),
        Method("fp16 compiled", 1e-2, precision=torch.float16, compiled=True),
        Method("int8 compiled", 0.2, precision=torch.bfloat16, quantised="int8", needs="torchao"),
        Method("fp8 compiled", 0.2, precision=torch.bfloat16, quantised="fp8", needs="torchao"),
        Method("int8 tuned", 0.2, precision=torch.bfloat16, quantised="int8", tuned=True, needs="torchao"),
        Method("fp8 tuned", 0.2, precision=torch.bfloat16, quantised="fp8", tuned=True, needs="torchao"),
    )
}


def layer_bits(spec: DiT, averages: dict[str, float], adaln_bits: int) -> dict[str, int]:
    """Bits of every layer, each type's two nearest widths spread evenly over the blocks to meet its average."""
    bits = {f"blocks.{i}.adaln": adaln_bits for i in range(spec.depth)}
    for kind, average in averages.items():
        sums = [round(i * average + 1e-9) for i in range(spec.depth + 1)]
        bits |= {f"blocks.{i}.{kind}": sums[i + 1] - sums[i] for i in range(spec.depth)}
    return bits


def average_bits(bits: dict[str, int]) -> float:
    """Mean activation bits of the block linears, weighted by MACs (3 : 1 : 4 : 4 in a DiT)."""
    weighted = [(MACS[layer_type(name)], width) for name, width in bits.items() if layer_type(name) in MACS]
    return sum(macs * width for macs, width in weighted) / sum(macs for macs, _ in weighted)


def bits_of(method: Method, spec: DiT) -> dict[str, int]:
    variant = load_variant(RECIPE, "W1.58A2")
    return layer_bits(spec, method.bits, variant.method.adaln.activation_bits)


def write_packed(method: Method, spec: DiT, path: Path) -> None:
    """A packed file of random weights with the method's bits: speed does not depend on what weights say."""
    standin(spec, SHAPE, load_variant(RECIPE, "W1.58A2"), bits_of(method, spec), path)


def simulated(path: Path) -> Forward:
    """The evaluated model of a packed file: fake quantisation in float32, no TF32."""
    _tf32(False)
    model, _ = packed.load(path)
    return _forward(model.to(DEVICE))


def load(method: Method, spec: DiT, path: Path | None) -> Forward:
    """`method` on the current GPU; `path`: the packed file of a deployed one.

    Raises BenchError when a package that it needs is not installed.
    """
    if method.deployed:
        return _forward(deploy(path, DEVICE, graphs=True))
    if method.needs and importlib.util.find_spec(method.needs) is None:
        raise BenchError(f"{method.needs} is not installed here")
    _tf32(method.tf32)
    model = diffusers_model(spec, method.precision)
    if method.quantised:
        _quantise(model, method.quantised, method.tuned)
        return _captured(model, method.precision)
    if method.compiled:
        model = torch.compile(model, mode="reduce-overhead", dynamic=False)
    return _forward(model, method.precision)


def diffusers_model(spec: DiT, precision: torch.dtype = torch.float32) -> nn.Module:
    """diffusers' own model with its own initialisation on the GPU; the same weights at every call and precision.

    They are values of bfloat16, so that nothing larger than the model wanted is ever in memory.
    """
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(DEVICE):
            model = _bare(spec)
    finally:
        torch.set_default_dtype(before)
    return nn.Module.to(model, DEVICE, precision).eval()  # diffusers' own `to` warns of nothing here


def _bare(spec: DiT) -> nn.Module:
    return DiTTransformer2DModel(
        num_attention_heads=spec.heads,
        attention_head_dim=spec.width // spec.heads,
        in_channels=SHAPE.channels,
        num_layers=spec.depth,
        sample_size=SHAPE.size,
        patch_size=spec.patch,
        num_embeds_ada_norm=SHAPE.classes,
    )


def _quantise(model: nn.Module, kind: str, tuned: bool) -> None:
    """torchao's dynamic quantisation of the block linears (adaLN and embedders see too few rows for its kernels)."""
    from torchao import quantization

    configs = {
        "int8": quantization.Int8DynamicActivationInt8WeightConfig,
        "fp8": quantization.Float8DynamicActivationFloat8WeightConfig,
    }

    def block_linear(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and (".attn1." in name or ".ff." in name)

    quantization.quantize_(model, configs[kind](set_inductor_config=tuned), filter_fn=block_linear)


def _captured(model: nn.Module, precision: torch.dtype) -> Forward:
    """Blocks compiled one by one, as all share one graph, and the whole pass in one CUDA graph.

    No slower than "reduce-overhead" over the whole model, which takes minutes to compile around quantised tensors.
    """
    # Patches leave the embedder transposed: one layout for all blocks, so that they share one compiled graph.
    model.pos_embed.register_forward_hook(lambda _module, _inputs, tokens: tokens.contiguous())
    for block in model.transformer_blocks:
        block.compile(dynamic=False)
    graphs = Graphs(_forward(model, precision))

    def forward(images: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
        return graphs(images, timestep, labels)

    forward.model = model
    return forward


def _forward(model: Callable, precision: torch.dtype | None = None) -> Forward:
    def forward(images: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
        images = images if precision is None else images.to(precision)
        return model(images, timestep=timestep, class_labels=labels).sample

    forward.model = model
    return forward


def _tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def release() -> None:
    """Give the memory of what is no longer referenced back, so that counters start from the next model alone."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.synchronize()


def stored_bytes(model: nn.Module) -> int:
    """Bytes of the parameters in their own types: what a checkpoint of them takes."""
    return sum(_parameter_bytes(parameter) for parameter in model.parameters())


def _parameter_bytes(parameter: Tensor) -> int:
    """A quantised parameter is a wrapper around several tensors."""
    if not hasattr(parameter, "__tensor_flatten__"):
        return parameter.numel() * parameter.element_size()
    names, _ = parameter.__tensor_flatten__()
    parts = [getattr(parameter, name) for name in names]
    return sum(part.numel() * part.element_size() for part in parts if isinstance(part, Tensor))


def parameters(spec: DiT) -> dict[str, int]:
    """Parameters of a size: "tied" as loaded by this project, "untied" as diffusers builds it (an embedder a block)."""
    with torch.device("meta"):
        untied = sum(parameter.numel() for parameter in _bare(spec).parameters())
    embedder = spec.width * (SHAPE.classes + 1) + 256 * spec.width + spec.width + spec.width**2 + spec.width
    return {"tied": untied - (spec.depth - 1) * embedder, "untied": untied}
