"""robuq-bench: every stage of the street as a verb. Snakemake rules call these and nothing else."""

import argparse
import importlib
import logging
import os
import sys
from pathlib import Path

from robuq_bench import __version__
from robuq_bench.errors import BenchError

SERVER = "ROBUQ_BENCH_SERVER"
"""Environment variable with the socket of `robuq-bench warm`: calls that see it let that server run them."""
VERBS = {
    "anchors": "robuq_bench.report.anchors_stage",
    "check": "robuq_bench.measure.check_stage",
    "fetch": "robuq_bench.models.fetch_stage",
    "latents": "robuq_bench.train.latents_stage",
    "launch": "robuq_bench.train.launch",
    "profile": "robuq_bench.allocate.profile_stage",
    "allocate": "robuq_bench.allocate.stage",
    "train": "robuq_bench.train.stage",
    "export": "robuq_bench.engine.export",
    "sample": "robuq_bench.sample.stage",
    "reference": "robuq_bench.metrics.reference_stage",
    "evaluate": "robuq_bench.metrics.stage",
    "export-adm": "robuq_bench.metrics.adm_stage",
    "second-opinion": "robuq_bench.metrics.second_opinion",
    "measure": "robuq_bench.measure.stage",
    "quantiser-error": "robuq_bench.measure.quantiser_error",
    "inspect": "robuq_bench.measure.inspect_stage",
    "step-cost": "robuq_bench.measure.step_cost",
    "probe": "robuq_bench.measure.probe",
    "engine-tune": "robuq_bench.engine.tuning",
    "engine-rates": "robuq_bench.measure.engine_rates",
    "engine-kernels": "robuq_bench.measure.engine_kernels",
    "engine-table": "robuq_bench.measure.engine_table",
    "table": "robuq_bench.report.table_stage",
    "ablate": "robuq_bench.report.ablation_stage",
    "inspect-page": "robuq_bench.report.inspect_stage",
    "study-rows": "robuq_bench.report.study_collect",
    "study-report": "robuq_bench.report.study_stage",
    "report": "robuq_bench.report.stage",
    "engine-report": "robuq_bench.report.engine_stage",
    "plan": "robuq_bench.report.plan_stage",
    "collect": "robuq_bench.report.collect_stage",
    "warm": "robuq_bench.warm",
}
"""Verb -> module with a docstring (the help), EXAMPLE, arguments(parser) and run(args)."""

SUMMARY = {
    "anchors": "compare the full-precision row with published scores: is the protocol right?",
    "check": "is everything there that a preset needs: files, hashes, disk, devices, two steps of training",
    "fetch": "download the models that a preset names from the Hugging Face hub (the one verb that uses a network)",
    "latents": "encode the images of a preset once, into memory-mapped shards",
    "launch": "run train, sample or latents in several processes, one a GPU",
    "profile": "measure how much each layer minds each activation width, after some QAT steps",
    "allocate": "choose the activation bits of each layer from a profile, within the budget",
    "train": "train a row: full precision, or QAT from a checkpoint",
    "export": "pack a trained model into one small file",
    "sample": "draw images from a packed model",
    "reference": "features and moments of the real images, and the real-vs-real floor",
    "evaluate": "score generated images",
    "export-adm": "write a row's images as ADM's own evaluator reads them",
    "second-opinion": "FID by clean-fid, where it is installed: another resizing, another implementation",
    "measure": "size and latency of a packed model",
    "quantiser-error": "error of activation quantisers on a trained model, without training",
    "inspect": "are rotated activations normal, and what do a trained row's parts carry",
    "probe": "how fast this GPU is at each part of the paper's run, in minutes",
    "step-cost": "what fake quantisation costs in training, per recipe",
    "engine-tune": "choose the tiles of a packed file's products by measuring them on this GPU",
    "engine-rates": "probe what the GPU can do: tensor-core rates, copy bandwidth",
    "engine-kernels": "check and time the engine's kernels against their bounds and the libraries",
    "engine-table": "time the whole deployed denoiser beside what a user would run instead",
    "table": "collect rows into the table (CSV, Markdown, LaTeX, JSON)",
    "ablate": "collect the rows of an ablation",
    "inspect-page": "build the HTML page of an inspection",
    "study-rows": "collect all rows of a study into one JSON",
    "study-report": "build the study's page: verdicts, budgets, latency, images, cost",
    "report": "build the HTML page",
    "engine-report": "build the engine's HTML page, or its roofline picture alone",
    "plan": "what a preset would cost: GPU-hours, time on the clock, memory, disk",
    "collect": "gather what a study leaves behind into one small folder, and say what it cost",
    "warm": "run a command whose robuq-bench calls start at once (GPU studies of hundreds of rows)",
}


def parser_for(argv: list[str]) -> argparse.ArgumentParser:
    """The parser, with only the asked-for verb's module imported (torch takes seconds)."""
    parser = argparse.ArgumentParser(prog="robuq-bench", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    asked = next((word for word in argv if not word.startswith("-")), None)
    for verb, module_name in VERBS.items():
        if verb != asked:
            verbs.add_parser(verb, help=SUMMARY[verb])
            continue
        module = importlib.import_module(module_name)
        sub = verbs.add_parser(
            verb,
            help=SUMMARY[verb],
            description=module.__doc__,
            epilog=f"example:\n  {module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.arguments(sub)
        sub.add_argument("--log", type=Path, help="file for messages and progress (appended)")
        sub.set_defaults(run=module.run)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a verb. A user's mistake prints one line and returns its exit code; nothing else is caught."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if SERVER in os.environ and argv[:1] != ["launch"]:  # the processes that it starts are calls themselves
            _log_to(None)
            return importlib.import_module("robuq_bench.warm").forward(argv)
        args = parser_for(argv).parse_args(argv)
        _log_to(args.log)
        args.run(args)
    except BenchError as error:
        line = f"robuq-bench: {' '.join(str(error).split())}"
        logging.getLogger("robuq_bench").error(line)
        print(line, file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("robuq-bench: interrupted; run the same command to go on", file=sys.stderr)
        return 130
    return 0


def _log_to(path: Path | None) -> None:
    log = logging.getLogger("robuq_bench")
    log.setLevel(logging.INFO)
    log.propagate = False
    if path is None:
        log.addHandler(logging.NullHandler())
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path)
    except OSError as error:
        raise BenchError(f"--log {path}: cannot be written ({error.strerror})") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.info("robuq-bench %s", " ".join(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
