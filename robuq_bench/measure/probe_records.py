"""What `robuq-bench probe` writes: how many images a second this GPU takes through each part of the paper's run."""

from typing import Any

from pydantic import model_validator

from robuq_bench.config.base import Model
from robuq_bench.measure.engine_records import Check, Count, Hardware, Positive, Times


class Throughput(Model):
    """One part: images a second, or the reason why there are none.

    batch: images of one call; times: of one call; peak_bytes: most GPU memory, weights included; setup: seconds until
    it was ready; check: of a model that computes otherwise than the evaluated one, without which it has no speed.
    """

    part: str
    what: str
    batch: Count | None = None
    times: Times | None = None
    peak_bytes: Count | None = None
    setup: Positive | None = None
    check: Check | None = None
    reason: str = ""

    @model_validator(mode="after")
    def _says_why(self) -> "Throughput":
        if (self.times is None) != bool(self.reason):
            raise ValueError(f"{self.part}: a throughput needs times or a reason, and not both")
        if self.times and self.check and not self.check.agrees:
            raise ValueError(f"{self.part}: a speed stands only beside a check that holds")
        return self

    @property
    def images_per_s(self) -> float | None:
        return self.batch / self.times.median_ms * 1e3 if self.times else None


class Probe(Model):
    """The JSON of `robuq-bench probe`. model: whose denoiser it was; pixels: side of the images of the other parts."""

    parts: tuple[Throughput, ...]
    model: str
    pixels: int
    hardware: Hardware
    seconds: Positive
    provenance: dict[str, Any]

    def part(self, name: str) -> Throughput | None:
        return next((part for part in self.parts if part.part == name), None)
