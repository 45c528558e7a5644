"""A pretend benchmark in a temporary folder: recipes, a preset, and the files that other stages would have written."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from robuq_bench.cli import main
from robuq_bench.config.base import override
from robuq_bench.config.preset import DiT
from robuq_bench.config.recipe import Recipe, Variant, load_variant
from robuq_bench.files import read_json, sha256_file, write_json
from robuq_bench.models import checkpoint
from robuq_bench.models.dit import Shape
from robuq_bench.report.records import Scores
from robuq_bench.report.rows import Row, Run
from robuq_bench.sample import archive

PROVENANCE = {
    "version": "0.1.0",
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "dirty": False,
    "python": "3.11.7",
    "packages": {"torch": "2.14.1", "numpy": None},
    "machine": {"processor": "Pretend", "cores": 2, "system": "Linux"},
    "device": "cpu",
    "command": "robuq-bench train --preset tiny",
    "time": "2026-01-02T03:04:05+00:00",
    "seconds": 7.5,
}
PRESET = {
    "title": "Pretend 8x8",
    "device": "cpu",
    "threads": 1,
    "data": {"source": "folder", "path": "absent", "size": 8, "held_out": 8},
    "model": {"width": 8, "depth": 1, "heads": 1, "patch": 2},
    "train": {"steps": 6, "batch": 2, "threads": 1, "lr": 0.1, "warmup": 1, "ema": 0.9, "save_every": 2},
    "qat": {"steps": 4, "batch": 2, "threads": 1, "lr": 0.1, "warmup": 1, "ema": 0.9, "save_every": 2},
    "sample": {"n": 8, "steps": 5, "guidance": 1.5, "lane": 4},
    "evaluate": {"extractor": "Pixels"},
    "latency": {"batch": 4, "repeats": 3},
    "seeds": [0],
    "rows": ["full/W32A32", "alpha/W1.58A2", "beta/W1.58A2"],
}
QUANTISERS = {
    "weight": {"format": "ternary", "granularity": "channel", "scale": "absmean"},
    "activation": {"format": "midrise", "granularity": "token", "scale": "rms"},
}
TIMED = {"label": "simulated", "p20_ms": 1.0, "p80_ms": 30.0, "batch": 4, "repeats": 3, "device": "cpu"}
IMAGES = np.full((8, 8, 8, 1), 100, np.uint8)
VARIANTS = {"W1.58A2": {}, "W1.58A4": {}}
SOURCE = "a figure"


class Lab:
    """Writes recipes and runs; calls the real command line. Paths are relative to its folder."""

    classes = 2

    def __init__(self, root: Path):
        self.root, self.results = root, root / "results"
        self.preset()
        self.recipe("full", title="Full precision", training="none", variants={"W32A32": {}})
        self.recipe("alpha", title="Alpha", paper=[self.quoted(200.0)])
        self.recipe("beta", title="Beta", paper=[self.quoted(20.5)])
        write_json(
            self.results / "reference/floor.json", {"scores": scores(FD=1.0), "data": "d", "provenance": PROVENANCE}
        )

    @staticmethod
    def quoted(value: float) -> dict:
        return {"variant": "W1.58A2", "metric": "IS", "value": value, "setting": "elsewhere", "source": SOURCE}

    def preset(self, **changes) -> None:
        (self.root / "config").mkdir(exist_ok=True)
        (self.root / "config/tiny.yaml").write_text(yaml.safe_dump(PRESET | changes))

    def recipe(self, name: str, **fields) -> None:
        quantised = fields.get("training") != "none"
        fields = {
            "training": "qat",
            "citation": f"{name}, 2026",
            "assumptions": ["none"],
            "variants": VARIANTS,
        } | fields
        (self.root / "baselines").mkdir(exist_ok=True)
        recipe = (QUANTISERS if quantised else {}) | fields
        (self.root / f"baselines/{name}.yaml").write_text(yaml.safe_dump(recipe))

    def folder(self, row: str, seed: int = 0) -> Path:
        return self.results / row / f"seed{seed}"

    def run(self, row: str, seed: int = 0, diverged: str = "", **figures) -> None:
        """The files of one run. `figures`: scores to change; loss, losses, size, ms, bits, images."""
        given = {"loss": 0.25, "losses": [3.0, 2.0, 1.0], "size": 10_000, "ms": 12.5, "bits": {}, "images": IMAGES}
        given = {key: figures.pop(key, value) for key, value in given.items()}
        folder = self.folder(row, seed)
        stage = {"status": "diverged" if diverged else "ok", "reason": diverged, "provenance": PROVENANCE}
        card = self.card(row, seed, given["bits"], stage)
        weights = {} if diverged else {"w": torch.tensor([figures.get("FD", 0.0)])}
        checkpoint.save(folder / "packed.safetensors", weights, card)
        about = stage | {"packed": sha256_file(folder / "packed.safetensors")}

        held_out = {} if diverged else {"held_out_loss": given["loss"], "trivial_loss": 1.7}
        write_json(folder / "train.json", stage | {"losses": given["losses"], "plan": {}} | held_out)
        found = None if diverged else scores(**figures)
        write_json(folder / "metrics.json", about | {"scores": found, "protocol": sampling(), "sampled": PROVENANCE})
        timed = None if diverged else TIMED | {"median_ms": given["ms"]}
        size = {"bytes": given["size"], "label": "packed"}
        write_json(folder / "measure.json", about | {"size": size, "latency": timed})
        images = given["images"][:0] if diverged else given["images"]
        samples = archive.Samples(images, np.arange(len(images)) % self.classes, about)
        archive.save(folder / "samples.npz", samples)

    def card(self, row: str, seed: int, bits: dict[str, int], stage: dict) -> checkpoint.Card:
        variant = load_variant(*row.rsplit("/", 1))
        uniform = dict.fromkeys(("blocks.0.qkv", "blocks.0.fc1"), variant.activation_bits)
        facts = {"kind": "packed", "preset": "tiny", "variant": variant, "seed": seed, "facts": {}}
        facts |= {"model": DiT(**PRESET["model"]), "shape": Shape(8, 1, self.classes)}
        return checkpoint.Card(**facts, **stage, bits=uniform | {"blocks.0.adaln": 4} | bits)

    def change(self, path: str, **fields) -> None:
        """Replace keys of a JSON file below results/; `head__key` goes one level down."""
        changes = {key.replace("__", "."): value for key, value in fields.items()}
        write_json(self.results / path, override(read_json(self.results / path), changes))

    def table(self, *more: str) -> int:
        return main(["table", "--preset", "tiny", "--results", "results", "--out", "results/table", *more])

    def report(self, *more: str) -> int:
        paths = ["--results", "results", "--table", "results/table.json", "--out", "reports/index.html"]
        return main(["report", "--preset", "tiny", *paths, *more])

    def text(self, suffix: str) -> str:
        return (self.root / f"results/table{suffix}").read_text()

    def page(self) -> str:
        assert self.table() == 0
        assert self.report() == 0
        return (self.root / "reports/index.html").read_text()


def sampling() -> dict:
    return {"scheduler": "flow_euler", **PRESET["sample"]}


def scores(**changes) -> dict:
    base = {"FD": 2.0, "sFD": 4.0, "IS": 3.0, "KID": 0.001, "KID_se": 0.0001, "precision": 0.5, "recall": 0.25}
    facts = {
        "n": 8,
        "n_reference": 100,
        "n_neighbours": 8,
        "extractor": "Pixels",
        "digest": "abcdef012345",
        "protocol": "p",
    }
    return base | facts | changes


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    """Three rows, one seed, Alpha better than Beta."""
    monkeypatch.chdir(tmp_path)
    lab = Lab(tmp_path)
    lab.run("full/W32A32", FD=1.5, IS=5.0, loss=0.2, size=123_456)
    lab.run("alpha/W1.58A2", FD=2.25, IS=4.0)
    lab.run("beta/W1.58A2", FD=4.5, KID=-0.00001, loss=0.5)
    return lab


def score_of(extractor: str, value: float) -> Scores:
    rest = dict.fromkeys(("sFD", "IS", "KID", "KID_se", "precision", "recall"), 0.0)
    return Scores(FD=value, n=8, n_reference=8, extractor=extractor, digest="d", protocol="p", **rest)


def row_of(
    key: str, *values: float, second: tuple[float, ...] | None = None, diverged: bool = False, steps=None
) -> Row:
    """A row with seeds 0, 1, ... and these scores under the first extractor; `second`: under the other."""
    recipe, _, name = key.rpartition("/")
    weight = {"format": "ternary", "granularity": "channel", "scale": "absmean"}
    method = Recipe(title=recipe, citation="c", training="qat", weight=weight, variants={}, assumptions=())
    second = values if second is None else second
    lost = dict.fromkeys(("size", "held_out_loss", "latency"))
    facts = {"status": "ok", "reason": "", "packed": "h", "bits": {}, "provenance": {}, "steps": steps}
    runs = [
        Run(seed=seed, scores=score_of("Lite0", a), also=(score_of("Lite2", b),), **facts, **lost)
        for seed, (a, b) in enumerate(zip(values, second, strict=True))
    ]
    variant = Variant(recipe=recipe, name=name, weight_bits=1.58, activation_bits=2, method=method)
    status = "diverged" if diverged else "ok"
    return Row(variant=variant, status=status, reason="nan" if diverged else "", runs=runs, figures={})


@pytest.fixture
def scored() -> Callable[..., Row]:
    """`scored("recipe/variant", 1.0, 2.0)`: a row of two extractors with these scores, seed by seed."""
    return row_of
