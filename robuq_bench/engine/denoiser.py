"""The deployed denoiser: a packed file run as it is stored, called like diffusers' DiTTransformer2DModel.

On a CUDA device the linears of the blocks run on the kernels (ternary weights stay two bit planes, nothing is ever
dequantised) inside a CUDA graph per batch size. On a CPU the same file runs in exact integers, as the reference.
"""

from pathlib import Path

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from robuq_bench.engine import packed
from robuq_bench.engine.forward import Forward
from robuq_bench.engine.graphs import Graphs, free_workspaces
from robuq_bench.engine.kernels import jit
from robuq_bench.engine.support import unsupported
from robuq_bench.errors import BenchError


def deploy(path: str | Path, device: str | torch.device = "cuda", graphs: bool = True) -> "DeployedDenoiser":
    """The denoiser of a packed file. `graphs=False` launches every kernel by itself (CUDA only; a CPU has no graphs).

    Raises BenchError when the file is damaged, the engine cannot run its recipe, or the GPU is missing or too old.
    """
    device = torch.device(device)
    if device.type == "cuda":
        jit.architecture(device)
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    elif device.type != "cpu":
        raise BenchError(f"the engine runs on 'cuda' and 'cpu', not on '{device}'")
    stored = packed.read(path)
    if reason := unsupported(stored.card):
        raise BenchError(f"{path}: the engine cannot run {stored.card.variant.name}: this model {reason}")
    try:
        return DeployedDenoiser(stored, device, graphs)
    except torch.OutOfMemoryError:
        raise BenchError(f"{path}: this model does not fit into the free memory of {device}") from None


class DeployedDenoiser:
    """denoiser(hidden_states [B, C, H, W], timestep [B], class_labels [B]) -> Transformer2DModelOutput, or a tuple.

    timestep in 0 ... 1000, class_labels int64 in 0 ... classes, where `classes` means "no class". Fits
    diffusers.DiTPipeline as `transformer` (which hard-codes label 1000 for "no class", so needs 1000 classes there).
    Input and output are float32 (`dtype`); `notes` says what is computed otherwise than in the simulated model.
    Each call returns a tensor of its own. On CUDA, calls belong on one stream, and an image's bits depend on
    its own inputs and the batch size.
    """

    def __init__(self, stored: packed.Stored, device: torch.device, graphs: bool):
        self.card, self.device, self.dtype = stored.card, device, torch.float32
        self.config = _config(stored)
        self._forward = Forward(stored, device)
        self.notes = self._forward.notes
        self._run = Graphs(self._forward) if graphs and device.type == "cuda" else self._forward
        if device.type == "cuda":
            with torch.cuda.device(device):
                free_workspaces()  # and what packing took for a moment

    @torch.no_grad()
    def __call__(
        self,
        hidden_states: Tensor,
        timestep: Tensor | None = None,
        class_labels: Tensor | None = None,
        cross_attention_kwargs: dict | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Raises BenchError on inputs that do not fit and when the batch does not fit into the GPU's memory.

        On CUDA, reading the labels back would stall the GPU: there a label out of range makes its image NaN.
        """
        inputs = self._checked(hidden_states, timestep, class_labels)
        try:
            with torch.cuda.device_of(hidden_states):
                sample = self._run(*inputs).to(hidden_states.dtype)
        except torch.OutOfMemoryError:
            sample = None
        if sample is None:  # out here, where no traceback holds on to what was allocated
            torch.cuda.empty_cache()
            batch = len(hidden_states)
            advice = f"try {batch // 2}" if batch > 1 else "free memory on the GPU"
            raise BenchError(f"a batch of {batch} does not fit into the memory of {self.device}; {advice}")
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _checked(self, x: Tensor, timestep: Tensor | None, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        shape, kind = self.card.shape, self.device
        wanted = (shape.channels, shape.size, shape.size)
        if timestep is None or labels is None:
            raise BenchError("the denoiser needs timestep and class_labels")
        if x.ndim != 4 or tuple(x.shape[1:]) != wanted or not len(x):
            raise BenchError(f"the denoiser takes images [B, {', '.join(map(str, wanted))}], not {list(x.shape)}")
        if x.device.type != kind.type or (kind.index is not None and x.device.index != kind.index):
            raise BenchError(f"the denoiser was deployed on {kind}, the images lie on {x.device}")
        batch = len(x)
        for name, tensor in (("timestep", timestep), ("class_labels", labels)):
            if tensor.shape not in ((), (1,), (batch,)):
                raise BenchError(f"{name} must be [{batch}], as there are {batch} images, not {list(tensor.shape)}")
        if not labels.is_cuda and not bool(((labels >= 0) & (labels <= shape.classes)).all()):
            raise BenchError(f"class_labels lie in 0 ... {shape.classes}, where {shape.classes} means no class")
        time = timestep.to(kind, torch.float32).expand(batch)
        return x.float(), time, labels.to(kind, torch.int64).expand(batch)


def _config(stored: packed.Stored) -> FrozenDict:
    """The configuration that diffusers' model of this size would have."""
    model, shape = stored.card.model, stored.card.shape
    return FrozenDict(
        num_attention_heads=model.heads,
        attention_head_dim=model.width // model.heads,
        in_channels=shape.channels,
        out_channels=shape.outputs,
        num_layers=model.depth,
        sample_size=shape.size,
        patch_size=model.patch,
        num_embeds_ada_norm=shape.classes,
        activation_fn="gelu-approximate",
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
        norm_eps=1e-5,
    )
