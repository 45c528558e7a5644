"""Download the models a preset names from the Hugging Face hub into the folders it names. Nothing else downloads."""

import argparse
import textwrap
from pathlib import Path

from huggingface_hub import model_info, snapshot_download

from robuq_bench.config.preset import load_preset, preset_arguments
from robuq_bench.errors import BenchError
from robuq_bench.files import write_text
from robuq_bench.progress import LOG

EXAMPLE = "robuq-bench fetch paper"
UNFINISHED = ".unfinished"
"""File in a folder that is being fetched: small files come first, and make a cut folder look like a whole one."""
PATTERNS = ["*.json", "*.safetensors", "*.bin", "LICENSE*", "README*"]


def arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser, positional=True)


def run(args: argparse.Namespace) -> None:
    preset = load_preset(args.preset, args.set)
    wanted = {}
    if preset.pretrained:
        wanted[preset.pretrained.path] = preset.pretrained.repository
    if preset.latents:
        wanted.setdefault(preset.latents.vae, preset.latents.repository)
    if not wanted:
        raise BenchError(f"preset '{args.preset}' names no models to fetch: it trains its own")
    for path, repository in wanted.items():
        folder = Path(path).expanduser()
        if repository is None:
            raise BenchError(f"{folder}: the preset names no repository for it; give its path, or its `repository`")
        if any(folder.rglob("config.json")) and not (folder / UNFINISHED).exists():
            print(f"{folder}: already there; to fetch it again, delete it")
            continue
        download(repository, folder)
        print(f"{folder}: {repository}, as its licence there allows")


def download(repository: str, folder: Path) -> None:
    """Raises BenchError in one line when the hub cannot be reached or has no such repository."""
    LOG.info("fetching %s into %s", repository, folder)
    write_text(folder / UNFINISHED, repository)
    try:
        revision = model_info(
            repository
        ).sha  # asked first: without a network the next line is content with what is there
        snapshot_download(repository, revision=revision, local_dir=folder, allow_patterns=PATTERNS)
        (folder / UNFINISHED).unlink()
    except Exception as error:  # a network can fail in any way
        reason = textwrap.shorten(str(error), 160, placeholder="…")
        raise BenchError(
            f"{repository}: could not be fetched from the hub ({type(error).__name__}: {reason}); what came is kept: "
            f"try again, or copy the repository's files into {folder}"
        ) from error
