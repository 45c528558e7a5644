"""The activation bits that `robuq-bench allocate` chose, checked against the model they are for."""

from pathlib import Path

from robuq_bench.config.recipe import Variant
from robuq_bench.errors import BenchError, Diverged
from robuq_bench.files import read_json
from robuq_bench.models.dit import layer_type


def check_wanted(variant: Variant, path: Path | None) -> None:
    """Raises BenchError unless a file of bits is given exactly when the variant allocates."""
    if (variant.method.allocation is None) == (path is None):
        return
    needs = "has uniform bits, so --bits is out of place"
    if path is None:
        needs = "allocates bits per layer: it needs --bits, a file that `robuq-bench allocate` writes"
    raise BenchError(f"recipe '{variant.recipe}' at {variant.name} {needs}")


def check_profiled(path: Path | None) -> None:
    """Raises Diverged, with its reason, when the profile behind the file of bits diverged."""
    record = read_json(path) if path else {}
    if record.get("status") == "diverged":
        raise Diverged(record.get("reason") or f"{path}: the profile diverged")


def read_bits(path: Path, variant: Variant, uniform: dict[str, int]) -> dict[str, int]:
    """Bits of every linear from `bits.json`. `uniform`: what they would be without it, by layer name.

    Those of a diverged profile are `uniform`: nothing is trained with them (`check_profiled`). Raises BenchError when
    the file is for another variant, leaves out a layer, or gives one a width that the recipe does not allow.
    """
    record = read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("bits"), dict):
        raise BenchError(f"{path}: holds no 'bits'; make it with `robuq-bench allocate`")
    if record.get("variant") != variant.name:
        raise BenchError(f"{path}: holds the bits of {record.get('variant')}, not of {variant.name}; allocate again")
    if record.get("status") == "diverged":
        return uniform
    bits = record["bits"]
    for name in sorted(uniform.keys() | bits.keys()):
        if name not in bits or name not in uniform:
            what = "lacks layer" if name in uniform else "knows a layer that this model lacks:"
            raise BenchError(f"{path}: {what} '{name}'; allocate again with a profile of this preset")
        allowed = (uniform[name],) if layer_type(name) == "adaln" else variant.method.allocation.candidates
        if bits[name] not in allowed or type(bits[name]) is not int:
            widths = ", ".join(map(str, allowed))
            raise BenchError(f"{path}: layer '{name}' has {bits[name]!r} bits; this recipe allows {widths}")
    return {name: bits[name] for name in uniform}
