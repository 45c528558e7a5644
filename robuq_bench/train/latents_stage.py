"""Encode the images of a preset once, into memory-mapped shards of latents that all training reads."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from robuq_bench import provenance
from robuq_bench.config.preset import Preset, load_preset, preset_arguments
from robuq_bench.data import encode
from robuq_bench.data.folder import LISTINGS, Listing
from robuq_bench.data.latents import open_cache
from robuq_bench.devices import describe, release, use
from robuq_bench.errors import BenchError, unknown
from robuq_bench.files import write_json
from robuq_bench.models import vae
from robuq_bench.progress import Bar
from robuq_bench.seeds import seed
from robuq_bench.train.distributed import together
from robuq_bench.train.objective import to_signal

EXAMPLE = "robuq-bench latents --preset paper --set data.path=/data/imagenet/train --out latents.json"


def arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="JSON to write: which latents there are")


def run(args: argparse.Namespace) -> None:
    preset = load_preset(args.preset, args.set)
    if preset.latents is None:
        raise BenchError(f"preset '{args.preset}' trains on pixels: it has no `latents` block to encode for")
    device = use(preset.device, preset.threads)
    autoencoder = vae.load(preset.latents, device)
    work = plan(preset, listing(preset), autoencoder.digest)
    folder = Path(preset.latents.cache).expanduser()

    def encoded(images: np.ndarray, draws: Sequence[int]) -> np.ndarray:
        generators = (torch.Generator().manual_seed(seed("latent", draw)) for draw in draws)
        noise = torch.stack([torch.randn(work.latent, generator=generator) for generator in generators])
        return autoencoder.encode(to_signal(images), noise).numpy()

    with together(device) as world:
        mine = range(world.rank, work.shards, world.size)
        with Bar(f"encode {preset.data.path}", sum(len(work.files(number)) for number in mine)) as bar:
            for number in mine:
                encode.write_shard(folder, number, work, encoded, bar.advance)
        world.wait()
        if world.leads:
            record = provenance.collect(describe(device), processes=world.size)
            encode.finish(folder, work, {"provenance": record})
            cache = open_cache(folder)
            found = {"cache": preset.latents.cache, "n": len(cache), "digest": cache.digest, "provenance": record}
            write_json(args.out, found)
        release()


def listing(preset: Preset) -> Listing:
    """The image files of the preset. Raises BenchError when there are not the classes that it expects."""
    data = preset.data
    if data.source not in LISTINGS:
        raise unknown("data source of latents", data.source, LISTINGS, "data.source")
    if data.path is None:
        raise BenchError(f"data.path: give the folder of the images (--set data.path=FOLDER, source '{data.source}')")
    path = Path(data.path).expanduser()
    if not path.is_dir():
        raise BenchError(f"{path}: no such folder; give the folder of the images as data.path")
    found = LISTINGS[data.source](path)
    if data.classes is not None and len(found.classes) != data.classes:
        raise BenchError(
            f"{path}: {len(found.classes)} class folders, the preset expects {data.classes}; is it the training split, "
            "whole and unpacked?"
        )
    return found


def plan(preset: Preset, files: Listing, digest: str) -> encode.Plan:
    latents = preset.latents
    side = preset.side
    return encode.Plan(
        listing=files,
        size=preset.data.size,
        latent=(latents.channels, side, side),
        flip=latents.flip,
        shard=latents.shard,
        batch=latents.batch,
        vae=digest,
        scale=latents.scale,
    )
