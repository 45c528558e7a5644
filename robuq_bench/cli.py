"""robuq-bench: every stage of the street as a verb. Snakemake rules call these and nothing else."""

import argparse
import importlib
import logging
import sys
from pathlib import Path

from robuq_bench import __version__
from robuq_bench.errors import BenchError

VERBS = {
    "profile": "robuq_bench.allocate.profile_stage",
    "allocate": "robuq_bench.allocate.stage",
    "train": "robuq_bench.train.stage",
    "export": "robuq_bench.engine.export",
    "sample": "robuq_bench.sample.stage",
    "reference": "robuq_bench.metrics.reference_stage",
    "evaluate": "robuq_bench.metrics.stage",
    "measure": "robuq_bench.measure.stage",
    "probe": "robuq_bench.measure.probe",
    "inspect": "robuq_bench.measure.inspect_stage",
    "step-cost": "robuq_bench.measure.step_cost",
    "engine-rates": "robuq_bench.measure.engine_rates",
    "engine-kernels": "robuq_bench.measure.engine_kernels",
    "engine-table": "robuq_bench.measure.engine_table",
    "table": "robuq_bench.report.table_stage",
    "ablate": "robuq_bench.report.ablation_stage",
    "inspect-page": "robuq_bench.report.inspect_stage",
    "report": "robuq_bench.report.stage",
    "engine-report": "robuq_bench.report.engine_stage",
}
"""Verb -> module with a docstring (the help), EXAMPLE, arguments(parser) and run(args)."""

SUMMARY = {
    "profile": "measure how much each layer minds each activation width, after some QAT steps",
    "allocate": "choose the activation bits of each layer from a profile, within the budget",
    "train": "train a row: full precision, or QAT from a checkpoint",
    "export": "pack a trained model into one small file",
    "sample": "draw images from a packed model",
    "reference": "features and moments of the real images, and the real-vs-real floor",
    "evaluate": "score generated images",
    "measure": "size and latency of a packed model",
    "probe": "error of activation quantisers on a trained model, without training",
    "inspect": "are rotated activations normal, and what do a trained row's parts carry",
    "step-cost": "what fake quantisation costs in training, per recipe",
    "engine-rates": "probe what the GPU can do: tensor-core rates, copy bandwidth",
    "engine-kernels": "check and time the engine's kernels against their bounds and the libraries",
    "engine-table": "time the whole deployed denoiser beside what a user would run instead",
    "table": "collect rows into the table (CSV, Markdown, LaTeX, JSON)",
    "ablate": "collect the rows of an ablation",
    "inspect-page": "build the HTML page of an inspection",
    "report": "build the HTML page",
    "engine-report": "build the engine's HTML page, or its roofline picture alone",
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
