"""The deployed denoiser on a GPU: the exact reference's function within bfloat16; graphs bit-equal to launches."""

import gc

import pytest
import torch

from robuq_bench.config.preset import DiT, load_preset
from robuq_bench.engine import graphs
from robuq_bench.engine.denoiser import deploy
from robuq_bench.engine.layers import ReferenceLinear
from robuq_bench.engine.standin import standin
from robuq_bench.models.dit import LINEARS, Shape
from robuq_bench.sample.generate import generate

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SHAPE = Shape(size=16, channels=4, classes=1000)
SIZES = {
    "quick": DiT(width=128, depth=2, heads=4, patch=2),
    "S": DiT(width=384, depth=2, heads=6, patch=2),
    "B": DiT(width=768, depth=1, heads=12, patch=2),
    "L": DiT(width=1024, depth=1, heads=16, patch=2),
    "XL": DiT(width=1152, depth=2, heads=16, patch=2),
}
MIXED = {"qkv": 2, "proj": 3, "fc1": 4, "fc2": 1, "adaln": 4}
ROWS = ["robuq_uniform/W1.58A2", "robuq,low_rank=null/W1.58A2", "robuq,low_rank.rank=4,activation.centre=true/W1.58A2"]


@pytest.fixture
def path(tmp_path, variant):
    def make(size="S", row=ROWS[0], bits=MIXED):
        spec = SIZES[size]
        chosen = {f"blocks.{i}.{kind}": bits[kind] for i in range(spec.depth) for kind in LINEARS}
        standin(spec, SHAPE, variant(row), chosen, tmp_path / "p.safetensors")
        return tmp_path / "p.safetensors"

    return make


def inputs(batch, seed=0, device="cuda"):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, SHAPE.channels, SHAPE.size, SHAPE.size, generator=generator)
    time, labels = torch.rand(batch, generator=generator) * 1000, torch.randint(0, 1001, (batch,), generator=generator)
    return x.to(device), time.to(device), labels.to(device)


def error(mine, expected) -> float:
    return ((mine.double().cpu() - expected.double().cpu()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("size", SIZES)
def test_every_linear_agrees_with_the_reference(path, size, row):
    """Same bfloat16 input: one rounding to bfloat16, and the codes at a cell's edge (up to 2e-4 of them at two bits, by
    one) that 11 bits of the modulated tokens and of sums inside the rotation move: 1.5 % of the output, by 2e-4 ** 0.5.
    """
    file = path(size, row)
    mine, reference = deploy(file, "cuda", graphs=False)._forward, deploy(file, "cpu")._forward
    generator, width = torch.Generator().manual_seed(1), SIZES[size].width

    def random(*shape):
        return torch.randn(*shape, generator=generator).bfloat16()

    hidden = None
    for kind, options in {
        "qkv": {"modulation": random(2, 6 * width).mul(0.5).split(width, -1)[1:3]},
        "proj": {"epilogue": "gate", "gate": random(2, 6 * width)[:, :width], "residual": random(66, width)},
        "fc1": {"modulation": (random(2, width) * 0.3, random(2, width)), "epilogue": "gelu", "epsilon": 1e-5},
        "fc2": {"epilogue": "gate", "gate": random(2, width), "residual": random(66, width)},
    }.items():
        x = random(66, width)
        moved = {key: on_gpu(value) for key, value in options.items()}
        whole = {key: in_float(value) for key, value in options.items()}
        y = mine.blocks[0][kind](hidden if kind == "fc2" else x.cuda(), **moved)
        given = unsigned(hidden, reference.blocks[0]["fc2"]) if kind == "fc2" else x
        if kind == "fc1":
            hidden, y = y, unsigned(y, reference.blocks[0]["fc2"])
        assert error(y, reference.blocks[0][kind](given.float().cpu(), **whole)) < 0.025, kind
    conditioning = torch.nn.functional.silu(random(2, width)).float()
    made = mine.modulations(conditioning.cuda()), reference.modulations(conditioning)
    for got, wanted in zip(*made, strict=True):
        assert all(error(g, w) < 0.02 for g, w in zip(got, wanted, strict=True))


def unsigned(hidden, linear):
    """What fc1 hands to fc2, without fc2's signs."""
    assert (hidden.sums is None) == (linear.down is None)
    return hidden.tokens if linear.signs is None else hidden.tokens * linear.signs.to(hidden.tokens)


def on_gpu(value):
    if isinstance(value, tuple):
        return tuple(map(on_gpu, value))
    if not isinstance(value, torch.Tensor):
        return value
    moved = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cuda")
    return moved.copy_(value)


def in_float(value):
    if isinstance(value, tuple):
        return tuple(map(in_float, value))
    return value.float() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("row", ["robuq_uniform/W1.58A2", "robuq_uniform,attention_bits=null/W1.58A2"])
@pytest.mark.parametrize("size", ["quick", "S", "XL"])
def test_whole_model_is_as_near_the_reference_as_bfloat16_lets_it(path, size, row, monkeypatch):
    """Rounding between layers moves codes over cell edges, at 1 to 4 bits no small effect. The yardstick is the
    reference itself with every activation rounded to bfloat16: no further away than half as much again."""
    file, (x, time, labels) = path(size, row), inputs(3)
    cpu = deploy(file, "cpu")
    expected = cpu(x.cpu(), time.cpu(), labels.cpu()).sample
    mine = error(deploy(file)(x, time, labels).sample, expected)
    exact = ReferenceLinear.__call__

    def rounded(self, x, **options):
        return exact(self, x.bfloat16().float(), **options).bfloat16().float()

    monkeypatch.setattr(ReferenceLinear, "__call__", rounded)
    yardstick = error(cpu(x.cpu(), time.cpu(), labels.cpu()).sample, expected)
    assert mine < 1.5 * yardstick + 0.01


def test_graphs_equal_plain_launches_bit_for_bit(path):
    file = path()
    graphed, plain = deploy(file), deploy(file, graphs=False)
    for batch in (1, 2, 3, 16, 2):
        given = inputs(batch, seed=batch)
        output = graphed(*given).sample
        assert torch.equal(output, plain(*given).sample) and output.isfinite().all()
        again = graphed(*given).sample
        assert torch.equal(output, again) and output.data_ptr() != again.data_ptr()


@pytest.mark.parametrize("batch", [1, 2, 8, 9])
def test_a_pass_sees_nothing_of_the_one_before(variant, tmp_path, batch):
    """Twelve blocks, inputs that change from pass to pass: what is read too early is another pass's."""
    size = DiT(width=1152, depth=12, heads=16, patch=2)
    bits = {f"blocks.{i}.{kind}": MIXED[kind] for i in range(size.depth) for kind in LINEARS}
    standin(size, SHAPE, variant(ROWS[0]), bits, tmp_path / "deep.safetensors")
    denoiser, plain = (deploy(tmp_path / "deep.safetensors", graphs=graphs) for graphs in (True, False))
    given = [inputs(batch, seed) for seed in range(4)]
    expected = []
    for one in given:
        expected.append(plain(*one).sample)
        torch.cuda.synchronize()
    found = [[denoiser(*one).sample for one in given] for _ in range(10)]
    assert all(torch.equal(one, want) for turn in found for one, want in zip(turn, expected, strict=True))


def test_inputs_of_any_layout_and_type(path):
    """What is copied into a graph's buffers: strides, other types, one value for all, an address of any alignment."""
    denoiser, (x, time, labels) = deploy(path()), inputs(4)
    expected = denoiser(x, time[:1].repeat(4), labels).sample
    shifted = torch.cat([x.flatten()[:1], x.flatten()])[1:].view_as(x)
    images = [x.to(memory_format=torch.channels_last), torch.cat([x, x], 1)[:, :4], shifted, x.double()]
    times = [time[0], time[:1].expand(4), time[:1].repeat(8)[::2], time[:1].repeat(5)[1:], time[:1].double()]
    classes = [labels.int(), labels.repeat_interleave(2)[::2], torch.cat([labels[:1], labels])[1:], labels.cpu()]
    for i in range(20):
        output = denoiser(images[i % 4], times[i % 5], classes[i // 5]).sample
        assert output.dtype == images[i % 4].dtype and torch.equal(output.float(), expected), i
    same = denoiser(x, time, labels[:1].expand(4)).sample
    assert torch.equal(same, denoiser(x, time, labels[:1].repeat(4)).sample)


def test_more_batch_sizes_than_graphs_are_kept(path, monkeypatch):
    monkeypatch.setattr(graphs, "KEPT", 2)
    denoiser = deploy(path())
    first = {batch: denoiser(*inputs(batch)).sample for batch in (1, 2, 3, 4)}
    for batch, output in first.items():
        assert torch.equal(denoiser(*inputs(batch)).sample, output)


def test_images_do_not_depend_on_their_neighbours(path):
    denoiser, (x, time, labels) = deploy(path()), inputs(16)
    order = torch.randperm(16, device="cuda")
    output = denoiser(x, time, labels).sample
    assert torch.equal(denoiser(x[order], time[order], labels[order]).sample, output[order])


def test_inference_mode_leaves_nothing_behind(path):
    """Captured in inference mode, used outside and inside."""
    denoiser, given = deploy(path()), inputs(2)
    with torch.inference_mode():
        inside = denoiser(*given).sample
    outside = denoiser(*given).sample
    assert torch.equal(inside, outside) and not outside.is_inference()


def test_labels_out_of_range_make_nan(path):
    denoiser, (x, time, labels) = deploy(path()), inputs(4)
    labels[1], labels[3] = 1001, -1
    bad = denoiser(x, time, labels).sample.isnan().flatten(1)
    assert bad.all(1).tolist() == [False, True, False, True] and not bad[[0, 2]].any()


def test_sampling_on_the_engine(path, in_root):
    """Guided lanes: an image does not depend on what else is asked for."""
    denoiser = deploy(path())
    plan = load_preset("smoke", "sample.steps=3,sample.lane=4,sample.guidance=2").sample
    images, _ = generate(denoiser, SHAPE, range(6), plan, "cuda")
    some, _ = generate(denoiser, SHAPE, [5, 1], plan, "cuda")
    assert (some == images[[5, 1]]).all()


def test_images_that_the_kernel_of_the_last_linear_does_not_take(variant, tmp_path):
    """RGB at patch 2, 12 values a token: torch puts the image together, within bfloat16 of the reference."""
    row, size, shape = variant(ROWS[0]), SIZES["S"], Shape(size=16, channels=3, classes=10)
    bits = {f"blocks.{i}.{kind}": MIXED[kind] for i in range(size.depth) for kind in LINEARS}
    standin(size, shape, row, bits, tmp_path / "rgb.safetensors")
    graphed, plain, reference = (
        deploy(tmp_path / "rgb.safetensors", device, graphs=graphs)
        for device, graphs in (("cuda", True), ("cuda", False), ("cpu", False))
    )
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2 * 64, size.width, generator=generator).bfloat16()
    conditioning = torch.randn(2, size.width, generator=generator)
    mine, exact = plain._forward, reference._forward
    got = mine.images(hidden.cuda(), *mine._last_linear(conditioning.cuda()))
    assert error(got, exact.images(hidden.float(), *exact._last_linear(conditioning))) < 0.01
    given = torch.randn(2, 3, 16, 16, device="cuda"), torch.rand(2, device="cuda") * 1000, torch.tensor([3, 10])
    output = graphed(*given).sample
    assert output.shape == given[0].shape and output.isfinite().all() and torch.equal(output, plain(*given).sample)


def test_weights_stay_packed(path):
    """Two bits a weight in memory; what is not ternary is small beside them at a width of 1152."""
    file = path("XL")
    torch.cuda.synchronize()
    gc.collect()  # of earlier tests
    before = torch.cuda.memory_allocated()
    denoiser = deploy(file)
    held = torch.cuda.memory_allocated() - before
    weights = SIZES["XL"].depth * 18 * 1152**2
    assert "attention in bfloat16, not 8 bits" in denoiser.notes
    assert weights / 4 < held < weights / 4 + 45e6


def test_a_batch_that_does_not_fit(path, refused):
    denoiser = deploy(path())
    denoiser(*inputs(2))
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (256 << 20)) / total)
    try:
        refused(lambda: denoiser(*inputs(4096)), "a batch of 4096 does not fit", "try 2048")
        assert denoiser(*inputs(2)).sample.isfinite().all()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_images_on_the_cpu_are_refused(path, refused):
    refused(lambda: deploy(path())(*inputs(2, device="cpu")), "was deployed on cuda:0, the images lie on cpu")
