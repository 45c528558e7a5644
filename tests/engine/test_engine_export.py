"""The verb `export`: a trained checkpoint in, a packed file out; a diverged row keeps its mark."""

import pytest
import torch

from robuq_bench import cli
from robuq_bench.engine import packed
from robuq_bench.models import checkpoint


@pytest.fixture
def paths(tmp_path):
    return tmp_path / "model.safetensors", tmp_path / "out" / "packed.safetensors"


def export(paths) -> int:
    return cli.main(["export", "--model", str(paths[0]), "--packed", str(paths[1])])


def test_export(paths, converted, card, batch):
    model = converted("robuq/W1.58A2").eval()
    checkpoint.save(paths[0], model.state_dict(), card("robuq/W1.58A2"))
    assert export(paths) == 0
    loaded, read = packed.load(paths[1])
    assert read.facts["held_out_loss"] == card("robuq/W1.58A2").facts["held_out_loss"]
    images, time, labels = batch
    with torch.no_grad():
        before, after = (m(images, timestep=time, class_labels=labels).sample for m in (model, loaded))
    assert (after - before).norm() < 0.05 * before.norm()


def test_export_is_deterministic(paths, tmp_path, converted, card):
    checkpoint.save(paths[0], converted("robuq/W1.58A2").state_dict(), card("robuq/W1.58A2"))
    export(paths)
    export((paths[0], tmp_path / "again.safetensors"))
    assert paths[1].read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_diverged_card_travels_through(paths, card):
    own = card("robuq/W1.58A2", status="diverged", reason="loss is inf at step 1")
    checkpoint.save(paths[0], {}, own)
    assert export(paths) == 0
    read = checkpoint.read_card(paths[1])
    assert (read.kind, read.status, read.reason) == ("packed", "diverged", "loss is inf at step 1")


def test_missing_model(paths, capsys):
    assert export(paths) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no such checkpoint" in error and str(paths[0]) in error
    assert not paths[1].exists()


def test_checkpoint_that_does_not_fit_its_card(paths, converted, card, capsys):
    checkpoint.save(paths[0], converted("baseline/W1.58A2").state_dict(), card("bitnet_v2/W1.58A4"))
    assert export(paths) == 2
    assert "another model" in capsys.readouterr().err
    assert not paths[1].exists()
