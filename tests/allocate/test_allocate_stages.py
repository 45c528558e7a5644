"""The verbs `profile`, `allocate` and `train --bits` from the command line, on a small random model."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

from robuq_bench import provenance
from robuq_bench.allocate import profile_stage
from robuq_bench.cli import main
from robuq_bench.config.preset import load_preset
from robuq_bench.config.recipe import load_variant
from robuq_bench.models import checkpoint
from robuq_bench.quant.convert import quant_linears
from robuq_bench.train.bits import read_bits
from robuq_bench.train.examples import examples
from robuq_bench.train.stage import prepare

RECIPE, NAME = "robuq,allocation.profile_steps=2", "W1.58A2"
BUDGET = "qat.steps=2,qat.save_every=1"


@pytest.fixture
def files(tmp_path, in_root, card, denoiser, monkeypatch) -> Namespace:
    """Paths of one row, and the full-precision checkpoint it starts from."""
    monkeypatch.setattr(profile_stage, "BATCH", 16)
    start = tmp_path / "fp.safetensors"
    checkpoint.save(start, denoiser().state_dict(), card("full_precision/W32A32"))
    names = {"profile": "profile.json", "bits": "bits.json", "model": "q.safetensors", "curve": "q.json", "state": "s"}
    return Namespace(start=start, **{key: tmp_path / name for key, name in names.items()})


def profile(files: Namespace, *more: str, changes: str = BUDGET, recipe: str = RECIPE) -> int:
    row = ["--recipe", recipe, "--variant", NAME, "--preset", "smoke", "--set", changes]
    return main(["profile", *row, "--start", str(files.start), "--profile", str(files.profile), *more])


def allocate(files: Namespace, recipe: str = RECIPE) -> int:
    row = ["--recipe", recipe, "--variant", NAME]
    return main(["allocate", *row, "--profile", str(files.profile), "--bits", str(files.bits)])


def train(files: Namespace, *more: str, recipe: str = RECIPE, name: str = NAME) -> int:
    outputs = [word for key in ("model", "curve", "state") for word in (f"--{key}", str(getattr(files, key)))]
    row = ["--recipe", recipe, "--variant", name, "--preset", "smoke", "--set", BUDGET]
    return main(["train", *row, "--start", str(files.start), *outputs, *more])


def test_from_profile_to_a_model_with_these_bits(files):
    assert profile(files) == 0
    found = json.loads(files.profile.read_text())
    assert found["steps"] == 2 and len(found["loss"]) == len(found["mse"]) == len(found["layers"]) == 8
    assert all(row[3] == 0 for row in found["loss"])
    assert found["macs"][:4] == [16 * 48 * 48 * share for share in (3, 1, 4, 4)]
    provenance.check(found, "profile.json")

    assert allocate(files) == 0
    record = json.loads(files.bits.read_text())
    assert record["achieved"] <= record["budget"] == 48
    assert record["weighted_average"] <= 2
    provenance.check(record, "bits.json")

    preset = load_preset("smoke")
    train_set, _ = examples(preset)
    model, bits, _ = prepare(preset, load_variant(RECIPE, NAME), train_set, 0, files.start, files.bits)
    assert bits == record["bits"]
    used = {name: layer.activation_quantiser.bits for name, layer in quant_linears(model).items()}
    assert used == record["bits"] and len(set(used.values())) > 1

    assert train(files, "--bits", str(files.bits)) == 0
    assert checkpoint.read_card(files.model).bits == record["bits"]


def test_profile_again_gives_the_same(files):
    values = []
    for _ in range(2):
        assert profile(files) == 0
        values.append(
            {key: value for key, value in json.loads(files.profile.read_text()).items() if key != "provenance"}
        )
    assert values[0] == values[1]


def test_profile_without_steps_is_that_of_the_converted_model(files):
    assert profile(files, recipe="robuq,allocation.profile_steps=0") == 0
    untrained = json.loads(files.profile.read_text())
    assert profile(files) == 0
    trained = json.loads(files.profile.read_text())
    assert untrained["steps"] == 0 and untrained["base_loss"] != trained["base_loss"]


def test_divergence_travels_to_the_row(files, capsys):
    changes = BUDGET + ",qat.lr=1e30,qat.warmup=0"
    assert profile(files, changes=changes) == 4
    assert "loss is" in capsys.readouterr().err and not files.profile.exists()
    assert profile(files, "--record-divergence", changes=changes) == 0
    assert allocate(files) == 0
    assert train(files, "--bits", str(files.bits)) == 4
    assert not files.model.exists()
    assert train(files, "--bits", str(files.bits), "--record-divergence") == 0
    card = checkpoint.read_card(files.model)
    assert card.diverged and "loss is" in card.reason


def refused_line(capsys, code: int, *words: object) -> None:
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and len(lines) == 1
    assert all(str(word) in lines[0] for word in words)


def test_bits_are_asked_for_exactly_when_the_recipe_allocates(files, capsys):
    refused_line(capsys, train(files), "--bits", "robuq-bench allocate")
    files.bits.write_text("{}")
    more = ["--bits", str(files.bits)]
    refused_line(capsys, train(files, *more, recipe="robuq_uniform"), "uniform bits", "out of place")
    refused_line(capsys, train(files, *more, recipe="robuq", name="W1.58A4"), "uniform bits", "out of place")


def test_uniform_recipes_are_not_profiled(files, capsys):
    refused_line(capsys, profile(files, recipe="robuq_uniform"), "uniform bits")
    refused_line(capsys, allocate(files, recipe="robuq_uniform"), "uniform bits")


def test_a_damaged_profile_is_refused(files, capsys):
    refused_line(capsys, allocate(files), files.profile, "no such file")
    files.profile.write_text('{"layers": ["blocks.0.qkv"]}')
    refused_line(capsys, allocate(files), files.profile)
    assert not files.bits.exists()


def test_a_missing_latency_table_is_refused(files, capsys):
    assert profile(files) == 0
    capsys.readouterr()
    missing = "allocation.cost=latency,allocation.latency_table=nowhere.json"
    refused_line(capsys, allocate(files, f"{RECIPE},{missing}"), "nowhere.json: no latency table", "engine_kernels")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bits": None}, ["holds no 'bits'"]),
        ({"variant": "W1.58A3"}, ["W1.58A3, not of W1.58A2"]),
        ({"blocks.1.fc2": None}, ["lacks layer 'blocks.1.fc2'"]),
        ({"blocks.7.fc2": 2}, ["'blocks.7.fc2'"]),
        ({"blocks.0.qkv": 8}, ["'blocks.0.qkv' has 8 bits", "1, 2, 3, 4"]),
        ({"blocks.0.qkv": 2.0}, ["'blocks.0.qkv' has 2.0 bits"]),
        ({"blocks.0.qkv": True}, ["'blocks.0.qkv' has True bits"]),
        ({"blocks.0.qkv": "2"}, ["'blocks.0.qkv' has '2' bits"]),
        ({"blocks.0.adaln": 2}, ["'blocks.0.adaln' has 2 bits", "allows 4"]),
    ],
)
def test_bits_that_do_not_fit_are_refused(tmp_path: Path, variant, refused, change, words):
    uniform = {f"blocks.{index}.{kind}": 2 for index in range(2) for kind in ("qkv", "proj", "fc1", "fc2")}
    uniform |= {f"blocks.{index}.adaln": 4 for index in range(2)}
    record = {"variant": NAME, "bits": dict(uniform), "status": "ok"}
    for key, value in change.items():
        place = record if key in record else record["bits"]
        place[key] = value
        if value is None:
            del place[key]
    path = tmp_path / "bits.json"
    path.write_text(json.dumps(record))
    refused(lambda: read_bits(path, variant(f"robuq/{NAME}"), uniform), path, *words)
