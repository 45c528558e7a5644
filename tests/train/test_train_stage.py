"""The verb `train`, as users call it: killed and called again, diverging, started from the wrong file."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from robuq_bench import cli, provenance
from robuq_bench.files import read_json
from robuq_bench.models import checkpoint
from robuq_bench.train import loop, stage

FULL = ("full_precision", "W32A32")
SHORT = "train.steps=60,train.save_every=5,qat.steps=4"


def arguments(folder, recipe: str, variant: str, changes: str = SHORT, *more: object) -> list[str]:
    options = {"preset": "smoke", "set": changes, "recipe": recipe, "variant": variant}
    options |= {"model": folder / "model.safetensors", "curve": folder / "curve.json", "state": folder / "state"}
    return ["train", *(text for name, value in options.items() for text in (f"--{name}", str(value))), *map(str, more)]


@pytest.fixture(autouse=True)
def root(in_root):
    return in_root


@pytest.fixture(scope="module")
def full_precision(tmp_path_factory):
    """A folder with an uninterrupted full-precision run of 60 steps."""
    folder = tmp_path_factory.mktemp("full_precision")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parents[2])
        assert cli.main(arguments(folder, *FULL)) == 0
    return folder


def error_line(capsys) -> str:
    """The one line on stderr."""
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and text.startswith("robuq-bench: ") and "Traceback" not in text
    return text


def test_killed_run_called_again_equals_the_uninterrupted_one(full_precision, tmp_path, root):
    command = arguments(tmp_path, *FULL)
    process = subprocess.Popen([sys.executable, "-m", "robuq_bench.cli", *command], cwd=root)
    try:
        deadline = time.monotonic() + 120
        while not [*tmp_path.glob("state/step*.pt")]:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "model.safetensors").exists() and not (tmp_path / "curve.json").exists()
    assert cli.main(command) == 0
    expected, card = checkpoint.load(full_precision / "model.safetensors", "trained")
    actual, own = checkpoint.load(tmp_path / "model.safetensors", "trained")
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []
    assert own.facts == card.facts
    losses = [read_json(folder / "curve.json")["losses"] for folder in (tmp_path, full_precision)]
    assert losses[0] == losses[1] and len(losses[0]) == 60
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.json", "model.safetensors"]


def test_what_a_run_writes(full_precision):
    _, card = checkpoint.load(full_precision / "model.safetensors", "trained")
    assert (card.kind, card.preset, card.seed, card.status) == ("trained", "smoke", 0, "ok")
    assert (card.shape.size, card.shape.channels, card.shape.classes) == (8, 1, 10)
    assert card.facts["train_images"] == 1797 - 400
    assert 0 < card.facts["held_out_loss"] < card.facts["trivial_loss"]
    provenance.check({"provenance": card.provenance}, "card")
    provenance.check(read_json(full_precision / "curve.json"), "curve")
    assert sorted(path.name for path in full_precision.iterdir()) == ["curve.json", "model.safetensors"]


@pytest.mark.parametrize(
    "row",
    [("robuq,allocation=null", "W1.58A2"), ("quest_stable,activation.centre=true", "W3A3"), ("minmax_ptq", "W4A4")],
)
def test_rows_start_from_the_full_precision_checkpoint(full_precision, tmp_path, row):
    start = full_precision / "model.safetensors"
    assert cli.main(arguments(tmp_path, *row, SHORT, "--start", start)) == 0
    _, card = checkpoint.load(tmp_path / "model.safetensors", "trained")
    assert card.variant.recipe == row[0] and card.variant.name == row[1]
    assert set(card.bits.values()) == {int(row[1].split("A")[1]), 4}
    assert len(read_json(tmp_path / "curve.json")["losses"]) == (0 if row[0] == "minmax_ptq" else 4)


def test_the_averaged_weights_are_what_is_saved(full_precision, tmp_path, monkeypatch):
    outcomes, live = [], []

    def train(model, *arguments, **options):
        outcomes.append(loop.train(model, *arguments, **options))
        live.append({name: tensor.clone() for name, tensor in model.named_parameters()})
        return outcomes[0]

    monkeypatch.setattr(stage, "train", train)
    start = full_precision / "model.safetensors"
    assert cli.main(arguments(tmp_path, "baseline", "W1.58A2", SHORT, "--start", start)) == 0
    saved, _ = checkpoint.load(tmp_path / "model.safetensors", "trained")
    assert all(torch.equal(saved[name], weight) for name, weight in outcomes[0].weights.items())
    assert any(not torch.equal(saved[name], weight) for name, weight in live[0].items())


# Divergence

EXPLODING = "train.steps=20,train.lr=1e30"


def test_divergence_is_one_line_and_leaves_no_file(tmp_path, capsys):
    assert cli.main(arguments(tmp_path, *FULL, EXPLODING)) == 4
    line = error_line(capsys)
    assert "full_precision W32A32 seed 0: loss is" in line and "lower the learning rate" in line
    assert not (tmp_path / "model.safetensors").exists() and not (tmp_path / "curve.json").exists()


def test_divergence_can_be_recorded(tmp_path, capsys):
    assert cli.main(arguments(tmp_path, *FULL, EXPLODING, "--record-divergence")) == 0
    assert capsys.readouterr().err == ""
    tensors, card = checkpoint.load(tmp_path / "model.safetensors", "trained")
    assert tensors == {} and card.diverged and "loss is" in card.reason
    curve = read_json(tmp_path / "curve.json")
    assert curve["status"] == "diverged" and curve["reason"] == card.reason
    provenance.check({"provenance": card.provenance}, "card")
    start = tmp_path / "model.safetensors"
    assert cli.main(arguments(tmp_path / "qat", "baseline", "W1.58A2", SHORT, "--start", start)) == 2
    assert "the full-precision model diverged" in error_line(capsys)


def test_no_better_than_predicting_zero_is_divergence(tmp_path, capsys, monkeypatch):
    for value in (1.5, 2.0, float("nan")):
        monkeypatch.setattr(stage, "held_out_loss", lambda *_, value=value: (value, 1.5))
        assert cli.main(arguments(tmp_path, *FULL, "train.steps=1")) == 4
        assert f"held-out loss {value:.4g} is no better than predicting zero (1.5)" in error_line(capsys)
        assert not (tmp_path / "model.safetensors").exists()
    monkeypatch.setattr(stage, "held_out_loss", lambda *_: (1.4999, 1.5))
    assert cli.main(arguments(tmp_path, *FULL, "train.steps=1")) == 0


# Bad starts


def test_starts_that_are_missing_or_out_of_place(full_precision, tmp_path, capsys):
    start = full_precision / "model.safetensors"
    assert cli.main(arguments(tmp_path, "baseline", "W1.58A2")) == 2
    assert "recipe 'baseline' needs --start" in error_line(capsys)
    assert cli.main(arguments(tmp_path, *FULL, SHORT, "--start", start)) == 2
    assert "--start is out of place" in error_line(capsys)
    assert cli.main(arguments(tmp_path, "baseline", "W1.58A2", SHORT, "--start", tmp_path / "no.safetensors")) == 2
    assert "no such checkpoint" in error_line(capsys)


def test_start_of_another_model(full_precision, tmp_path, capsys):
    start = full_precision / "model.safetensors"
    other = SHORT + ",model.width=64"
    assert cli.main(arguments(tmp_path, "baseline", "W1.58A2", other, "--start", start)) == 2
    line = error_line(capsys)
    assert "checkpoint of another model" in line and str(start) in line


def test_truncated_start(full_precision, tmp_path, capsys):
    start = tmp_path / "cut.safetensors"
    start.write_bytes((full_precision / "model.safetensors").read_bytes()[:-100])
    assert cli.main(arguments(tmp_path, "baseline", "W1.58A2", SHORT, "--start", start)) == 2
    assert "truncated or damaged" in error_line(capsys)


def test_rank_that_does_not_fit(full_precision, tmp_path, capsys):
    start = full_precision / "model.safetensors"
    assert cli.main(arguments(tmp_path, "baseline,low_rank.rank=48", "W1.58A2", SHORT, "--start", start)) == 2
    assert "low_rank.rank 48" in error_line(capsys)


# What makes a run the same run


class Seen(Exception):
    pass


def test_fingerprint_covers_all_that_a_result_depends_on(full_precision, tmp_path, monkeypatch):
    start = full_precision / "model.safetensors"

    def see(folder, fingerprint):
        raise Seen(fingerprint)

    def fingerprint(recipe="baseline", variant="W1.58A2", changes=SHORT, *more) -> str:
        with pytest.raises(Seen) as caught:
            cli.main(arguments(tmp_path, recipe, variant, changes, "--start", start, *more))
        return str(caught.value)

    monkeypatch.setattr(stage, "prepare", lambda *_, **__: (torch.nn.Linear(1, 1), {}, {}))  # not what is looked at
    monkeypatch.setattr(stage, "State", see)
    base = fingerprint()
    assert fingerprint() == base
    assert fingerprint(changes=SHORT + ",sample.n=50") == base  # sampling has no say in training
    other = {
        "recipe": fingerprint("baseline,low_rank.rank=4"),
        "variant": fingerprint("baseline", "W1.58A4"),
        "lr": fingerprint(changes=SHORT + ",qat.lr=0.5"),
        "threads": fingerprint(changes=SHORT + ",qat.threads=2"),
        "data": fingerprint(changes=SHORT + ",data.held_out=300"),
        "seed": fingerprint("baseline", "W1.58A2", SHORT, "--seed", 1),
    }
    monkeypatch.setattr(stage, "sha256_file", lambda path: "another start")
    other["start"] = fingerprint()
    monkeypatch.setattr(stage.provenance, "code_digest", lambda module: "other code")
    other["code"] = fingerprint()
    assert len({base, *other.values()}) == 1 + len(other)


def test_ranges_are_fitted_on_the_device_that_trains(full_precision, tmp_path, monkeypatch):
    """Not before: twenty intervals of every layer took 100 s on two CPU threads, once, for the gpu preset's model."""
    called = []

    def ends(*_):
        raise Seen

    monkeypatch.setattr(stage, "use", lambda *_: called.append("device") or "cpu")
    monkeypatch.setattr(stage, "fit_timed", lambda *_: called.append("ranges"))
    monkeypatch.setattr(stage, "State", ends)
    with pytest.raises(Seen):
        row = ("quest_selective", "W4A4", SHORT)
        cli.main(arguments(tmp_path, *row, "--start", full_precision / "model.safetensors"))
    assert called == ["device", "ranges"]
