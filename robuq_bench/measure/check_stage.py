"""Is everything there that a preset needs? One line for each thing looked at; two steps of training at the end."""

import argparse

from rich.console import Console

from robuq_bench.config.preset import load_preset, preset_arguments
from robuq_bench.errors import BenchError
from robuq_bench.measure.check import checks
from robuq_bench.progress import LOG

EXAMPLE = "robuq-bench check paper --set data.path=/data/imagenet/train"


def arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser, positional=True)


def run(args: argparse.Namespace) -> None:
    preset = load_preset(args.preset, args.set)
    console = Console(highlight=False, soft_wrap=True)
    failed, count = 0, 0
    for name, look in checks(preset):
        count += 1
        try:
            said, mark = look(), "[green]ok    [/]"
        except BenchError as error:
            said, mark, failed = str(error), "[red]failed[/]", failed + 1
        LOG.info("%s: %s", name, said)
        console.print(mark, f"{name}:", said, markup=True)
    if failed:
        raise BenchError(f"{failed} of {count} checks of preset '{args.preset}' failed; nothing was changed")
