"""A preset: data set, model size and budgets. Everything a run needs that is not the method."""

import argparse
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationInfo, field_validator, model_validator

from robuq_bench.config.base import Model, build, find, override, parse_overrides, read_yaml
from robuq_bench.config.external import Anchor, Latents, Pretrained
from robuq_bench.errors import BenchError

FOLDER = Path("config")
TRAINED = ("data", "model", "objective", "latents", "pretrained", "train", "qat", "seeds")
"""What a trained model depends on."""
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
RowName = Annotated[str, StringConstraints(pattern=r"^[^/]+/W[\d.]+A\d+$")]
"""recipe/variant"""


class Data(Model):
    """Which images, and how they are split."""

    source: str = Field(description="fashion-mnist | idx | cifar10 | folder | flat | digits")
    path: str | None = Field(None, description="where the data lies; null: the packaged copy")
    size: Positive = Field(description="side of the square images, pixels")
    held_out: Positive = Field(description="images never trained on: held-out loss and real-vs-real floor")
    classes: Positive | None = Field(None, description="classes that must be there; null: those that are found")


class DiT(Model):
    """Size of the diffusion transformer (diffusers' DiTTransformer2DModel)."""

    width: Positive
    depth: Positive
    heads: Positive
    patch: Positive

    @model_validator(mode="after")
    def _divides(self) -> "DiT":
        if self.width % self.heads or self.width % 4:
            raise ValueError(
                f"width {self.width} is not a multiple of heads {self.heads} and of 4 (position embedding)"
            )
        return self


class Training(Model):
    """One training phase: AdamW, linear warm-up then cosine decay, EMA."""

    steps: Positive
    batch: Positive = Field(description="images a step, over all GPUs")
    micro_batch: Positive | None = Field(
        None, description="images a GPU takes at a time; gradients add up to `batch`; null: its whole share"
    )
    checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: less memory, a third more work"
    )
    threads: Positive = Field(description="CPU threads; fixed, because their number changes float sums")
    lr: float = Field(gt=0)
    final_lr: float = Field(0.1, ge=0, le=1, description="learning rate at the end, as a share of lr")
    warmup: int = Field(ge=0, description="steps")
    weight_decay: float = Field(0.0, ge=0)
    ema: float = Field(ge=0, lt=1, description="decay of the averaged weights that are evaluated")
    label_dropout: float = Field(0.1, ge=0, lt=1, description="share of labels replaced by 'no class' for guidance")
    grad_clip: float = Field(1.0, gt=0, description="maximal gradient norm")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the forward and backward pass; bfloat16: autocast, weights stay float32"
    )
    compile: bool = Field(False, description="torch.compile each transformer block")
    save_every: Positive = Field(description="steps between resumable states")


class Sampling(Model):
    """How images are drawn from a trained model."""

    n: Positive = Field(description="images a row")
    steps: Positive
    guidance: float = Field(ge=1, description="classifier-free guidance scale; 1: none")
    scheduler: Literal["flow_euler", "flow_heun", "ddpm", "ddim"] = "flow_euler"
    guided_channels: Positive | None = Field(
        None, description="guidance acts on the first so many channels (DiT's own code: 3 of 4); null: on all"
    )
    lane: Positive = Field(description="images computed together; fixed, so that an image never depends on the batch")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the simulated model; bfloat16: autocast, and on a GPU fused kernels in a CUDA graph"
    )
    denoiser: Literal["simulated", "deployed"] = Field(
        "simulated", description="deployed: the engine (low-bit kernels on cuda, exact integers on cpu)"
    )


class Evaluation(Model):
    """Which features score the images."""

    extractor: str = "EffNetLite0"
    weights: str | None = Field(None, description="path of the extractor's weights; null: the packaged ones")
    reference: str | None = Field(
        None, description="path of an ADM reference .npz to score against; null: made from the preset's own images"
    )
    also: tuple[str, ...] = Field((), description="further extractors, of packaged weights: second opinions")

    @field_validator("also")
    @classmethod
    def _once(cls, also: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        names = (info.data.get("extractor"), *also)
        if len(set(names)) < len(names):
            raise ValueError("an extractor is named twice")
        return also

    @property
    def names(self) -> tuple[str, ...]:
        """All extractors, the first of which ranks the rows."""
        return (self.extractor, *self.also)


class Latency(Model):
    """How the forward pass is timed."""

    batch: Positive
    repeats: Positive


class Preset(Model):
    """One scale of experiment, as in `config/*.yaml`."""

    title: str
    device: Literal["cpu", "cuda"]
    threads: Positive = Field(description="CPU threads of a sampling or scoring job")
    data: Data
    model: DiT
    objective: Literal["flow", "ddpm"] = Field(
        "flow", description="rectified flow; or DiT's: noise and learned-range variance, 1000 steps, linear betas"
    )
    latents: Latents | None = Field(None, description="train on latents of an autoencoder; null: on pixels")
    pretrained: Pretrained | None = Field(None, description="full-precision model to start from, in place of `train`")
    train: Training | None = Field(None, description="full-precision training; required without `pretrained`")
    qat: Training = Field(description="quantisation-aware training, the same for every method")
    sample: Sampling
    evaluate: Evaluation
    latency: Latency | None = Field(description="null: sizes alone are measured")
    seeds: tuple[NonNegative, ...] = Field(min_length=1, description="training seeds of the rows of this preset")
    extra_seeds: tuple[NonNegative, ...] | None = Field(
        None, min_length=1, description="of all other rows (full table, ablations); null: the same"
    )
    seeded: tuple[RowName, ...] = Field((), description="of the other rows: those that get `seeds` too")
    more_seeds: dict[RowName, tuple[NonNegative, ...]] = Field(
        default_factory=dict, description="of single rows: training seeds beyond those they have anyway"
    )
    rows: tuple[RowName, ...] = Field(min_length=1, description="recipe/variant, in table order")
    ablations: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="what `reproduce_study` ablates: ablation -> variants, in place of its own"
    )
    trained_by: str | None = Field(
        None, description="preset whose trained models are drawn from here in another way; what is not said is its"
    )
    anchors: tuple[Anchor, ...] = Field((), description="published scores of the full-precision model")

    @model_validator(mode="after")
    def _fits(self) -> "Preset":
        unit = self.model.patch * (self.latents.factor if self.latents else 1)
        if self.data.size % unit:
            of = "latents.factor x model.patch" if self.latents else "model.patch"
            raise ValueError(f"data.size {self.data.size} is not a multiple of {of} {unit}")
        if (self.train is None) == (self.pretrained is None):
            raise ValueError("train: required, unless `pretrained` names a model; then it is out of place")
        if (self.objective == "flow") != self.sample.scheduler.startswith("flow"):
            raise ValueError(f"sample.scheduler {self.sample.scheduler} does not fit objective {self.objective}")
        if self.latents and not self.evaluate.reference:
            raise ValueError("evaluate.reference: required with latents, which are no images to score against")
        # Against published moments no real images are scored.
        if not self.evaluate.reference and self.data.held_out < self.sample.n:
            raise ValueError(
                f"data.held_out {self.data.held_out} is below sample.n {self.sample.n}: the real-vs-real floor "
                "needs as many held-out images as a row has"
            )
        for name in ("rows", "seeds", "extra_seeds"):
            given = getattr(self, name) or ()
            if len(set(given)) < len(given):
                raise ValueError(f"{name}: one stands twice")
        for row in self.more_seeds:
            if len(set(given := self.seeds_of(row))) < len(given):
                raise ValueError(f"more_seeds: {row} has one of these seeds already, or it stands twice")
        return self

    @property
    def side(self) -> int:
        """Side of what the model sees: pixels, or latents."""
        return self.data.size // (self.latents.factor if self.latents else 1)

    def seeds_of(self, row: str) -> tuple[int, ...]:
        """Training seeds of "recipe/variant"."""
        all_seeds = self.extra_seeds is None or row in (*self.rows, *self.seeded)
        return (*(self.seeds if all_seeds else self.extra_seeds), *self.more_seeds.get(row, ()))


def load_preset(name: str, changes: str = "", folder: Path = FOLDER) -> Preset:
    """The preset `name` (or a path), with "key=value,..." overrides. Raises BenchError with file and key."""
    path = find(folder, "preset", name)
    raw = override(_completed(read_yaml(path), path, folder), parse_overrides(changes, where="--set"))
    return build(Preset, raw, str(path) + (f" with {changes}" if changes else ""))


def _completed(raw: dict[str, Any], path: Path, folder: Path) -> dict[str, Any]:
    """`raw`, with what it does not say taken from the preset that has trained its models."""
    trainer = raw.get("trained_by")
    if trainer is None:
        return raw
    base = read_yaml(find(folder, "preset", trainer))
    if base.get("trained_by"):
        raise BenchError(f"{path}: trained_by: '{trainer}' trains nothing itself; name '{base['trained_by']}'")
    if said := [key for key in TRAINED if key in raw]:
        raise BenchError(f"{path}: {said[0]}: is that of '{trainer}', which trains for this preset; leave it out")
    blocks = {key: base[key] | value for key, value in raw.items() if isinstance(value, dict) and key in base}
    return base | raw | blocks


def preset_arguments(parser: argparse.ArgumentParser, positional: bool = False) -> None:
    """The options by which every verb is told its preset: `load_preset(args.preset, args.set)`.

    positional: a verb that people type rather than Snakemake: `robuq-bench check paper`.
    """
    name, options = ("preset", {}) if positional else ("--preset", {"required": True})
    parser.add_argument(name, help="name in config/, or a path", **options)
    parser.add_argument(
        "--set", default="", metavar="K=V,...", help="overrides of the preset: sample.n=100,seeds=[0,1]"
    )


def schema() -> dict[str, Any]:
    """JSON schema of presets; `config/schema.json` is this, kept in step by a test."""
    return Preset.model_json_schema()
