"""The deployed denoiser on a CPU: the simulated model's function, in integers, behind diffusers' interface."""

import inspect

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DPMSolverMultistepScheduler
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from hypothesis import given, settings
from hypothesis import strategies as st

from robuq_bench.engine import layers as layers_module
from robuq_bench.engine import packed
from robuq_bench.engine.denoiser import deploy
from robuq_bench.engine.layers import ReferenceLinear, exact_product
from robuq_bench.engine.packed import read
from robuq_bench.quant.convert import quant_linears

ROWS = [
    "robuq/W1.58A4",
    "robuq/W1.58A2",
    "robuq_uniform,attention_bits=null/W1.58A2",
    "robuq_uniform,low_rank=null,rotation.signs=false/W1.58A2",
    "robuq_uniform,low_rank.rank=4/W1.58A3",
    "robuq_uniform,rotation.kind=block-128/W1.58A2",
    "robuq_uniform,activation.centre=true/W1.58A3",
    "robuq_uniform,activation.format=midtread/W1.58A3",
    "robuq_uniform,weight.granularity=tensor/W1.58A2",
]


@pytest.mark.parametrize("row", ROWS)
def test_each_linear_equals_the_simulated_one(latent_file, row):
    """Same input, so the same codes; what follows is exact in integers and differs by the rounding of float32 alone."""
    path = latent_file(row)
    model, card = packed.load(path)
    generator = torch.Generator().manual_seed(2)
    for name, layer in read(path).layers.items():
        x = torch.randn(37, layer.shape[1], generator=generator)
        with torch.no_grad():
            expected = quant_linears(model)[name](x)
        mine = ReferenceLinear(layer, card.variant.method, torch.device("cpu"))(x)
        assert (mine - expected).norm() <= 1e-6 * expected.norm(), name


def in_float64(denoiser):
    """The denoiser with all its float tensors in float64, except the frequencies, which diffusers keeps in float32."""
    forward = denoiser._forward
    linears = [linear for block in forward.blocks for linear in block.values()] + forward.modulations.linears

    def double(value):
        if isinstance(value, tuple | list):
            return type(value)(map(double, value))
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    for part in [forward, *linears]:
        for name, value in vars(part).items():
            if name not in ("frequencies", "blocks", "modulations"):
                setattr(part, name, double(value))
    forward.dtype = torch.float64
    return forward


@pytest.mark.parametrize("row", ROWS)
def test_whole_model_equals_the_simulated_one_in_float64(latent_file, latents, row):
    """In float64 no code is close enough to a cell's edge to flip, so whole models can be compared tightly."""
    path, (x, time, labels) = latent_file(row, mixed="midtread" not in row), latents
    with torch.no_grad():
        expected = packed.load(path)[0].double()(x.double(), timestep=time, class_labels=labels).sample
        mine = in_float64(deploy(path, "cpu"))(x.double(), time, labels)
    assert expected.std() > 0.1
    assert (mine - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("row", ROWS)
def test_whole_model_nearly_equals_the_simulated_one_in_float32(latent_file, latents, row):
    """A code at a cell's edge may flip by the order of float32 sums and move what follows: rare, so small here."""
    path, (x, time, labels) = latent_file(row), latents
    with torch.no_grad():
        expected = packed.load(path)[0](x, timestep=time, class_labels=labels).sample
    assert (deploy(path, "cpu")(x, time, labels).sample - expected).norm() <= 0.03 * expected.norm()


@settings(max_examples=25)
@given(
    m=st.integers(1, 9),
    n=st.integers(1, 9),
    k=st.sampled_from([1, 31, 4608]),
    bits=st.integers(1, 4),
    extreme=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_the_integer_product_is_exact(m, n, k, bits, extreme, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (m, k), generator=generator, dtype=torch.int8)
    ternary = torch.randint(-1, 2, (n, k), generator=generator, dtype=torch.int8)
    if extreme:
        codes.fill_(-(2 ** (bits - 1)))
        ternary.fill_(-1)
    assert torch.equal(exact_product(codes, ternary).long(), codes.long() @ ternary.long().T)


def test_sums_that_float32_cannot_hold_are_refused(refused):
    wide = torch.zeros(1, (1 << 17) + 1, dtype=torch.int8)
    refused(lambda: exact_product(wide, wide), "too many for exact sums")


def test_the_product_is_one_of_integers(latent_file, latents, monkeypatch):
    """No dequantised weight takes part: the operands of every product of the blocks are int8."""
    seen = []

    def watch(codes, ternary):
        seen.append((codes.dtype, ternary.dtype, set(ternary.unique().tolist()) <= {-1, 0, 1}))
        return exact_product(codes, ternary)

    monkeypatch.setattr(layers_module, "exact_product", watch)
    deploy(latent_file("robuq/W1.58A2"), "cpu")(*latents)
    assert seen == [(torch.int8, torch.int8, True)] * 10


def test_same_signature_and_outputs_as_diffusers(latent_file, latents):
    denoiser = deploy(latent_file("robuq/W1.58A2"), "cpu")
    theirs = inspect.signature(DiTTransformer2DModel.forward).parameters
    mine = inspect.signature(denoiser.__call__).parameters
    assert list(mine) == [name for name in theirs if name != "self"]
    assert [p.default for p in mine.values()] == [p.default for name, p in theirs.items() if name != "self"]
    x, time, labels = latents
    output = denoiser(x, timestep=time, class_labels=labels)
    assert isinstance(output, Transformer2DModelOutput) and output.sample.shape == x.shape
    (alone,) = denoiser(x, time, labels, return_dict=False)
    assert torch.equal(alone, output.sample) and alone.data_ptr() != output.sample.data_ptr()
    assert denoiser(x.half(), time, labels).sample.dtype == torch.float16
    assert denoiser.dtype == torch.float32 and denoiser.device == torch.device("cpu") and denoiser.notes == ()


def test_configuration_is_diffusers_own(latent_file):
    path = latent_file("robuq/W1.58A2")
    mine, theirs = deploy(path, "cpu").config, packed.load(path)[0].config
    assert mine.out_channels == mine.in_channels == 4  # theirs says null, which DiTPipeline cannot read
    assert all(theirs[key] == value for key, value in mine.items() if key != "out_channels")
    assert mine.sample_size == 8 and mine["patch_size"] == 2


def test_one_time_for_all_images(latent_file, latents):
    denoiser, (x, _, labels) = deploy(latent_file("robuq/W1.58A2"), "cpu"), latents
    many = denoiser(x, torch.full((3,), 500.0), labels).sample
    assert torch.equal(denoiser(x, torch.tensor(500), labels).sample, many)
    assert torch.equal(denoiser(x, torch.tensor([500]), labels).sample, many)


@pytest.fixture
def pipeline():
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=8, layers_per_block=1
    ).eval()

    def make(transformer, scheduler):
        made = DiTPipeline(transformer=transformer, vae=vae, scheduler=scheduler)
        made.set_progress_bar_config(disable=True)
        return made

    return make


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DPMSolverMultistepScheduler])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_it_drops_into_diffusers_pipeline(latent_file, pipeline, scheduler, guidance):
    path = latent_file("robuq/W1.58A4")
    simulated = packed.load(path)[0]
    simulated.register_to_config(out_channels=4)

    def images(transformer):
        generator = torch.Generator().manual_seed(3)
        made = pipeline(transformer, scheduler())
        return made([1, 7], guidance, generator, num_inference_steps=4, output_type="np").images

    mine, theirs = images(deploy(path, "cpu")), images(simulated)
    assert mine.shape == (2, 8, 8, 3) and mine.std() > 0.05
    assert np.abs(mine - theirs).mean() < 0.01


def test_pipeline_makes_pictures(latent_file, pipeline):
    made = pipeline(deploy(latent_file("robuq/W1.58A2"), "cpu"), DDIMScheduler())
    output = made([3], num_inference_steps=2)
    assert output.images[0].size == (8, 8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_states": torch.zeros(3, 4, 16, 16)}, "takes images [B, 4, 8, 8], not [3, 4, 16, 16]"),
        ({"hidden_states": torch.zeros(0, 4, 8, 8)}, "not [0, 4, 8, 8]"),
        ({"timestep": torch.zeros(2)}, "timestep must be [3], as there are 3 images, not [2]"),
        ({"class_labels": torch.zeros(3, 2)}, "class_labels must be [3]"),
        ({"class_labels": None}, "needs timestep and class_labels"),
        ({"class_labels": torch.tensor([0, 1, 1001])}, "class_labels lie in 0 ... 1000, where 1000 means no class"),
        ({"class_labels": torch.tensor([0, -1, 3])}, "class_labels lie in 0 ... 1000"),
        ({"hidden_states": torch.zeros(3, 4, 8, 8, device="meta")}, "was deployed on cpu, the images lie on meta"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(latent_file, latents, refused, change, words):
    denoiser = deploy(latent_file("robuq/W1.58A2"), "cpu")
    inputs = dict(zip(("hidden_states", "timestep", "class_labels"), latents, strict=True)) | change
    refused(lambda: denoiser(**inputs), words)


def test_other_devices_are_refused(latent_file, refused):
    path = latent_file("robuq/W1.58A2")
    refused(lambda: deploy(path, "meta"), "'cuda' and 'cpu', not on 'meta'")


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_no_gpu_is_said_plainly(latent_file, refused):
    refused(lambda: deploy(latent_file("robuq/W1.58A2")), "need an NVIDIA GPU")


def test_recipes_that_the_engine_cannot_run_are_refused(latent_file, refused):
    path = latent_file("quest_stable/W3A3")
    refused(lambda: deploy(path, "cpu"), path, "cannot run W3A3", "weights of format")


def test_out_of_memory_names_a_smaller_batch(latent_file, latents, refused, monkeypatch):
    denoiser, (x, time, labels) = deploy(latent_file("robuq/W1.58A2"), "cpu"), latents

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(denoiser, "_run", full)
    twice = [torch.cat([part, part]) for part in (x, time, labels)]
    refused(lambda: denoiser(*twice), "a batch of 6 does not fit", "try 3")
    refused(lambda: denoiser(x[:1], time[:1], labels[:1]), "a batch of 1 does not fit", "free memory")
