"""Shared by all tests: no network, one thread, small models, and `--fix` for generated files."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import standins
import torch
from hypothesis import settings
from pytest_socket import disable_socket
from torch import nn

from robuq_bench.cli import SERVER
from robuq_bench.config.preset import DiT
from robuq_bench.config.recipe import Variant, load_recipe, load_variant
from robuq_bench.engine.kernels import jit
from robuq_bench.errors import BenchError
from robuq_bench.models import dit
from robuq_bench.models.checkpoint import Card
from robuq_bench.quant.convert import convert, uniform_bits

ROOT = Path(__file__).parents[1]
BASELINES = ROOT / "baselines"

settings.register_profile("robuq_bench", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("robuq_bench")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fix", action="store_true", help="rewrite generated files instead of comparing them")


@pytest.hookimpl(trylast=True)
def pytest_runtest_setup() -> None:
    disable_socket(allow_unix_socket=True)  # trylast: after pytest-socket's own set-up


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `each_row` runs for every recipe of baselines/ at every variant."""
    if "each_row" in metafunc.fixturenames:
        names = sorted(path.stem for path in BASELINES.glob("*.yaml"))
        rows = [f"{name}/{variant}" for name in names for variant in load_recipe(name, BASELINES).variants]
        metafunc.parametrize("each_row", rows)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Bits are compared at one thread; presets under test may have set another number."""
    torch.set_num_threads(1)


@pytest.fixture
def in_root(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of the checkout as working folder, which is where users call robuq-bench."""
    monkeypatch.chdir(ROOT)
    return ROOT


@pytest.fixture(scope="session")
def spec() -> DiT:
    return DiT(width=48, depth=2, heads=2, patch=2)


@pytest.fixture(scope="session")
def shape() -> dit.Shape:
    return dit.Shape(size=8, channels=1, classes=10)


@pytest.fixture
def denoiser(spec: DiT, shape: dit.Shape) -> Callable[..., nn.Module]:
    """A full-precision denoiser with every parameter random: a fresh one outputs zero (adaLN-zero)."""

    def make(seed: int = 0, spec: DiT = spec, shape: dit.Shape = shape) -> nn.Module:
        model = dit.build(spec, shape, init_seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        return model.eval()

    return make


@pytest.fixture
def variant() -> Callable[[str], Variant]:
    """`variant("robuq,low_rank.rank=4/W1.58A2")` from baselines/."""

    def make(row: str) -> Variant:
        return load_variant(*row.rsplit("/", 1), folder=BASELINES)

    return make


@pytest.fixture
def converted(denoiser, variant) -> Callable[..., nn.Module]:
    """A random denoiser converted for a row; signs and weights follow `seed`."""

    def make(row: str, seed: int = 0) -> nn.Module:
        model = denoiser(seed)
        return convert(model, variant(row), uniform_bits(model, variant(row)), seed)

    return make


@pytest.fixture
def card(spec: DiT, shape: dit.Shape, variant, denoiser) -> Callable[..., Card]:
    """The card of a trained row of the small model."""

    def make(row: str, seed: int = 0, **changes) -> Card:
        facts = {
            "kind": "trained",
            "preset": "smoke",
            "variant": variant(row),
            "seed": seed,
            "model": spec,
            "shape": shape,
            "bits": uniform_bits(denoiser(seed), variant(row)),
            "status": "ok",
            "reason": "",
            "facts": {"held_out_loss": 0.5},
            "provenance": {"commit": "abc"},
        }
        return Card(**facts | changes)

    return make


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory) -> Iterator[Path]:
    """Random weights of the Inception network, as torch-fidelity's file has them."""
    pytest.importorskip("torch_fidelity")
    folder = tmp_path_factory.mktemp("inception")
    yield standins.save_inception(folder / "weights.pth")
    shutil.rmtree(folder)  # 95 MB


@pytest.fixture(scope="session")
def warm() -> Iterator[dict[str, str]]:
    """Environment in which calls of robuq-bench are forks of one server: importing PyTorch takes seconds each time."""
    told = f"echo ${SERVER}; read until_closed"
    command = [sys.executable, "-m", "robuq_bench.cli", "warm", "sh", "-c", told]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield {**os.environ, SERVER: server.stdout.readline().strip()}


@pytest.fixture
def batch(shape: dit.Shape) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs of a denoiser: images, times in 0 ... 1000, labels; the last label is "no class"."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, shape.channels, shape.size, shape.size, generator=generator)
    return images, torch.tensor([0.0, 500.0, 999.0]), torch.tensor([0, 9, shape.classes])


@pytest.fixture
def refused() -> Callable[..., str]:
    """`refused(call, "word", ...)`: the call raises a BenchError of one line with the words; the line."""
    from robuq_bench.errors import BenchError

    def check(call: Callable[[], object], *words: object) -> str:
        with pytest.raises(BenchError) as caught:
            call()
        message = str(caught.value)
        assert "\n" not in message
        for word in words:
            assert str(word) in message
        return message

    return check


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A compiler of CUDA C++, with a cache of its own: the folder. Skips where there is none."""
    try:
        jit.nvrtc()
    except BenchError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("ROBUQ_BENCH_CACHE", str(tmp_path))
    return tmp_path
