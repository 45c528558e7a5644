"""What a preset needs, looked at one thing at a time: files, hashes, disk, devices, two steps of training."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from robuq_bench.config.preset import Preset
from robuq_bench.config.recipe import Variant
from robuq_bench.config.row import load_row, training_plan
from robuq_bench.data.crop import central_square
from robuq_bench.data.latents import INDEX, open_cache
from robuq_bench.data.sources import load
from robuq_bench.devices import describe, expect, gpus, release, use
from robuq_bench.errors import BenchError
from robuq_bench.measure.needs import disk, gigabytes
from robuq_bench.metrics.adm import AdmFile
from robuq_bench.metrics.extractors import load_all
from robuq_bench.models import dit, pretrained, vae
from robuq_bench.quant.convert import convert, uniform_bits
from robuq_bench.train.examples import Examples, examples, model_shape
from robuq_bench.train.latents_stage import listing
from robuq_bench.train.objective import to_signal
from robuq_bench.train.processes import PROCESSES
from robuq_bench.train.stage import fit
from robuq_bench.train.state import State

LOOKED_AT = 16  # images that are decoded and encoded
STEPS = 2
Check = Callable[[], str]
"""Looks at one thing: what it found, in a few words. Raises BenchError when it will not do."""


def checks(preset: Preset) -> Iterator[tuple[str, Check]]:
    """(name, check) of everything that the preset needs, the cheap ones first."""
    yield "rows", lambda: rows(preset)
    yield "device", lambda: device(preset)
    yield "images", lambda: images(preset)
    if preset.pretrained:
        yield "pretrained model", lambda: published(preset)
    if preset.latents:
        yield "autoencoder", lambda: autoencoder(preset)
        yield "latents", lambda: latents(preset)
    yield "feature extractor", lambda: extractor(preset)
    if preset.evaluate.reference:
        yield "reference", lambda: reference(preset)
    yield "free disk", lambda: free(preset)
    yield "two training steps", lambda: training(preset)


def rows(preset: Preset) -> str:
    """Every row's recipe exists and fits the model."""
    for row in preset.rows:
        load_row(preset, *row.rsplit("/", 1))
    return f"{len(preset.rows)} rows, {len(preset.seeds)} seed(s)"


def device(preset: Preset) -> str:
    expect(preset.device, preset.threads)
    if preset.device == "cpu":
        return f"cpu, {preset.threads} thread(s) a job"
    names = [torch.cuda.get_device_name(index) for index in range(len(gpus()))]
    least = min(torch.cuda.get_device_properties(index).total_memory for index in range(len(names)))
    return f"{len(names)} x {names[0]}, {gigabytes(least)} each"


def images(preset: Preset) -> str:
    if preset.latents is None:
        found = load(preset.data.source, preset.data.path)
        if preset.data.classes not in (None, len(found.classes)):
            raise BenchError(f"{len(found.classes)} classes, the preset expects {preset.data.classes}")
        return f"{len(found)} images, {len(found.classes)} classes"
    files = listing(preset)
    for file in spread(files.files):
        central_square(file, preset.data.size)
    return f"{len(files.files)} images, {len(files.classes)} classes; {LOOKED_AT} decoded"


def published(preset: Preset) -> str:
    model, digest = pretrained.load(preset.pretrained, preset.model, _shape(preset))
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    known = "as the preset says" if preset.pretrained.sha256 else "the preset names none"
    return f"{millions:.0f} M parameters, embedders tied; sha256 {digest} ({known})"


def autoencoder(preset: Preset) -> str:
    """Encode and decode some images: latents must vary by about 1, and the images come back."""
    model = vae.load(preset.latents)
    files = spread(listing(preset).files)
    signal = torch.cat([to_signal(central_square(file, preset.data.size)[None]) for file in files])
    noise = torch.zeros(len(signal), preset.latents.channels, preset.side, preset.side)
    scaled = (
        torch.cat([model.encode(*pair) for pair in zip(signal.split(4), noise.split(4), strict=True)]) * model.scale
    )
    deviation = scaled.std().item()
    if not 0.5 <= deviation <= 2:
        raise BenchError(f"scaled latents vary by {deviation:.2f}, not by about 1: is latents.scale right?")
    error = (model.decode(scaled, 4).clamp(-1, 1) - signal).square().mean().item()
    psnr = 10 * torch.log10(torch.tensor(4 / error)).item()
    return f"latents vary by {deviation:.2f}; images come back at {psnr:.1f} dB; sha256 {model.digest}"


def latents(preset: Preset) -> str:
    folder = Path(preset.latents.cache).expanduser()
    if not (folder / INDEX).exists():
        return f"{folder}: to be encoded (rule `latents`), {gigabytes(disk(preset)['latents'])}"
    examples(preset)
    cache = open_cache(folder)
    found = vae.load(preset.latents).digest
    if found != cache.index["vae"]:
        raise BenchError(f"{folder}: encoded by another autoencoder than {preset.latents.vae}; encode again")
    return f"{len(cache)} images in {len(cache.index['shards'])} shards, hashes as recorded"


def extractor(preset: Preset) -> str:
    return ", ".join(f"{found.name} ({found.digest[:8]}…)" for found in load_all(preset.evaluate))


def reference(preset: Preset) -> str:
    found = AdmFile(preset.evaluate.reference)
    return f"moments, and {len(found)} images for precision and recall"


def free(preset: Preset) -> str:
    needed = disk(preset)
    total = sum(needed.values())
    left = shutil.disk_usage(".").free
    parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in needed.items())
    if left < total:
        raise BenchError(f"{gigabytes(left)} free here, {gigabytes(total)} needed ({parts})")
    return f"{gigabytes(left)} free, {gigabytes(total)} needed ({parts})"


def training(preset: Preset) -> str:
    """Two steps of the last row that is trained, on latents if they are there and on noise otherwise."""
    variant = [
        found for row in preset.rows if (found := load_row(preset, *row.rsplit("/", 1))).method.training == "qat"
    ]
    if not variant:
        return "no row is trained"
    train_set = _train_set(preset)
    if preset.pretrained:
        model, _ = pretrained.load(preset.pretrained, preset.model, train_set.shape)
    else:
        model = dit.build(preset.model, train_set.shape)
    return _two_steps(preset, variant[-1], model, train_set)


def _two_steps(preset: Preset, variant: Variant, model: torch.nn.Module, train_set: Examples) -> str:
    plan = training_plan(preset, variant).model_copy(update={"steps": STEPS, "save_every": 1})
    convert(model, variant, uniform_bits(model, variant), 0)
    place = use(preset.device, plan.threads)
    model.to(place)
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        state = State(folder, "check")
        outcome = fit(model, preset, variant, plan, train_set, 0, None, state, "check", place)
        seconds = time.monotonic() - started
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.pt"))
    peak = f", {gigabytes(torch.cuda.max_memory_allocated())} at most" if place == "cuda" else ""
    release()
    losses = ", ".join(f"{value:.3f}" for value in outcome.losses)
    where = f"{variant.recipe}/{variant.name} on {describe(place)}"
    return f"{where}: losses {losses}; {seconds:.0f} s with compilation{peak}; a state is {gigabytes(size)}"


def _train_set(preset: Preset) -> Examples:
    if preset.latents is None or (Path(preset.latents.cache).expanduser() / INDEX).exists():
        return examples(preset)[0]
    shape = _shape(preset)
    signal = torch.randn(64, shape.channels, shape.size, shape.size, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(64) % shape.classes
    return Examples(signal, labels, shape, PROCESSES[preset.objective], 64, "noise")


def _shape(preset: Preset) -> dit.Shape:
    """What the model sees, without the data: presets of latents say how many classes there are."""
    if preset.latents is None:
        return examples(preset)[0].shape
    return model_shape(preset, preset.data.classes or len(listing(preset).classes))


def spread(files: tuple[Path, ...]) -> list[Path]:
    """LOOKED_AT of the files, evenly spread."""
    return [files[k * len(files) // LOOKED_AT] for k in range(LOOKED_AT)] if len(files) > LOOKED_AT else list(files)
