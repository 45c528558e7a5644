# Glue between Snakemake and the package: paths, presets, and digests that decide what must run again.
import os
import shlex
import sys
from functools import cache
from pathlib import Path

from robuq_bench.allocate.ablations import for_preset, study_rows
from robuq_bench.allocate.allocation import check_priced
from robuq_bench.allocate.costs import latency_path
from robuq_bench.config.ablation import EXAMPLE, load_ablations, parse_sweep
from robuq_bench.config.preset import load_preset
from robuq_bench.config.recipe import FOLDER as RECIPES
from robuq_bench.config.recipe import full_rows, load_recipe, load_variant
from robuq_bench.config.row import load_row, training_plan
from robuq_bench.errors import BenchError
from robuq_bench.files import existing, sha256_file
from robuq_bench.provenance import code_digest
from robuq_bench.cli import VERBS

PRESET = config.get("preset", "quick")
CHANGES = str(config.get("set", "") or "")
SWEEP = str(config.get("sweep", "") or "")
for option in ("gpus", "jobs_per_gpu"):  # see robuq_bench.devices
    if option in config:
        os.environ[f"ROBUQ_BENCH_{option.upper()}"] = str(config[option])
DEVICES_PER_JOB = int(config.get("devices_per_job", 1))  # processes that share a training, sampling or encoding job
ROW = "<results>/{preset}/{recipe}/{variant}/seed{seed}"
STATES = config.get("state", "state")  # where cut runs go on; on a cluster without a shared folder, a mounted volume
STATE = f"{STATES}/{{preset}}/{{recipe}}/{{variant}}/seed{{seed}}"

MANY = 10_000  # above so many images features are kept on disk: memory stays bounded, and a cut run goes on


wildcard_constraints:
    preset=r"(?!engine/)[^/]+",  # results/engine is no preset's
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


@cache
def preset(name):
    return checked(load_preset, name, CHANGES)


@cache
def known_row(name, recipe, variant_name):
    """A row of the preset `name`, looked up once: a study has hundreds of jobs."""
    return checked(load_row, preset(name), recipe, variant_name)


def variant(wildcards):
    return known_row(wildcards.preset, wildcards.recipe, wildcards.variant)


@cache
def code(verb):
    """Digest of the modules behind a verb: editing one of them re-runs this stage and what follows."""
    return code_digest(VERBS[verb])


def settings(*blocks):
    """Params function: the blocks of the preset that a stage reads, as text."""
    return lambda wildcards: preset(wildcards.preset).model_dump_json(include=set(blocks))


def method(wildcards):
    return variant(wildcards).model_dump_json(exclude={"method": {"paper", "assumptions", "title", "citation", "url"}})


def plan(wildcards):
    """The training block that applies: full-precision training, or QAT with the recipe's schedule."""
    return training_plan(preset(wildcards.preset), variant(wildcards))


def latency_table(wildcards):
    """The engine's measurements where bits are allocated by them; refused here when they lack a layer of the model."""
    chosen = variant(wildcards)
    plan = chosen.method.allocation
    if plan:
        checked(check_priced, preset(wildcards.preset), chosen)
    return [str(latency_path(plan.latency_table))] if plan and plan.cost == "latency" else []


ENGINE_FILES = ("kernels.json", "table.json")


def engine_results():
    """Folder of the measurements that the engine's page shows: this machine's when they are whole."""
    own, committed = Path("results/engine"), Path("results/reference/engine")
    return own if all((own / name).exists() for name in ENGINE_FILES) else committed


def gpus(wildcards):
    return 1 if preset(wildcards.preset).device == "cuda" else 0


def shared_gpus(wildcards):
    """GPUs of a job that several processes share."""
    return DEVICES_PER_JOB * gpus(wildcards)


def latents(wildcards):
    """The record of the encoded images, where the preset trains on latents."""
    return [f"<results>/{wildcards.preset}/latents.json"] if preset(wildcards.preset).latents else []


def adm_reference(wildcards):
    """The ADM file to score against, where the preset names one."""
    path = preset(wildcards.preset).evaluate.reference
    # Snakemake would take scores against another reference for up to date when this one is missing.
    return [str(checked(existing, path, "reference"))] if path else []


def many(wildcards):
    return preset(wildcards.preset).sample.n > MANY


def seeds(name, recipe, variant_name):
    """Full precision is trained once; every other row once for each of its seeds."""
    chosen = known_row(name, recipe, variant_name)
    return preset(name).seeds_of(f"{recipe}/{variant_name}") if chosen.method.training != "none" else (0,)


def row_files(name, rows, file):
    """Paths of `file` for every seed of every "recipe/variant"."""
    return [f"<results>/{name}/{row}/seed{seed}/{file}" for row in rows for seed in seeds(name, *row.rsplit("/", 1))]


def scored(rows):
    """What rows run by name make. Looked at when asked for: a preset need not fit the other rows."""
    return row_files(PRESET, rows, "metrics.json") + row_files(PRESET, rows, "measure.json")


ROW_FILES = ("train.json", "packed.safetensors", "samples.npz", "metrics.json", "measure.json")


def table_rows(wildcards):
    """Rows of a table: those of the preset, or every variant of every recipe."""
    return preset(wildcards.preset).rows if wildcards.table == "table" else FULL


def table_inputs(wildcards):
    return [path for file in ROW_FILES for path in row_files(wildcards.preset, table_rows(wildcards), file)]


ABLATIONS = checked(load_ablations)
SWEPT, SWEEP_PLAN = checked(parse_sweep, SWEEP) if SWEEP else ("sweep", None)
COLLECTED = ABLATIONS | ({SWEPT: SWEEP_PLAN} if SWEEP else {})  # by the rule `ablate`


def fitting(wildcards):
    """What the preset runs of the ablation, or sweep, of that name."""
    return checked(for_preset, preset(wildcards.preset), wildcards.name, COLLECTED[wildcards.name])[0]


def ablation_inputs(wildcards):
    rows = [f"{recipe}/{name}" for _, recipe, name in fitting(wildcards).rows()]
    return [path for file in ROW_FILES for path in row_files(wildcards.preset, rows, file)]


def study_plan(wildcards):
    return checked(study_rows, preset(wildcards.preset), ABLATIONS, FULL)


def study_inputs(wildcards):
    return [path for file in ROW_FILES for path in row_files(wildcards.preset, study_plan(wildcards), file)]


def sweep_page(wildcards):
    """The page of the sweep of `--config sweep=...`."""
    if not SWEEP:
        checked(refuse, f"sweep: say what to sweep: --config sweep='{EXAMPLE}'")
    return f"reports/{PRESET}/ablation_{SWEPT}.html"


def refuse(message):
    raise BenchError(message)


class Unwatched:
    """A param whose change re-runs nothing: Snakemake compares plain values alone.

    Overrides of the preset reach every verb through it; what a stage reads of them is in its `settings`.
    """

    def __init__(self, text):
        self.text = text

    def __str__(self):
        return self.text


LAUNCH = Unwatched(f"launch --processes {DEVICES_PER_JOB} --" if DEVICES_PER_JOB > 1 else "")
SET = Unwatched(f"--set {shlex.quote(CHANGES)}" if CHANGES else "")


def menu():
    """(target name, recipe/variant) for every variant of every recipe in baselines/."""
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    pairs = [(name, variant) for name in names for variant in checked(load_recipe, name).variants]
    return [("_".join(pair), "/".join(pair)) for pair in pairs]


FULL = checked(full_rows)
TABLES = {"index": "table", "full": "table_full"}  # page -> table


INSPECTED = str(config.get("row", "robuq_uniform/W1.58A2"))


def quantised(recipe, name):
    if load_variant(recipe, name).method.weight is None:
        raise BenchError(f"--config row={recipe}/{name}: quantises no weights; name a row of another recipe")


def inspected(wildcards):
    """The inspection of the row named by `--config row=recipe/variant`, at its first seed."""
    recipe, _, name = INSPECTED.rpartition("/")
    checked(quantised, recipe, name)
    return f"<results>/{wildcards.preset}/inspect/{INSPECTED}/seed{seeds(wildcards.preset, recipe, name)[0]}.json"


def left_behind(wildcards):
    """The collected folder of a study: this machine's, or the committed one."""
    own, committed = Path(f"results/{wildcards.preset}/collected"), Path(f"results/reference/{wildcards.preset}")
    if found := next((folder for folder in (own, committed) if (folder / "study.json").exists()), None):
        return found
    checked(refuse, f"study_page: no study of the preset {wildcards.preset} is collected; run reproduce_study first")
