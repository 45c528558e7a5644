"""What a preset costs on GPUs: hours, memory and disk, computed from the throughput of a probe. Pure."""

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from robuq_bench.config.preset import DiT, Preset, Training
from robuq_bench.config.recipe import Variant
from robuq_bench.config.row import training_plan
from robuq_bench.errors import BenchError
from robuq_bench.measure.engine_methods import SIZES
from robuq_bench.measure.probe_records import Probe, Throughput
from robuq_bench.models import dit
from robuq_bench.models.dit import Shape

IMAGENET = 1_281_167
STATE_BYTES = 20  # of a parameter in training: weight 4, gradient 4, AdamW 8, average 4
RESUME_BYTES = 16  # the same on disk, without gradients
EFFICIENCY = 0.9  # of several GPUs on one job, each with images of its own
IN_TRAINING = 0.6  # of two H100s that share steps, 16 images of XL/2 each (docs/training-cost.md)
TEACHER = 1 / 3  # of a full-precision step: its forward pass
RECOMPUTED = 4 / 3  # a step that recomputes activations over one that keeps them
PROFILE_IMAGES = 512  # that AMPN looks at, once for every layer and width
SIDE_CHANNELS = 0.4  # bits a weight of what a packed file holds beside codes: branch, scales, embedders
FULL, QUANTISED = "train full precision", "train quantised"
EXTRACTORS = {"EffNetLite0": "EffNetLite0", "EffNetLite2": "EffNetLite2", "Inception": "Inception"}
"""Extractor of a preset -> the probe's name for it."""


@dataclass(frozen=True)
class Job:
    """The work of one row (or of what comes before the rows). hours: GPU-hours of one seed, by stage.

    memory: bytes on a GPU in its hungriest stage; disk: bytes of all seeds.
    """

    name: str
    seeds: int
    hours: dict[str, float]
    memory: float
    disk: float

    @property
    def each(self) -> float:
        """GPU-hours of one seed."""
        return sum(self.hours.values())

    @property
    def total(self) -> float:
        return self.each * self.seeds


@dataclass(frozen=True)
class Plan:
    """first: what all rows wait for. left_out: stages without a figure. assumptions: all that the numbers rest on."""

    first: tuple[Job, ...]
    rows: tuple[Job, ...]
    gpus: int
    assumptions: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def hours(self) -> float:
        return sum(job.total for job in (*self.first, *self.rows))

    @property
    def disk(self) -> float:
        return sum(job.disk for job in (*self.first, *self.rows))

    @property
    def memory(self) -> float:
        return max(job.memory for job in (*self.first, *self.rows))

    @property
    def apart(self) -> float:
        """Hours on the clock when every job has a GPU to itself, the longest first, after what all wait for."""
        jobs = [job.each for job in self.rows for _ in range(job.seeds)]
        return sum(job.total for job in self.first) + makespan(jobs, self.gpus)

    @property
    def together(self) -> float:
        """Hours on the clock when all GPUs share each job in turn."""
        if self.gpus == 1:
            return self.hours
        training = sum(job.hours.get("train", 0.0) * job.seeds for job in (*self.first, *self.rows))
        return (training / IN_TRAINING + (self.hours - training) / EFFICIENCY) / self.gpus


def makespan(jobs: Sequence[float], machines: int) -> float:
    """When the last of `jobs` ends: the longest first, each on the machine that is free first (Graham 1969)."""
    free = [0.0] * machines
    for job in sorted(jobs, reverse=True):
        heapq.heapreplace(free, free[0] + job)
    return max(free)


def work(model: DiT, side: int) -> float:
    """Multiply-accumulates of one image's forward pass: block linears, attention, adaLN; embedders left out."""
    tokens = (side // model.patch) ** 2
    block = tokens * 12 * model.width**2 + 2 * tokens**2 * model.width + 6 * model.width**2
    return float(model.depth * block)


@dataclass(frozen=True)
class StepRatio:
    """Time of a quantised training step over a full-precision one; `source`: of which model, on what, in which file."""

    value: float
    source: str


@dataclass
class Estimate:
    """Turns images into seconds and bytes for one preset. `left_out` grows with stages that have no figure.

    ratio_of_steps: stands in for a probe that has not timed a quantised step; `assumed` says so once it was used.
    """

    preset: Preset
    probe: Probe
    gpus: int
    images: int
    ratio_of_steps: StepRatio | None = None
    left_out: dict[str, None] = field(default_factory=dict)
    assumed: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        preset, known = self.preset, SIZES[self.probe.model]
        side = self.probe.pixels // 8  # the probe's denoiser works on latents
        self.ratio = work(preset.model, preset.side) / work(known, side)
        channels = preset.latents.channels if preset.latents else 3
        shape = Shape(preset.side, channels, preset.data.classes or 10, preset.objective == "ddpm")
        self.parameters = _parameters(preset.model, shape)
        self.known_parameters = _parameters(known, Shape(side, 4, 1000))
        tokens = (preset.side // preset.model.patch) ** 2
        values = preset.model.depth * tokens * preset.model.width
        self.values_ratio = values / (known.depth * (side // known.patch) ** 2 * known.width)

    def hours(self, part: str, images: float, scale: float) -> float:
        """GPU-hours of `images` images through a part that costs `scale` times the probed one."""
        return images * scale / self._speed(part) / 3600

    def quantised_steps(self, images: float, scale: float) -> float:
        """GPU-hours of `images` images through quantised training, by the probe or else by full precision's time."""
        try:
            return self.hours(QUANTISED, images, scale)
        except BenchError:
            if self.ratio_of_steps is None:
                raise
        ratio, part = self.ratio_of_steps, self.probe.part(QUANTISED)
        reason = f" ({part.reason})" if part else ""
        self.assumed[
            f"NOT MEASURED: the probe has no time for '{QUANTISED}'{reason}; a quantised step is taken to last "
            f"{ratio.value:.2f} times a full-precision one, which was measured apart from it ({ratio.source})"
        ] = None
        return self.hours(FULL, images, scale * ratio.value)

    def optional(self, part: str, images: float, scale: float) -> float:
        """The same; without a figure it is left out, and said to be."""
        try:
            return self.hours(part, images, scale)
        except BenchError as error:
            self.left_out[str(error)] = None
            return 0.0

    def _speed(self, part: str) -> float:
        return self._part(part).images_per_s

    def _part(self, name: str, what: str = "times") -> Throughput:
        part = self.probe.part(name)
        if part is None or getattr(part, what) is None:
            reason = f" ({part.reason})" if part else ""
            raise BenchError(f"the throughput file has no figure for '{name}'{reason}; run `robuq-bench probe` again")
        return part

    def training_memory(self, part: str, plan: Training) -> float:
        """Bytes on each GPU: state by parameters, activations by images, tokens and width."""
        probed = self._part(part, "peak_bytes")
        activations = max(probed.peak_bytes - STATE_BYTES * self.known_parameters, 0) / probed.batch * self.values_ratio
        if plan.checkpointing:  # one block whole, of the others their inputs
            activations /= self.preset.model.depth / 2
        own = plan.micro_batch or math.ceil(plan.batch / self.gpus)
        return STATE_BYTES * self.parameters + activations * own

    def sampling_memory(self, part: str) -> float:
        probed, plan = self._part(part), self.preset.sample
        passes = plan.lane * (2 if plan.guidance > 1 else 1)
        weights = min(4 * self.known_parameters, probed.peak_bytes)
        activations = (probed.peak_bytes - weights) / probed.batch * self.values_ratio
        return weights * self.parameters / self.known_parameters + activations * passes


def _parameters(model: DiT, shape: Shape) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in dit.build(model, shape).parameters())


def make(
    preset: Preset,
    variants: Sequence[Variant],
    probe: Probe,
    gpus: int,
    images: int = IMAGENET,
    ratio: StepRatio | None = None,
) -> Plan:
    """The plan of a preset on `gpus` of the probe's GPU. variants: of `preset.rows`; images: to encode, with latents;
    ratio: of training steps, should the probe lack the quantised one.

    Raises BenchError when the probe lacks a figure that training or sampling needs.
    """
    estimate = Estimate(preset, probe, gpus, images, ratio)
    first, rows = list(_first(estimate)), []
    for variant in variants:
        row = f"{variant.recipe}/{variant.name}"
        seeds = len(preset.seeds_of(row)) if variant.method.training != "none" else 1
        rows.append(_row(estimate, row, variant, seeds))
    assumptions = (*estimate.assumed, *_assumptions(estimate))
    return Plan(tuple(first), tuple(rows), gpus, assumptions, tuple(estimate.left_out))


def _first(estimate: Estimate) -> Iterator[Job]:
    preset = estimate.preset
    if latents := preset.latents:
        orientations = 2 if latents.flip else 1
        scale = (preset.data.size / estimate.probe.pixels) ** 2
        hours = {"encode": estimate.hours("encode latents", orientations * estimate.images, scale)}
        encoder = estimate._part("encode latents")
        disk = estimate.images * orientations * latents.channels * preset.side**2 * 2
        yield Job("latents", 1, hours, encoder.peak_bytes * scale * latents.batch / encoder.batch, disk)
    if plan := preset.train:
        hours = {"train": estimate.hours(FULL, *_training(estimate, plan))}
        disk = (4 + RESUME_BYTES) * estimate.parameters
        yield Job("full-precision training", 1, hours, estimate.training_memory(FULL, plan), disk)
    if not preset.latents:
        hours = {"score": _scoring(estimate, preset.data.held_out)}
        yield Job("reference", 1, hours, 0.0, preset.data.held_out * 4 * 4096)


def _training(estimate: Estimate, plan: Training) -> tuple[float, float]:
    """Images of a training, and what one costs against one of the probed model's."""
    return plan.steps * plan.batch, estimate.ratio * (RECOMPUTED if plan.checkpointing else 1)


def _row(estimate: Estimate, row: str, variant: Variant, seeds: int) -> Job:
    preset, method, hours = estimate.preset, variant.method, {}
    plain = method.training == "none"
    simulated = f"denoise {'full precision' if plain else 'simulated'} {preset.sample.precision}"
    denoiser = "denoise deployed" if preset.sample.denoiser == "deployed" and not plain else simulated
    memory, disk = estimate.sampling_memory(denoiser), _sample_bytes(preset)
    stored = 1.6 if variant.weight_bits == 1.58 else variant.weight_bits
    disk += estimate.parameters * (stored + SIDE_CHANNELS) / 8
    if method.training == "qat":
        plan = training_plan(preset, variant)
        hours["train"] = estimate.quantised_steps(*_training(estimate, plan))
        if method.loss == "distil":
            hours["train"] += TEACHER * estimate.hours(FULL, *_training(estimate, plan))
        if method.allocation:
            hours["allocate"] = _allocation(estimate, variant)
        memory = max(memory, estimate.training_memory(QUANTISED, plan))
        disk += (4 + RESUME_BYTES) * estimate.parameters
    hours["sample"] = estimate.hours(denoiser, preset.sample.n * _passes(preset), estimate.ratio)
    if preset.latents:
        scale = (preset.data.size / estimate.probe.pixels) ** 2
        hours["sample"] += estimate.hours("decode latents", preset.sample.n, scale)
    hours["score"] = _scoring(estimate, preset.sample.n)
    return Job(row, seeds, hours, memory, disk * seeds)


def _passes(preset: Preset) -> float:
    """Forward passes to draw one image: guidance doubles them, Heun's method takes two but for the last step."""
    plan = preset.sample
    steps = 2 * plan.steps - 1 if plan.scheduler == "flow_heun" else plan.steps
    return steps * (2 if plan.guidance > 1 else 1)


def _allocation(estimate: Estimate, variant: Variant) -> float:
    plan, preset = variant.method.allocation, estimate.preset
    steps = estimate.quantised_steps(plan.profile_steps * preset.qat.batch, estimate.ratio)
    looks = 4 * preset.model.depth * (len(plan.candidates) - 1) + 1
    return steps + estimate.hours("denoise simulated float32", looks * PROFILE_IMAGES, estimate.ratio)


def _scoring(estimate: Estimate, images: int) -> float:
    hours = 0.0
    for name in estimate.preset.evaluate.names:
        if name in EXTRACTORS:
            hours += estimate.optional(f"features {EXTRACTORS[name]}", images, 1.0)
        else:
            estimate.left_out[f"scoring with {name}: the probe does not time it"] = None
    return hours


def _sample_bytes(preset: Preset) -> float:
    return preset.sample.n * preset.data.size**2 * 3


def _assumptions(estimate: Estimate) -> Iterator[str]:
    preset, probe = estimate.preset, estimate.probe
    gpu = probe.hardware
    yield (
        f"throughput of random weights on one {gpu.name} ({gpu.memory_bytes / 2**30:.0f} GiB), probed "
        f"{probe.provenance['time'][:10]}"
    )
    yield (
        f"the model ({estimate.parameters / 1e6:.0f} M parameters) takes {estimate.ratio:.3g} times the operations of "
        f"DiT-{probe.model} at {probe.pixels}x{probe.pixels} and as many times its time; small ones are less efficient"
    )
    yield (
        "every quantised method trains as fast as RobuQ W1.58A2 with uniform bits, though those outside the fused "
        "kernels (static ranges, smoothing, groups) take longer; calibration takes no time"
    )
    if any(plan and plan.checkpointing for plan in (preset.train, preset.qat)):
        yield "recomputing activations costs a third more time"
    yield f"AMPN looks at {PROFILE_IMAGES} images once for every layer and width beside its own"
    if preset.sample.denoiser == "deployed":
        yield "the engine draws every quantised row"
    yield (
        f"training memory: {STATE_BYTES} bytes a parameter (weight, gradient, AdamW, average) and activations as "
        "probed, by image, token, width and depth"
    )
    if preset.latents:
        images, flips = estimate.images, ", each also mirrored" if preset.latents.flip else ""
        yield f"{images:,} images to encode (--images){flips}; float16 on disk, photographs not counted"
    yield "disk: a checkpoint (4 bytes a parameter), a resumable state (16), a packed file, samples as pixels, per seed"
    yield "nothing is lost to queues, start-up, compilation (about a minute a job) and loading"
    if estimate.gpus > 1:
        yield (
            f"several GPUs on one job reach {IN_TRAINING:.0%} of their sum in training (two H100s, 16 images of "
            f"DiT-XL/2 each; less with fewer) and {EFFICIENCY:.0%} elsewhere"
        )
