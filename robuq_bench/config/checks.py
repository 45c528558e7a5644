"""Which parts of a recipe go together: ValueErrors for what cannot run, or would run without a part of it."""

from typing import TYPE_CHECKING

from robuq_bench.config.quantiser import Quantiser

if TYPE_CHECKING:
    from robuq_bench.config.recipe import Allocation, Recipe

LLOYD_MAX_BITS = 4  # the widest table of levels
PARTS = ("rotation", "low_rank", "smoothing", "adaln", "allocation", "attention_bits", "phases")  # of quantised models


def check_parts(method: "Recipe") -> None:
    """What holds at every bit setting. Raises ValueError for a combination that the code cannot run, or would run
    without a part of it."""
    if method.training == "none":
        _check_untouched(method)
        return
    _check_quantisers(method)
    _check_training(method)
    _check_branch(method)
    _check_layers(method)
    if method.allocation:
        _check_allocation(method, method.allocation)


def check_bits(method: "Recipe", name: str, weight_bits: float, activation_bits: int) -> None:
    """What depends on the bits of the variant `name`. Raises ValueError."""
    ternary = method.weight is not None and method.weight.format == "ternary"
    if method.training != "none" and ternary != (weight_bits == 1.58):
        raise ValueError("weight.format 'ternary' goes with W1.58 and no other weight bits")
    if (activation_bits == 32) != (method.activation is None):
        raise ValueError("activation must be null exactly when the variant says A32")
    if (weight_bits == 32) != (method.weight is None):
        raise ValueError("weight must be null exactly when the variant says W32")
    adaln = method.adaln.activation_bits if method.adaln else 32
    if method.activation is None and adaln != 32:
        raise ValueError(f"adaln.activation_bits {adaln} needs an activation quantiser; at A32 it must be 32")
    widths = method.allocation.candidates if method.allocation else (activation_bits,)
    _check_levels("weight", method.weight, (weight_bits,))
    warm = method.schedule.warm_bits or 32
    _check_levels("activation", method.activation, (*widths, adaln, warm))
    if method.allocation:
        _check_budget(name, activation_bits, widths)


def _check_untouched(method: "Recipe") -> None:
    if method.weight or method.activation:
        raise ValueError("training 'none' takes no weight or activation quantiser")
    if unused := [name for name in PARTS if getattr(method, name)] + ["schedule"] * (not method.schedule.plain):
        raise ValueError(
            f"training 'none' is full precision and takes no {unused[0]}; leave it out, or take training 'qat'"
        )


def _check_quantisers(method: "Recipe") -> None:
    weight, activation = method.weight, method.activation
    if not weight:
        raise ValueError(f"training '{method.training}' needs a weight quantiser")
    if weight.granularity == "token":
        raise ValueError("weight.granularity: weights have no tokens; allowed: tensor, channel, group")
    if weight.scale == "learned":
        raise ValueError("weight.scale: 'learned' is for activations; weights take gain: true")
    if not activation:
        return
    if activation.format == "ternary":
        raise ValueError(
            "activation.format: 'ternary' is for weights; allowed: midrise, midtread, asymmetric, lloyd_max"
        )
    if activation.granularity == "channel":
        raise ValueError("activation.granularity: allowed: tensor, token, group")
    if activation.gain:
        raise ValueError("activation.gain: only weights take a trained gain")


def _check_training(method: "Recipe") -> None:
    if method.training == "ptq":
        trained = {
            "phases": method.phases,
            "loss 'distil'": method.loss != "flow",
            "weight.gain": method.weight.gain,
            "schedule": not method.schedule.plain,
        }
        if without := [name for name, wanted in trained.items() if wanted]:
            raise ValueError(f"training 'ptq' trains nothing, so {without[0]} has no effect; take training 'qat'")
    if method.distil_share != 1 and method.loss != "distil":
        raise ValueError("distil_share: loss 'flow' has no teacher; take loss 'distil'")
    if method.schedule.warm_bits and (method.activation is None or method.activation.scale == "learned"):
        raise ValueError("schedule.warm_bits: needs an activation quantiser whose scale is not 'learned'")
    if method.phases and abs(sum(phase.share for phase in method.phases) - 1) > 1e-9:
        raise ValueError("phases: the shares must add up to 1")


def _check_branch(method: "Recipe") -> None:
    branch = method.low_rank
    if branch is None or branch.init != "zero":
        return
    if branch.of == "error":
        raise ValueError("low_rank.of: a branch with init 'zero' approximates nothing; take init 'svd'")
    if method.training == "ptq":
        raise ValueError("low_rank.init: 'zero' stays zero without training; take init 'svd'")


def _check_layers(method: "Recipe") -> None:
    """A list of layers must name one that is quantised, which adaLN is only when `adaln` is set."""
    if method.rotation and method.adaln is None and set(method.rotation.layers) == {"adaln"}:
        raise ValueError(
            "rotation.layers: adaln matches no quantised layer, as the recipe has adaln: null; "
            "set adaln.activation_bits, or name qkv, proj, fc1 or fc2"
        )


def _check_allocation(method: "Recipe", allocation: "Allocation") -> None:
    if method.training != "qat" or not method.activation:
        raise ValueError("allocation chooses activation bits: it needs training 'qat' and an activation quantiser")
    if method.activation.scale == "learned":
        raise ValueError("allocation: scale 'learned' is calibrated for one width; choose a dynamic scale")
    if allocation.cost == "latency" and method.weight.format != "ternary":
        raise ValueError("allocation.cost: 'latency' is measured for ternary weights alone; use macs")


def _check_levels(name: str, quantiser: Quantiser | None, widths: tuple[float, ...]) -> None:
    """Raises ValueError when the format has no levels for one of the `widths`."""
    if quantiser is None:
        return
    form, widths = quantiser.format, [bits for bits in widths if bits != 32]
    if form == "lloyd_max" and max(widths) > LLOYD_MAX_BITS:
        raise ValueError(f"{name}.format 'lloyd_max' has levels for 1 to {LLOYD_MAX_BITS} bits, not {max(widths):g}")
    if min(widths) == 1 and form != "midrise":
        raise ValueError(f"{name}.format '{form}' has no 1-bit levels; take format 'midrise', or leave out the 1")


def _check_budget(name: str, bits: int, candidates: tuple[int, ...]) -> None:
    """The variant's activation bits are the budget: some candidate must be within it, and one at or above it."""
    if candidates[0] > bits:
        raise ValueError(
            f"allocation.candidates {list(candidates)}: no choice averages {bits} bits, as {name} asks: all are above; "
            f"add a width of at most {bits}, such as {_joined(bits, candidates)}"
        )
    if candidates[-1] < bits:
        raise ValueError(
            f"allocation.candidates {list(candidates)}: no choice averages {bits} bits, as {name} asks: all are below; "
            f"add a width of at least {bits}, such as {_joined(bits, candidates)}"
        )


def _joined(bits: int, candidates: tuple[int, ...]) -> str:
    return "+".join(map(str, sorted({bits, *candidates})))
