"""The verb `latents` and what is trained on: a cache of the stand-in autoencoder, as users call it."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from standins import CLASSES, FACTOR, LATENT, SCALE, SIDE, save_images, vae

from robuq_bench import cli
from robuq_bench.config.preset import load_preset
from robuq_bench.data.crop import central_square
from robuq_bench.data.folder import by_class
from robuq_bench.data.latents import open_cache
from robuq_bench.train.examples import examples

EACH = 3


@pytest.fixture(scope="module")
def brought(tmp_path_factory):
    """What a user brings: photos and an autoencoder."""
    folder = tmp_path_factory.mktemp("brought")
    save_images(folder / "photos", each=EACH)
    vae().save_pretrained(folder / "vae")
    return folder


@pytest.fixture
def preset(in_root, tmp_path, brought):
    """`preset(**changes)`: path of a preset of the photos, with its cache in a folder of this test."""

    def make(**changes) -> str:
        raw = yaml.safe_load((in_root / "config/smoke.yaml").read_text())
        raw["data"] = {"source": "folder", "path": str(brought / "photos"), "size": SIDE, "held_out": 8}
        raw["data"] |= {"classes": CLASSES} | changes.pop("data", {})
        raw["latents"] = {"vae": str(brought / "vae"), "cache": str(tmp_path / "cache"), "factor": FACTOR}
        raw["evaluate"] = {"extractor": "Pixels", "reference": "unused.npz"}
        raw["latents"] |= {"shard": 7, "batch": 4} | changes
        path = tmp_path / "own.yaml"
        path.write_text(yaml.safe_dump(raw))
        return str(path)

    return make


def encoded(preset: str) -> int:
    """Exit code of the verb; its record goes beside the preset."""
    return cli.main(["latents", "--preset", preset, "--out", f"{preset}.json"])


def one_line(capsys) -> str:
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and text.startswith("robuq-bench: ")
    return text


def test_latents_are_those_of_the_photos(preset, tmp_path, brought):
    path = preset()
    assert encoded(path) == 0
    cache = open_cache(tmp_path / "cache")
    model, listing = vae(), by_class(brought / "photos")
    for image in (0, 10, 35):
        square = central_square(listing.files[image], SIDE)
        for orientation in (0, 1):
            shown = np.ascontiguousarray(square[:, ::-1] if orientation else square)
            signal = torch.from_numpy(shown.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
            with torch.no_grad():
                expected = model.encode(signal).latent_dist.mean[0]
            found = torch.from_numpy(cache.take(np.array([image]), np.array([orientation]))[0].astype(np.float32))
            assert (found - expected).abs().max() < 0.15, "the posterior's deviation is exp(-4)"
            assert (found - expected).abs().mean() > 1e-3, "a draw, not the mean"
    assert cache.index["provenance"]["command"] and cache.index["spread"] * SCALE == pytest.approx(1, abs=0.5)


def test_what_is_trained_on(preset):
    path = preset()
    assert encoded(path) == 0
    train, held_out = examples(load_preset(path))
    total = CLASSES * EACH
    assert (train.count, len(train), len(held_out)) == (total - 8, 2 * (total - 8), 8)
    assert train.signal.shape == (len(train), 4, LATENT, LATENT) and train.shape.classes == CLASSES
    batch = train.signal[torch.tensor([3, 2, 0])]
    cache = train.signal.cache
    images, orientations = train.signal.images[[1, 1, 0]], np.array([1, 0, 0])
    assert torch.equal(batch, torch.from_numpy(cache.take(images, orientations)).float() * SCALE)
    assert train.labels[:4].tolist() == [cache.labels[i] for i in train.signal.images[[0, 0, 1, 1]]]
    assert torch.equal(held_out.signal[2:4], held_out.first(4).signal[2:])
    assert not set(train.signal.images) & set(held_out.signal.images)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"classes": 1000}}, ("12 class folders, the preset expects 1000",)),
        ({"data": {"path": "/nowhere"}}, ("/nowhere", "no such folder")),
        ({"data": {"path": None}}, ("data.path",)),
        ({"data": {"source": "cifar10"}}, ("unknown data source of latents 'cifar10'", "folder")),
        ({"scale": 1.0}, ("latents.scale is 0.18215 there and 1.0",)),
    ],
)
def test_what_does_not_fit_is_one_line(preset, capsys, changes, words):
    assert encoded(preset(**changes)) == 2
    line = one_line(capsys)
    assert all(word in line for word in words)


def test_a_preset_of_pixels_has_nothing_to_encode(in_root, capsys):
    """And leaves no file behind."""
    assert encoded("smoke") == 2
    assert "trains on pixels" in one_line(capsys)


def test_a_cache_of_another_preset_is_refused(preset, refused):
    assert encoded(preset()) == 0
    refused(lambda: examples(load_preset(preset(flip=False))), "orientations 2 there and 1 here")
    refused(lambda: examples(load_preset(preset(data={"classes": 10}))), "classes 12 there and 10 here")
    refused(lambda: examples(load_preset(preset(data={"size": 64}))), "size 32 there and 64 here")


def test_nothing_is_trained_on_a_damaged_shard(preset, tmp_path, capsys):
    """One bit is enough: the file has its size and trains as well as any other."""
    path = preset()
    assert encoded(path) == 0
    shard = tmp_path / "cache/shard00002.npy"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    out = {name: tmp_path / name for name in ("model", "curve", "state")}
    row = ["--recipe", "full_precision", "--variant", "W32A32"]
    assert cli.main(["train", "--preset", path, *row, *(f"--{name}={file}" for name, file in out.items())]) == 2
    line = one_line(capsys)
    assert str(shard) in line and "SHA-256" in line
    assert not any(file.exists() for file in out.values())


def test_a_scale_that_does_not_fit_what_is_encoded_is_refused(preset, refused, brought, capsys):
    """Preset and autoencoder agree on a wrong scale, after shards were made with the right one."""
    assert encoded(preset()) == 0
    refused(lambda: examples(load_preset(preset(scale=2.0))), "latents.scale 2 the latents vary by", "would fit")
    config = brought / "vae/config.json"
    before = config.read_text()
    try:
        config.write_text(before.replace(f'"scaling_factor": {SCALE}', '"scaling_factor": 2.0'))
        assert encoded(preset(scale=2.0)) == 2
        assert "vary by" in one_line(capsys)
    finally:
        config.write_text(before)


def test_a_damaged_photo_is_named_and_the_work_kept(preset, brought, tmp_path, capsys):
    photos = save_images(tmp_path / "photos", each=EACH)
    damaged = photos / "n00000011/11_2.JPEG"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:200])
    path = preset(data={"path": str(photos)})
    assert encoded(path) == 2
    assert str(damaged) in one_line(capsys)
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache").glob("*.npy")}
    assert len(kept) == 5
    damaged.write_bytes(whole)
    assert Image.open(damaged)
    assert encoded(path) == 0
    assert all((tmp_path / "cache" / name).stat().st_mtime_ns == time for name, time in kept.items())
