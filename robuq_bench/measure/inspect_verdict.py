"""Is the normality claim true here? Sentences made from the numbers of an inspection. Pure."""

from collections.abc import Callable, Iterator, Sequence
from statistics import median

from robuq_bench.measure.inspect_records import BITS, Activations, Layer, Row, Summary, Verdict
from robuq_bench.models.dit import layer_type

JUDGED = 2
"""Bits at which the claim is judged: the paper's lowest average width."""
NEAR = 1.1
"""A layer meets the claim when it loses at most this many times the floor of N(0, 1) to RobuQ's grid."""


def ratio(layer: Layer, activations: Activations, kind: str = "full", bits: int = JUDGED) -> float:
    """Error of RobuQ's quantiser on the layer's tokens over the floor of a uniform grid on N(0, 1)."""
    place = BITS.index(bits)
    return layer.views[kind].overall.gaussian[place] / activations.floors.uniform[place]


def near(activations: Activations, kind: str, bits: int = JUDGED) -> list[Layer]:
    """Layers that meet the claim under a rotation."""
    return [layer for layer in activations.layers if ratio(layer, activations, kind, bits) <= NEAR]


def verdict(activations: Activations, row: Row) -> Verdict:
    count, before, after = len(activations.layers), near(activations, "none"), near(activations, "full")
    answer = "does not hold"
    if len(after) == count:
        answer = "holds"
    elif len(after) > max(len(before), count / 2):
        answer = "holds in part"
    worst = max(activations.layers, key=lambda layer: ratio(layer, activations))
    headline = (
        f"The normality claim {answer} here: after rotation {len(after)} of {count} layers lose at most {NEAR:g} times "
        f"what a {JUDGED}-bit grid must lose on normal tokens; before it {len(before)} do. "
        f"Worst after rotation: {worst.name}, {ratio(worst, activations):.2f} times."
    )
    sentences = (
        *_shape(activations),
        *_types(activations),
        _widths(activations),
        _signs(activations),
        _minmax(activations),
        *_row(row),
    )
    return Verdict(answer=answer, headline=headline, sentences=sentences)


def _values(activations: Activations, kind: str, pick: Callable[[Summary], float]) -> list[float]:
    return [pick(layer.views[kind].overall) for layer in activations.layers]


def _farthest(activations: Activations, kind: str, pick: Callable[[Summary], float]) -> tuple[str, float]:
    """Layer with the largest magnitude, and its value."""
    values = _values(activations, kind, pick)
    place = max(range(len(values)), key=lambda i: abs(values[i]))
    return activations.layers[place].name, values[place]


def _shape(activations: Activations) -> Iterator[str]:
    """Kurtosis and the test of each token, before and after."""
    before, after = (median(_values(activations, kind, _kurtosis)) for kind in ("none", "full"))
    name, value = _farthest(activations, "full", _kurtosis)
    yield (
        f"The median layer's excess kurtosis goes from {before:z.2f} to {after:z.2f} (normal: 0); farthest from 0 "
        f"after rotation: {name}, {value:z.2f}."
    )
    before, after = (median(_values(activations, kind, _rejected)) for kind in ("none", "full"))
    expected = [view.overall.rejected for view in activations.controls.values()]
    name, value = _farthest(activations, "full", _rejected)
    yield (
        f"A Jarque-Bera test at 5 % rejects {before:.1%} of the median layer's tokens before rotation and {after:.1%} "
        f"after, of exactly normal ones {_span(expected)}; most after rotation: {name}, {value:.1%}."
    )


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.1%}", f"{max(values):.1%}"
    return low if low == high else f"{low} to {high}"


def _kurtosis(summary: Summary) -> float:
    return summary.kurtosis


def _rejected(summary: Summary) -> float:
    return summary.rejected


def _types(activations: Activations) -> Iterator[str]:
    """The two inputs that start farthest from a centred normal: fc2's after GELU, adaLN's after SiLU."""
    for kind, what in (("fc2", "fc2 sees GELU's output"), ("adaln", "adaLN sees SiLU of the conditioning")):
        layers = [layer for layer in activations.layers if layer_type(layer.name) == kind]
        shape = [
            (
                median(layer.views[view].overall.skewness for layer in layers),
                median(ratio(layer, activations, view) for layer in layers),
            )
            for view in ("none", "full")
        ]
        (skew, error), (rotated_skew, rotated_error) = shape
        yield (
            f"{what}: rotation takes its median skewness from {skew:z.2f} to {rotated_skew:z.2f} and its {JUDGED}-bit "
            f"error from {error:.2f} to {rotated_error:.2f} times the floor."
        )


def _widths(activations: Activations) -> str:
    """How many layers meet the claim at each width: the more bits, the harder."""
    counts = ", ".join(f"{len(near(activations, 'full', bits))} at {bits}" for bits in BITS)
    worst = max(activations.layers, key=lambda layer: ratio(layer, activations, bits=BITS[-1]))
    return (
        f"Layers within {NEAR:g} times after rotation, by bits: {counts}, of {len(activations.layers)}; worst at "
        f"{BITS[-1]} bits: {worst.name}, {ratio(worst, activations, bits=BITS[-1]):.2f} times."
    )


def _signs(activations: Activations) -> str:
    unsigned = near(activations, "unsigned")
    worst = max(activations.layers, key=lambda layer: ratio(layer, activations, "unsigned"))
    return (
        f"Without random signs {len(unsigned)} of {len(activations.layers)} layers stay within {NEAR:g} times; "
        f"worst: {worst.name}, {ratio(worst, activations, 'unsigned'):.2f} times."
    )


def _minmax(activations: Activations) -> str:
    """Where the fixed grid beats min-max on the rotated tokens, by the median layer."""
    medians = []
    for place in range(len(BITS)):
        ours, theirs = (
            median(getattr(layer.views["full"].overall, name)[place] for layer in activations.layers)
            for name in ("gaussian", "minmax")
        )
        medians.append(theirs / ours)
    ratios = ", ".join(f"{value:.2f} at {bits}" for bits, value in zip(BITS, medians, strict=True))
    won = [bits for bits, value in zip(BITS, medians, strict=True) if value > 1]
    return (
        f"Error of min-max over that of RobuQ's grid on the same rotated tokens (medians), by bits: {ratios}; "
        f"RobuQ's grid loses less {f'at {_listed(won)}' if won else 'nowhere'}."
    )


def _listed(bits: Sequence[int]) -> str:
    """ "1, 2 and 3 bits"."""
    head, last = ", ".join(map(str, bits[:-1])), str(bits[-1])
    return f"{head} and {last} bits" if head else f"{last} bit{'s' if bits[-1] > 1 else ''}"


def _row(row: Row) -> Iterator[str]:
    """What the row's weights keep and its branch carries."""
    zero, error = (median(getattr(layer, name) for layer in row.layers) for name in ("zero", "rounding_error"))
    yield (
        f"{row.title} at {row.variant}: {zero:.1%} of the median layer's weights are zero (normal weights: "
        f"{row.control.zero:.1%}), and rounding costs a relative squared error of {error:.3f} "
        f"({row.control.rounding_error:.3f})."
    )
    shares = {layer.name: layer.branch.output_share for layer in row.layers if layer.branch}
    if shares:
        largest = max(shares, key=shares.get)
        yield (
            f"Its low-rank branch carries {median(shares.values()):.0%} of the median layer's squared output, the "
            f"relative squared error that the layer would have without it; most: {largest}, {shares[largest]:.0%}."
        )
