"""What a preset says of things that its user brings: an autoencoder, a pretrained model, published scores."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from robuq_bench.config.base import Model

Count = Annotated[int, Field(gt=0)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Pretrained(Model):
    """A full-precision DiT as diffusers saves it; it takes the place of full-precision training."""

    path: str = Field(description="folder of a DiTTransformer2DModel, or of the DiTPipeline around it")
    repository: str | None = Field(None, description="Hugging Face hub id; read by `robuq-bench fetch` alone")
    sha256: Sha256 | None = Field(None, description="of its tensors, as `robuq-bench check` prints it; null: any")


class Latents(Model):
    """The autoencoder whose latents are trained on, and where they are kept: a diffusers AutoencoderKL."""

    vae: str = Field(description="folder of the AutoencoderKL, or of a pipeline with one")
    repository: str | None = Field(None, description="Hugging Face hub id; read by `robuq-bench fetch` alone")
    sha256: Sha256 | None = Field(None, description="of its tensors, as `robuq-bench check` prints it; null: any")
    cache: str = Field(description="folder of the encoded images, written by `robuq-bench latents`")
    scale: float = Field(0.18215, gt=0, description="latents are multiplied by it, so that they vary by about 1")
    channels: Count = 4
    factor: Count = Field(8, description="pixels to one latent, along each side")
    flip: bool = Field(True, description="encode every image mirrored as well (a mirrored latent would not do)")
    shard: Count = Field(8192, description="images to a file of the cache")
    batch: Count = Field(32, description="images that the autoencoder takes at a time")


class Anchor(Model):
    """Published scores of the full-precision model under one protocol, and how far ours may lie from them."""

    source: str
    n: Count = Field(description="images scored")
    steps: Count
    guidance: float = Field(ge=1)
    scores: dict[Literal["FID", "sFID", "IS", "precision", "recall"], float] = Field(min_length=1)
    tolerance: dict[Literal["FID", "sFID", "IS", "precision", "recall"], Annotated[float, Field(gt=0)]] = Field(
        min_length=1, description="absolute; a score without one is shown and not judged"
    )
