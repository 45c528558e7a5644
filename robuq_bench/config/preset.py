"""A preset: data set, model size and budgets. Everything a run needs that is not the method."""

import argparse
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from robuq_bench.config.base import Model, build, find, override, parse_overrides, read_yaml

FOLDER = Path("config")
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]


class Data(Model):
    """Which images, and how they are split."""

    source: str = Field(description="fashion-mnist | idx | cifar10 | folder | digits")
    path: str | None = Field(None, description="where the data lies; null: the packaged copy")
    size: Positive = Field(description="side of the square images, pixels")
    held_out: Positive = Field(description="images never trained on: held-out loss and real-vs-real floor")


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
    """One training phase: rectified flow, AdamW, linear warm-up then cosine decay, EMA."""

    steps: Positive
    batch: Positive
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
    scheduler: Literal["flow_euler", "flow_heun"] = "flow_euler"
    lane: Positive = Field(description="images computed together; fixed, so that an image never depends on the batch")
    denoiser: Literal["simulated", "deployed"] = Field(
        "simulated", description="deployed: the engine (low-bit kernels on cuda, exact integers on cpu)"
    )


class Evaluation(Model):
    """Which features score the images."""

    extractor: str = "EffNetLite0"
    weights: str | None = Field(None, description="path of the extractor's weights; null: the packaged ones")


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
    train: Training = Field(description="full-precision training")
    qat: Training = Field(description="quantisation-aware training, the same for every method")
    sample: Sampling
    evaluate: Evaluation
    latency: Latency
    seeds: tuple[NonNegative, ...] = Field(min_length=1, description="training seeds of the rows of this preset")
    extra_seeds: tuple[NonNegative, ...] | None = Field(
        None, min_length=1, description="of all other rows (full table, ablations); null: the same"
    )
    rows: tuple[Annotated[str, StringConstraints(pattern=r"^[^/]+/W[\d.]+A\d+$")], ...] = Field(
        min_length=1, description="recipe/variant, in table order"
    )

    @model_validator(mode="after")
    def _fits(self) -> "Preset":
        if self.data.size % self.model.patch:
            raise ValueError(f"data.size {self.data.size} is not a multiple of model.patch {self.model.patch}")
        if self.data.held_out < self.sample.n:
            raise ValueError(
                f"data.held_out {self.data.held_out} is below sample.n {self.sample.n}: the real-vs-real floor "
                "needs as many held-out images as a row has"
            )
        for name in ("rows", "seeds", "extra_seeds"):
            given = getattr(self, name) or ()
            if len(set(given)) < len(given):
                raise ValueError(f"{name}: one stands twice")
        return self

    def seeds_of(self, row: str) -> tuple[int, ...]:
        """Training seeds of "recipe/variant"."""
        return self.seeds if row in self.rows or self.extra_seeds is None else self.extra_seeds


def load_preset(name: str, changes: str = "", folder: Path = FOLDER) -> Preset:
    """The preset `name` (or a path), with "key=value,..." overrides. Raises BenchError with file and key."""
    path = find(folder, "preset", name)
    raw = override(read_yaml(path), parse_overrides(changes, where="--set"))
    return build(Preset, raw, str(path) + (f" with {changes}" if changes else ""))


def preset_arguments(parser: argparse.ArgumentParser) -> None:
    """The options by which every verb is told its preset: `load_preset(args.preset, args.set)`."""
    parser.add_argument("--preset", required=True, help="name in config/, or a path")
    parser.add_argument(
        "--set", default="", metavar="K=V,...", help="overrides of the preset: sample.n=100,seeds=[0,1]"
    )


def schema() -> dict[str, Any]:
    """JSON schema of presets; `config/schema.json` is this, kept in step by a test."""
    return Preset.model_json_schema()
