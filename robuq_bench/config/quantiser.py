"""A quantiser as data: which set of levels, what shares a scale, how the scale is found, what the gradient is."""

from typing import Literal

from pydantic import Field, model_validator

from robuq_bench.config.base import Model

# Which scale rules make sense for which set of levels (robuq_bench.quant.formats says what each does).
SCALES = {
    "ternary": ("conditional_mean", "least_squares", "absmean", "mean_abs", "rms"),
    "midrise": ("mean_abs", "rms", "absmax"),
    "midtread": ("mean_abs", "rms", "absmax", "absmean"),
    "asymmetric": ("minmax", "learned"),
    "lloyd_max": ("mean_abs", "rms"),
}
GAUSSIAN = ("mean_abs", "rms")
"""Scale rules that take the step from a table for normal values."""


class Quantiser(Model):
    """A quantiser as a composition: format x granularity x scale x estimator."""

    format: Literal["ternary", "midrise", "midtread", "asymmetric", "lloyd_max"] = Field(description="set of levels")
    granularity: Literal["tensor", "channel", "token", "group"] = Field(
        description="what shares one scale; group: 64 neighbouring channels of a row or token"
    )
    scale: Literal["mean_abs", "rms", "absmax", "absmean", "minmax", "conditional_mean", "least_squares", "learned"] = (
        Field(description="how the scale is found from the values; learned: calibrated, then trained")
    )
    buckets: int = Field(1, gt=0, description="scale learned: intervals of time with a range of their own")
    threshold: float = Field(0.5, gt=0, description="scale conditional_mean: ternary zero below this share of mean|w|")
    centre: bool = Field(False, description="subtract the mean of each group first and add it back")
    step: Literal["own", "midrise"] = Field(
        "own",
        description="Gaussian-optimal step of the format's own levels, or the mid-rise table whatever the levels",
    )
    stretch: float = Field(1, gt=0, description="scale mean_abs or rms: factor of the Gaussian-optimal step")
    estimator: Literal["ste", "clipped", "trust"] = Field("ste", description="gradient through rounding")
    gain: bool = Field(False, description="weights: a trained factor per layer on the quantised values, from 1")

    @model_validator(mode="after")
    def _composition(self) -> "Quantiser":
        if self.scale not in SCALES[self.format]:
            raise ValueError(
                f"format '{self.format}' takes scale {' | '.join(SCALES[self.format])}, not '{self.scale}'"
            )
        if self.scale == "learned" and (self.granularity != "tensor" or self.centre):
            raise ValueError("scale 'learned' is static: it takes granularity 'tensor' and no centring")
        if self.scale == "learned" and self.estimator != "ste":
            raise ValueError(
                f"scale 'learned' has its own gradient and knows no estimator '{self.estimator}'; "
                "take estimator 'ste', or scale 'minmax'"
            )
        if self.format == "lloyd_max" and self.estimator == "trust":
            raise ValueError("format 'lloyd_max' has no single step, so estimator 'trust' does not apply")
        self._without_effect()
        return self

    def _without_effect(self) -> None:
        """Refuses settings that this composition would silently ignore."""
        if self.step == "midrise" and (self.format != "midtread" or self.scale not in GAUSSIAN):
            raise ValueError(
                f"step 'midrise' is for format 'midtread' with scale {' | '.join(GAUSSIAN)}, "
                f"not for '{self.format}' with '{self.scale}'"
            )
        if self.stretch != 1 and self.scale not in GAUSSIAN:
            raise ValueError(
                f"stretch: scale '{self.scale}' takes its step from no table; only {' and '.join(GAUSSIAN)} do"
            )
        if self.buckets > 1 and self.scale != "learned":
            raise ValueError(f"buckets: scale '{self.scale}' has no ranges to train; only scale 'learned' has")
        if self.threshold != 0.5 and self.scale != "conditional_mean":
            raise ValueError(f"threshold: scale '{self.scale}' has its own; only scale 'conditional_mean' takes one")
