"""FID by clean-fid (Parmar et al. 2022), with its own resizing, network and distance: a second opinion on the ranking.

clean-fid resizes with antialiased bicubic filters, so its figures are not comparable with ADM's, nor with any column of
the table; only the order of rows and the size of differences are. It is an optional dependency.
"""

import argparse
import importlib.metadata
import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch

from robuq_bench import provenance
from robuq_bench.config.preset import load_preset, preset_arguments
from robuq_bench.devices import describe, use
from robuq_bench.errors import BenchError
from robuq_bench.files import existing, sha256_file, write_json
from robuq_bench.progress import Bar
from robuq_bench.sample import archive, npz

EXAMPLE = """robuq-bench second-opinion --preset paper --samples samples.npz --real VIRTUAL_imagenet256_labeled.npz \\
    --weights inception-2015-12-05.pt --out clean_fid.json"""
FILE = "inception-2015-12-05.pt"
SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
BATCH = 64


def arguments(parser: argparse.ArgumentParser) -> None:
    preset_arguments(parser)
    parser.add_argument("--samples", type=Path, required=True, help=".npz of `robuq-bench sample`")
    parser.add_argument("--real", type=Path, required=True, help=".npz with real images in arr_0, such as ADM's")
    parser.add_argument("--weights", type=Path, required=True, help=f"your copy of clean-fid's {FILE}")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")


def run(args: argparse.Namespace) -> None:
    check_usable()
    preset = load_preset(args.preset, args.set)
    digest = checked_weights(args.weights)
    fake, real = archive.load(args.samples, on_disk=True).images, npz.open_array(args.real)
    device = use(preset.device, preset.threads)
    network = load_network(args.weights, device)
    with Bar("second opinion", len(fake) + len(real)) as bar:
        score = distance(*(features(images, network, device, bar) for images in (fake, real)))
    record = {
        "clean_fid": score,
        "n": len(fake),
        "n_reference": len(real),
        "samples": sha256_file(args.samples),
        "reference": sha256_file(args.real),
        "weights": digest,
        "provenance": provenance.collect(describe(device), clean_fid=importlib.metadata.version("clean-fid")),
    }
    write_json(args.out, record)
    print(f"clean-fid {score:.3f} ({len(fake)} images against {len(real)})")


def check_usable(scipy_version: str = scipy.__version__) -> None:
    """Raises BenchError when clean-fid is not installed, or cannot run with this SciPy."""
    if importlib.util.find_spec("cleanfid") is None:
        raise BenchError("second opinion: clean-fid is not installed; run: pip install 'robuq-bench[second-opinion]'")
    if tuple(map(int, scipy_version.split(".")[:2])) >= (1, 18):
        raise BenchError(
            f"second opinion: clean-fid cannot run with SciPy {scipy_version}, which removed sqrtm(disp=...); use an "
            "environment with 'scipy<1.18'"
        )


def checked_weights(path: Path) -> str:
    """SHA-256 of the published file. Raises BenchError for another: TorchScript files can run code."""
    digest = sha256_file(existing(path, "weights file"))
    if digest != SHA256:
        raise BenchError(f"{path}: not clean-fid's {FILE} (SHA-256 {digest[:8]}…, published {SHA256[:8]}…)")
    return digest


def load_network(path: Path, device: str) -> torch.nn.Module:
    """clean-fid's wrapper of the TorchScript network at `path`, without its download."""
    from cleanfid.inception_torchscript import InceptionV3W

    with tempfile.TemporaryDirectory() as folder:  # it wants a folder with a file of that name
        shutil.copy(path, Path(folder) / FILE)
        return InceptionV3W(folder, download=False, resize_inside=False).to(device).eval()


def features(images: np.ndarray, network: torch.nn.Module, device: str, bar: Bar) -> np.ndarray:
    """float32 [N, 2048] of uint8 [N, H, W, 1 or 3], each image resized by clean-fid."""
    from cleanfid.resize import build_resizer

    resize, found = build_resizer("clean"), []
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        rgb = np.broadcast_to(batch, (*batch.shape[:3], 3))
        resized = torch.from_numpy(np.stack([resize(image) for image in rgb])).permute(0, 3, 1, 2)
        with torch.inference_mode():
            found.append(network(resized.to(device)).cpu().numpy())
        bar.advance(len(batch))
    return np.concatenate(found)


def distance(fake: np.ndarray, real: np.ndarray) -> float:
    """clean-fid's Fréchet distance of two sets of features, from moments in float64."""
    from cleanfid.fid import frechet_distance

    moments: list[Any] = []
    for rows in (fake, real):
        rows = rows.astype(np.float64)
        moments += [rows.mean(0), np.cov(rows, rowvar=False)]
    return float(frechet_distance(*moments))
