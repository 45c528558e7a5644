"""Choose the activation bits of every layer: the exact least sum of sensitivities within the bit budget."""

import argparse
from pathlib import Path

from robuq_bench import provenance
from robuq_bench.allocate.allocation import Profile, allocate
from robuq_bench.allocate.costs import read_latency_table
from robuq_bench.config.base import build
from robuq_bench.config.recipe import Variant, load_variant
from robuq_bench.errors import BenchError
from robuq_bench.files import read_json, sha256_file, write_json

EXAMPLE = "robuq-bench allocate --recipe robuq --variant W1.58A2 --profile profile.json --bits bits.json"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", required=True, help="with overrides: robuq,allocation.cost=average_bits")
    parser.add_argument("--variant", required=True, help="such as W1.58A2: its activation bits are the budget")
    parser.add_argument("--profile", type=Path, required=True, help="what `robuq-bench profile` wrote")
    parser.add_argument("--bits", type=Path, required=True, help="JSON to write: bits per layer, Pareto front")


def run(args: argparse.Namespace) -> None:
    variant = allocating(load_variant(args.recipe, args.variant))
    profile = build(Profile, read_json(args.profile), str(args.profile))
    plan = variant.method.allocation
    table = read_latency_table(plan.latency_table) if plan.cost == "latency" else None
    found = {"bits": {}}  # of a diverged profile: the mark travels on, so that the table can show the row
    if profile.status == "ok":
        found = allocate(profile, variant, table)
    record = {
        "status": profile.status,
        "reason": profile.reason,
        "recipe": args.recipe,
        "variant": args.variant,
        "profile": sha256_file(args.profile),
        "provenance": provenance.collect(),
    }
    write_json(args.bits, found | record)


def allocating(variant: Variant) -> Variant:
    """The variant, which must allocate. Raises BenchError when it has uniform bits."""
    if variant.method.allocation is None:
        where = f"recipe '{variant.recipe}' at {variant.name}"
        raise BenchError(f"{where} has uniform bits (allocation: null): nothing to allocate")
    return variant
