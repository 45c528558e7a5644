"""What `robuq-bench inspect` writes: one JSON, read again by the page. Every figure in it is simulated or theory."""

from typing import Annotated, Any, Literal

from pydantic import Field

from robuq_bench.config.base import Model

BITS = (1, 2, 3, 4)
ROTATIONS = ("none", "full", "block-128", "unsigned")
"""As they come; RobuQ's full-width Hadamard with random signs; in blocks of 128; full-width without the signs."""
Rotation = Literal["none", "full", "block-128", "unsigned"]
TAIL = (0.001, 0.002, 0.005, 0.01, 0.02)
PROBABILITIES = (*TAIL, *(k / 20 for k in range(1, 20)), *(1 - p for p in reversed(TAIL)))
"""Where quantiles are taken for Q-Q plots."""

Share = Annotated[float, Field(ge=0, le=1)]
ByBits = Annotated[tuple[float, ...], Field(min_length=len(BITS), max_length=len(BITS))]


class Summary(Model):
    """Statistics of tokens [n channels each].

    kurtosis (excess), skewness: unbiased estimates per token, averaged; pooled_*: of all values together, so that
    differences in scale between tokens count. outlier: max|x| / rms of a token, averaged. rejected: share of tokens
    that a Jarque-Bera test rejects as normal at 5 %. gaussian, minmax: mean relative squared error of RobuQ's
    quantiser (mid-rise, mean-abs) and of min-max, per token, at each of BITS.
    """

    tokens: int
    kurtosis: float
    skewness: float
    pooled_kurtosis: float
    pooled_skewness: float
    outlier: float
    rejected: Share
    gaussian: ByBits
    minmax: ByBits


class View(Model):
    """One layer's inputs under one rotation. quantiles (at PROBABILITIES) and wasserstein (distance from N(0, 1)) are
    of tokens divided by their root mean square; by_time: one summary a time, in the order of `Activations.times`."""

    overall: Summary
    by_time: tuple[Summary, ...]
    quantiles: tuple[float, ...]
    wasserstein: float


class Layer(Model):
    """Inputs of one linear: rotation -> what the tokens look like under it."""

    name: str
    width: int
    views: dict[Rotation, View]


class Floors(Model):
    """Least mean squared error on N(0, 1) at each of BITS: any uniform grid, and any grid (Lloyd-Max)."""

    uniform: ByBits
    lloyd_max: ByBits


class Activations(Model):
    """Inputs of every block linear of the full-precision model. sign_seed: whose random signs rotate, those of the rows
    of that seed. controls: width -> normal tokens, measured alike."""

    images: int
    times: tuple[float, ...]
    sign_seed: int
    floors: Floors
    controls: dict[int, View]
    layers: tuple[Layer, ...]


class Branch(Model):
    """What a low-rank branch carries.

    output_share: squared output of the branch over that of the layer without bias, which is also the relative squared
    error that the layer would have without the branch; main_share: the same of the quantised product (the two need not
    add up to 1: they are not orthogonal). weight_share: squared up @ down over squared quantised weight + up @ down.
    singular_values: of up @ down.
    """

    output_share: float
    main_share: float
    weight_share: float
    singular_values: tuple[float, ...]


class RowLayer(Model):
    """One quantised linear of a row.

    bits: activation bits. minus, zero, plus: shares of weights below, at and above zero. rounding_error: relative
    squared error of the trained weight's quantisation. drift: relative squared distance of quantised weight and branch
    from the full-precision weight. activation_error: relative squared error of the row's own quantiser on its own
    inputs; None where activations are not quantised.
    """

    name: str
    bits: int
    minus: Share
    zero: Share
    plus: Share
    rounding_error: float
    drift: float
    activation_error: float | None
    branch: Branch | None


class WeightControl(Model):
    """Exactly normal weights met by the row's weight quantiser: share of zeros, relative squared error."""

    zero: Share
    rounding_error: float


class Row(Model):
    """A trained row, from its packed file. packed: SHA-256 of that file."""

    title: str
    recipe: str
    variant: str
    seed: int
    packed: str
    control: WeightControl
    layers: tuple[RowLayer, ...]


class Verdict(Model):
    """Is the normality claim true here? One answer, and the sentences with the numbers behind it."""

    answer: Literal["holds", "holds in part", "does not hold"]
    headline: str
    sentences: tuple[str, ...]


class Inspection(Model):
    """results/<preset>/inspect/<recipe>_<variant>_seed<k>.json."""

    preset: str
    title: str
    label: Literal["simulated"]
    verdict: Verdict
    activations: Activations
    row: Row
    provenance: dict[str, Any]
