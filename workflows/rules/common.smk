# Glue between Snakemake and the package: paths, presets, and digests that decide what must run again.
import shlex
import sys
from pathlib import Path

from robuq_bench.allocate.costs import LATENCY_TABLE
from robuq_bench.config.ablation import load_ablations
from robuq_bench.config.preset import load_preset
from robuq_bench.config.recipe import FOLDER as RECIPES
from robuq_bench.config.recipe import load_recipe, load_variant, parse_variant
from robuq_bench.errors import BenchError
from robuq_bench.provenance import code_digest
from robuq_bench.cli import VERBS

PRESET = config.get("preset", "quick")
CHANGES = str(config.get("set", "") or "")
ROW = "<results>/{preset}/{recipe}/{variant}/seed{seed}"
STATE = "state/{preset}/{recipe}/{variant}/seed{seed}"


wildcard_constraints:
    preset=r"[^/]+",
    recipe=r"[^/]+",
    variant=r"W[\d.]+A\d+",
    seed=r"\d+",


def checked(load, *arguments):
    """The value, or one line on stderr and exit: a user's mistake shows no traceback."""
    try:
        return load(*arguments)
    except BenchError as error:
        print(f"robuq-bench: {error}", file=sys.stderr)
        sys.exit(error.code)


def preset(name):
    return checked(load_preset, name, CHANGES)


def variant(wildcards):
    return checked(load_variant, wildcards.recipe, wildcards.variant)


def code(verb):
    """Digest of the modules behind a verb: editing one of them re-runs this stage and what follows."""
    return code_digest(VERBS[verb])


def settings(*blocks):
    """Params function: the blocks of the preset that a stage reads, as text."""
    return lambda wildcards: preset(wildcards.preset).model_dump_json(include=set(blocks))


def method(wildcards):
    return variant(wildcards).model_dump_json(exclude={"method": {"paper", "assumptions", "title", "citation", "url"}})


def plan(wildcards):
    """The training block that applies: full-precision training or QAT."""
    chosen = preset(wildcards.preset)
    return chosen.train if variant(wildcards).method.training == "none" else chosen.qat


def latency_table(wildcards):
    """The engine's measurements where bits are allocated by them; when there are none, the job says so."""
    plan = variant(wildcards).method.allocation
    path = Path(plan.latency_table or LATENCY_TABLE) if plan and plan.cost == "latency" else None
    return [str(path)] if path and path.exists() else []


def gpus(wildcards):
    return 1 if preset(wildcards.preset).device == "cuda" else 0


def seeds(name, recipe, variant_name):
    """Full precision is trained once; every other row once for each of its seeds."""
    chosen = checked(load_variant, recipe, variant_name)
    return preset(name).seeds_of(f"{recipe}/{variant_name}") if chosen.method.training != "none" else (0,)


def row_files(name, rows, file):
    """Paths of `file` for every seed of every "recipe/variant"."""
    return [f"<results>/{name}/{row}/seed{seed}/{file}" for row in rows for seed in seeds(name, *row.rsplit("/", 1))]


ROW_FILES = ("train.json", "packed.safetensors", "samples.npz", "metrics.json", "measure.json")


def table_rows(wildcards):
    """Rows of a table: those of the preset, or every variant of every recipe."""
    return preset(wildcards.preset).rows if wildcards.table == "table" else FULL


def table_inputs(wildcards):
    return [path for file in ROW_FILES for path in row_files(wildcards.preset, table_rows(wildcards), file)]


ABLATIONS = checked(load_ablations)


def ablation_inputs(wildcards):
    rows = [f"{recipe}/{name}" for _, recipe, name in ABLATIONS[wildcards.name].rows()]
    return [path for file in ROW_FILES for path in row_files(wildcards.preset, rows, file)]


class Unwatched:
    """A param whose change re-runs nothing: Snakemake compares plain values alone.

    Overrides of the preset reach every verb through it; what a stage reads of them is in its `settings`.
    """

    def __init__(self, text):
        self.text = text

    def __str__(self):
        return self.text


SET = Unwatched(f"--set {shlex.quote(CHANGES)}" if CHANGES else "")


def menu():
    """(target name, recipe/variant) for every variant of every recipe in baselines/."""
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    pairs = [(name, variant) for name in names for variant in checked(load_recipe, name).variants]
    return [("_".join(pair), "/".join(pair)) for pair in pairs]


FULL = sorted((row for _, row in menu()), key=lambda row: [-bits for bits in parse_variant(row.rpartition("/")[2])])
TABLES = {"index": "table", "full": "table_full"}  # page -> table
