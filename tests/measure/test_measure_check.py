"""The verb `check`: a line for each thing, and exit code 2 when one will not do."""

import numpy as np
import pytest
import standins
import yaml

from robuq_bench import cli
from robuq_bench.config.preset import load_preset
from robuq_bench.measure import check, needs

NAMES = ["rows", "device", "images", "pretrained model", "autoencoder", "latents", "feature extractor", "reference"]
NAMES += ["free disk", "two training steps"]


@pytest.fixture(scope="module")
def brought(tmp_path_factory):
    folder = tmp_path_factory.mktemp("brought")
    standins.save_images(folder / "imagenet/train", each=3)
    standins.save_pipeline(folder / "DiT-XL-2-256")
    standins.save_reference(folder / "VIRTUAL_imagenet256_labeled.npz")
    return folder


@pytest.fixture
def preset(in_root, tmp_path, brought):
    """Path of the stand-in preset, with its files where the test has them."""
    text = (in_root / "config/paper_standin.yaml").read_text()
    raw = yaml.safe_load(text.replace("standin/latents", str(tmp_path / "latents")).replace("standin/", f"{brought}/"))
    raw["data"]["held_out"] = 8
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(raw))
    return str(path)


def lines(capsys) -> dict[str, tuple[str, str]]:
    """{name: (ok or failed, what was said)}."""
    found = {}
    for line in capsys.readouterr().out.splitlines():
        mark, _, rest = line.partition(" ")
        name, _, said = rest.strip().partition(": ")
        found[name] = (mark, said)
    return found


def test_everything_is_looked_at(preset, capsys):
    assert cli.main(["check", preset]) == 0
    found = lines(capsys)
    assert list(found) == NAMES and {mark for mark, _ in found.values()} == {"ok"}
    assert "36 images, 12 classes" in found["images"][1] and "to be encoded" in found["latents"][1]
    assert "robuq/W1.58A2 on cpu: losses 0." in found["two training steps"][1]


def test_finished_latents_are_verified(preset, tmp_path, capsys):
    assert cli.main(["latents", "--preset", preset, "--out", str(tmp_path / "l.json")]) == 0
    looks = dict(check.checks(load_preset(preset)))
    assert "36 images in 1 shards, hashes as recorded" in looks["latents"]()
    shard = tmp_path / "latents/shard00000.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert cli.main(["check", preset]) == 2
    captured = capsys.readouterr()
    assert "2 of 10 checks" in captured.err, "and nothing is trained on them"
    assert captured.out.count("damaged shard") == 2


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ("data.path=/nowhere", "images", "/nowhere: no such folder"),
        ("data.classes=1000", "images", "12 class folders, the preset expects 1000"),
        ("pretrained.path=/nowhere", "pretrained model", "no such folder"),
        (f"pretrained.sha256={'a' * 64}", "pretrained model", "is it another model?"),
        ("model.depth=28", "pretrained model", "num_layers is 2 there and 28 here"),
        ("latents.scale=0.5", "autoencoder", "latents.scale is 0.18215 there and 0.5"),
        ("evaluate.reference=/nowhere.npz", "reference", "/nowhere.npz"),
        ("rows=[robuq/W1.58A9]", "rows", "unknown variant"),
    ],
)
def test_what_is_wrong_is_one_line_and_the_rest_is_still_looked_at(preset, capsys, changes, name, words):
    assert cli.main(["check", preset, "--set", changes]) == 2
    captured = capsys.readouterr()
    said = [line for line in captured.out.splitlines() if line.startswith("failed") and f"{name}:" in line]
    assert len(said) == 1 and words in said[0]
    assert len(captured.out.splitlines()) == len(NAMES) and captured.err.count("\n") == 1


def test_a_full_disk_is_found_before_the_work(preset, monkeypatch, refused):
    monkeypatch.setattr(check.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    refused(lambda: check.free(load_preset(preset)), "0.0 MB free here", "needed (checkpoints")


def test_bytes_on_disk(preset):
    """36 photos in two orientations, 4 x 8 x 8 latents of 2 bytes; two rows and the reference of 48 images each."""
    found = needs.disk(load_preset(preset))
    assert found["latents"] == 36 * 2 * 4 * 8 * 8 * 2
    assert found["images"] == 3 * 48 * 3 * 32 * 32


def test_parameters_of_the_published_model():
    """DiT-XL/2 has 675 M."""
    assert pytest.approx(675e6, rel=0.02) == needs.WIDTH_SQUARES * 28 * 1152**2


def test_a_preset_of_pixels_is_checked_too(in_root, capsys):
    assert cli.main(["check", "smoke"]) == 0
    found = lines(capsys)
    assert "1797 images, 10 classes" in found["images"][1] and "pretrained model" not in found


def test_images_looked_at_are_spread():
    files = tuple(range(1000))
    assert check.spread(files)[:3] == [0, 62, 125] and len(check.spread(files)) == 16
    assert check.spread(files[:5]) == list(np.arange(5))
