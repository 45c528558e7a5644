"""What the GPU layers hand to the kernels, checked on a CPU by putting the kernels' references in their place."""

import pytest
import torch

from robuq_bench.engine import layers
from robuq_bench.engine.kernels import pack_activation
from robuq_bench.engine.kernels.packing import pack_sums
from robuq_bench.engine.kernels.reference import gemm_reference, rotate_quantize_reference, sums_reference
from robuq_bench.engine.packed import read

CPU = torch.device("cpu")


@pytest.fixture
def without_gpu(monkeypatch):
    """The kernels replaced by what they compute, in float32 and float64."""

    def rotate_quantize(x, rotation, bits, *, down, settled, clears, **options):
        if clears is not None:
            clears.zero_()
        found = rotate_quantize_reference(x, rotation, bits, **options)
        offset = found["offset"] if options["center"] else None
        shift = -(2**bits - 1) / 2 if options["levels"] == "midrise" else -(2.0 ** (bits - 1))
        low = None if down is None else found["rotated"] @ down.T
        return pack_activation(found["codes"], bits, found["step"], shift, offset, low)

    monkeypatch.setattr(layers, "rotate_quantize", rotate_quantize)
    monkeypatch.setattr(layers, "gemm", gemm_reference_of)
    monkeypatch.setattr(layers, "pack_down", lambda down, rotation, pre: down)


def gemm_reference_of(x, weight, *, epilogue, gate, residual, sums):
    y = gemm_reference(x, weight, epilogue, gate, residual).float()
    if sums is not None:
        sums += pack_sums(sums_reference(y, weight.next_down).round().int())
    return y


@pytest.mark.parametrize(
    "row",
    [
        "robuq/W1.58A4",
        "robuq_uniform,rotation.signs=false,low_rank=null/W1.58A2",
        "robuq_uniform,rotation.kind=block-128,low_rank.rank=4/W1.58A3",
        "robuq_uniform,activation.centre=true/W1.58A3",
        "robuq_uniform,activation.format=midtread/W1.58A2",
        "robuq_uniform,weight.granularity=tensor/W1.58A2",
    ],
)
def test_kernel_layers_mean_the_same_as_the_reference(latent_file, without_gpu, row):
    """Only the branch differs, by its rounding to bfloat16."""
    stored = read(latent_file(row))
    method, generator = stored.card.variant.method, torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    block = {kind: stored.layers[f"blocks.1.{kind}"] for kind in ("qkv", "proj", "fc1", "fc2")}
    mine, reference = layers.kernel_linears(block, method, CPU), layers.reference_linears(block, method, CPU)
    tolerance = 1e-6 if method.low_rank is None else 4e-3
    hidden = None
    for kind, options in {
        "qkv": {"modulation": (0.3 * random(2, 128), random(2, 128)), "epsilon": 0.05},
        "proj": {"epilogue": "gate", "gate": random(2, 128), "residual": random(6, 128)},
        "fc1": {"epilogue": "gelu"},
        "fc2": {},
    }.items():
        x = random(6, 128)
        y = mine[kind](hidden if kind == "fc2" else x, **options)
        expected = reference[kind](unsigned(hidden, block["fc2"]) if kind == "fc2" else x, **options)
        if kind == "fc1":
            hidden, y = y, unsigned(y, block["fc2"])
        assert (y - expected).norm() <= tolerance * expected.norm(), kind


def unsigned(hidden, layer):
    assert isinstance(hidden, layers.Hidden) and (hidden.sums is None) == (layer.down is None)
    return hidden.tokens if layer.signs is None else hidden.tokens * layer.signs


def test_modulation_is_of_the_token_s_image():
    x, scale, shift = torch.randn(6, 8), torch.randn(2, 8), torch.randn(2, 8)
    for image, tokens in enumerate(x.split(3)):
        normal = (tokens - tokens.mean(-1, keepdim=True)) / (tokens.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        expected = normal * (1 + scale[image]) + shift[image]
        torch.testing.assert_close(layers.modulate(x, (scale, shift), 1e-5)[3 * image : 3 * image + 3], expected)


def test_small_ranks_are_padded(latent_file):
    layer = read(latent_file("robuq_uniform,low_rank.rank=4/W1.58A3")).layers["blocks.0.fc2"]
    down, up = layers.padded_branch(layer, CPU)
    assert down.shape == (16, 512) and up.shape == (128, 16)
    assert torch.equal(up @ down, layer.up.float() @ layer.down.float())
    assert not down[4:].any() and not up[:, 4:].any()
