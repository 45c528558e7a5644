"""What the engine's measurements write, as strict records: hardware rates, kernel times, whole forward passes."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from robuq_bench.config.base import Model

Unit = Literal["b1", "s8", "e4m3", "bf16"]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class Hardware(Model):
    """A GPU as it was found. Clocks in MHz and power in W are read, never set; null where no tool tells them."""

    name: str
    capability: str
    multiprocessors: int
    l2_bytes: int
    memory_bytes: int
    driver: str | None
    cuda: str
    torch: str
    triton: str | None
    max_sm_clock_mhz: float | None
    sm_clock_mhz: float | None
    memory_clock_mhz: float | None
    power_limit_w: float | None


class Rate(Model):
    """Operations a second of one tensor-core instruction, or the reason why there are none.

    threads: of the best launch's blocks, one a multiprocessor; clock_mhz: SM clock while it ran.
    """

    unit: Unit
    instruction: str
    ops_per_s: Positive | None = None
    threads: int | None = None
    clock_mhz: Positive | None = None
    reason: str = ""

    @model_validator(mode="after")
    def _says_why(self) -> "Rate":
        if (self.ops_per_s is None) != bool(self.reason):
            raise ValueError("a rate needs a number or a reason, and not both")
        return self


class Rates(Model):
    """rates.json. copy_bytes_per_s: of a large device copy, bytes read and written."""

    rates: tuple[Rate, ...]
    copy_bytes_per_s: Positive
    hardware: Hardware
    provenance: dict[str, Any]

    def best(self, unit: Unit) -> float | None:
        """Operations a second of the fastest instruction of a unit; None when the GPU has none."""
        return max((rate.ops_per_s for rate in self.rates if rate.unit == unit and rate.ops_per_s), default=None)


class Bound(Model):
    """The least time of a kernel, in µs: arithmetic at the probed rate, bytes at the speed of a copy.

    arithmetic_us is null when no rate of the unit is known.
    """

    ops: Positive | None
    bytes: Positive
    arithmetic_us: Positive | None
    bytes_us: Positive

    @property
    def us(self) -> float:
        return max(self.arithmetic_us or 0.0, self.bytes_us)

    @property
    def by(self) -> str:
        """What binds."""
        return "arithmetic" if (self.arithmetic_us or 0.0) > self.bytes_us else "bytes"


class KernelRow(Model):
    """One kernel at one shape: µs as median, p20, p80 and minimum of CUDA graph replays over `sets` sets of inputs.

    kernel: "W1.58A2", with its epilogue "W1.58A2 gelu", or a library's. A product is [m, k] x [k, n]; a row-wise
    kernel has no n; all adaLN linears together are one product. relative_error: against float64; wrong_codes:
    fraction that differs from torch in float32. over_bf16, over_fp8: that library's time over this one's.
    tile: how the product was cut.
    """

    kind: Literal["product", "row-wise", "adaln"]
    kernel: str
    size: str
    shape: str
    m: int
    k: int
    n: int | None = None
    bits: int | None = None
    unit: Unit | None = None
    us: Positive
    us_p20: Positive
    us_p80: Positive
    us_min: Positive
    sets: int
    bound: Bound
    tile: str | None = None
    relative_error: float | None = None
    wrong_codes: float | None = None
    over_bf16: Positive | None = None
    over_fp8: Positive | None = None

    @property
    def share(self) -> float:
        """Bound over measured time: 1 is as fast as the hardware allows."""
        return self.bound.us / self.us


class Missing(Model):
    """Something that was to be measured, and why it was not."""

    what: str
    reason: str


class Kernels(Model):
    """kernels.json. rates: what the bounds were computed from, probed on the same GPU."""

    rows: tuple[KernelRow, ...]
    missing: tuple[Missing, ...]
    rates: Rates
    provenance: dict[str, Any]


class Times(Model):
    """Milliseconds of one forward pass over `repeats` passes, each on inputs that the one before did not have."""

    median_ms: Positive
    p20_ms: Positive
    p80_ms: Positive
    min_ms: Positive
    repeats: int


class Check(Model):
    """Relative error (norm of the difference over norm) of the timed model's output, and what it may be.

    against: the model it was compared with.
    """

    error: float
    bound: Positive
    against: str

    @property
    def agrees(self) -> bool:
        return self.error <= self.bound


Status = Literal["ok", "disagrees", "out of memory", "not available", "failed", "not reached"]


class Forward(Model):
    """The whole denoiser by one method at one batch (images of one pass, guidance copies included).

    setup: seconds of loading, of the first pass (compilation, autotuning, graph capture) and the like, by name.
    resident_bytes: GPU memory after loading; peak_bytes: most during passes, the counter reset after loading.
    file_bytes: the packed file, or the parameters as stored in the method's type.
    """

    model: str
    method: str
    batch: int
    status: Status
    reason: str = ""
    times: Times | None = None
    check: Check | None = None
    setup: dict[str, float] = Field(default_factory=dict)
    resident_bytes: Count | None = None
    peak_bytes: Count | None = None
    file_bytes: Count | None = None
    average_bits: Positive | None = None
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _no_speed_without_agreement(self) -> "Forward":
        agrees = self.check is not None and self.check.agrees
        if (self.times is not None) != (self.status == "ok") or (self.status == "ok" and not agrees):
            raise ValueError("a speed stands only beside a check that holds")
        if self.status != "ok" and not self.reason:
            raise ValueError(f"a row that is '{self.status}' needs a reason")
        return self

    @property
    def key(self) -> tuple[str, str, int]:
        return self.model, self.method, self.batch


class ForwardTable(Model):
    """table.json. parameters: of each model as loaded here (tied embedders) and as diffusers builds it."""

    rows: tuple[Forward, ...]
    parameters: dict[str, dict[str, int]]
    hardware: Hardware
    code: str
    seconds: float
    provenance: dict[str, Any]

    def row(self, model: str, method: str, batch: int) -> Forward | None:
        return next((row for row in self.rows if row.key == (model, method, batch)), None)
