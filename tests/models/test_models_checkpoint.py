"""Checkpoints: exact round trip, and one line for everything that is not the right file."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from robuq_bench.errors import BenchError
from robuq_bench.models import checkpoint


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return {
        "a": torch.tensor([[1.5, -0.0], [float("nan"), 1e-45]]),
        "b": torch.arange(6, dtype=torch.int8).reshape(2, 3).T,
        "c": torch.tensor([1.0, 65504.0], dtype=torch.float16),
    }


@pytest.fixture
def saved(tmp_path, card, tensors):
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, tensors, card("robuq/W1.58A2"))
    return path


def test_round_trip_is_exact(saved, card, tensors):
    loaded, read = checkpoint.load(saved, "trained")
    assert read == card("robuq/W1.58A2") == checkpoint.read_card(saved)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].numpy().tobytes() == np.ascontiguousarray(tensor.numpy()).tobytes()


def test_overridden_recipe_travels(tmp_path, card):
    """The card holds the whole method, so a model can be rebuilt when baselines/ has changed since."""
    own = card("robuq,activation.scale=rms,low_rank.rank=4/W1.58A2")
    checkpoint.save(tmp_path / "m.safetensors", {}, own)
    read = checkpoint.read_card(tmp_path / "m.safetensors")
    assert read.variant.method.activation.scale == "rms" and read.variant.method.low_rank.rank == 4
    assert read == own


def test_card_of_a_diverged_run(tmp_path, card):
    own = card("robuq/W1.58A2", status="diverged", reason="loss is nan at step 3")
    checkpoint.save(tmp_path / "m.safetensors", {}, own)
    assert checkpoint.read_card(tmp_path / "m.safetensors").diverged
    assert not card("robuq/W1.58A2").diverged


def test_nan_in_the_card_is_refused(tmp_path, card):
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.save(tmp_path / "m.safetensors", {}, card("robuq/W1.58A2", facts={"loss": float("nan")}))
    assert [*tmp_path.iterdir()] == []


def test_missing_file(tmp_path, refused):
    path = tmp_path / "none.safetensors"
    refused(lambda: checkpoint.load(path, "trained"), path, "no such checkpoint")
    refused(lambda: checkpoint.read_card(path), path, "no such checkpoint")


@pytest.mark.parametrize("cut", [0, 1, 8, 20, 1000, -200, -1])
def test_truncated_file(saved, cut, refused):
    saved.write_bytes(saved.read_bytes()[:cut])
    refused(lambda: checkpoint.load(saved, "trained"), saved, "truncated or damaged", "run again")
    refused(lambda: checkpoint.read_card(saved), saved, "truncated or damaged")


@pytest.mark.parametrize("content", [b"not safetensors at all", b"\x80\x04pickle", b"\0" * 100])
def test_another_file_format(saved, content, refused):
    saved.write_bytes(content)
    refused(lambda: checkpoint.load(saved, "trained"), saved)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_foreign_safetensors(tmp_path, metadata, refused):
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors", metadata=metadata)
    refused(lambda: checkpoint.load(tmp_path / "x.safetensors", "trained"), "not a checkpoint of this project")


def test_a_folder_is_no_checkpoint(tmp_path, refused):
    refused(lambda: checkpoint.load(tmp_path, "trained"), tmp_path)


def test_another_schema(tmp_path, refused):
    text = json.dumps({"schema": checkpoint.SCHEMA + 1})
    metadata = {checkpoint.KEY: f"{hashlib.sha256(text.encode()).hexdigest()} {text}"}
    save_file({}, tmp_path / "x.safetensors", metadata=metadata)
    refused(lambda: checkpoint.read_card(tmp_path / "x.safetensors"), "another version")


def test_a_record_changed_after_the_fact(saved, refused):
    """The record says what is evaluated, so it is sealed like the tensors."""
    whole = saved.read_bytes()
    assert whole.count(b"smoke") == 1
    saved.write_bytes(whole.replace(b"smoke", b"quick"))
    refused(lambda: checkpoint.read_card(saved), saved, "does not match its hash")


def test_wrong_kind(saved, refused):
    refused(lambda: checkpoint.load(saved, "packed"), saved, "holds a trained model, a packed one is needed")


def test_a_damaged_header_never_ends_in_a_traceback(saved):
    """A flipped bit anywhere before the tensors: refused in one line, or of no consequence for the reading."""
    whole = saved.read_bytes()
    messages = set()
    for count, position in enumerate(range(0, 8 + int.from_bytes(whole[:8], "little"), 7)):
        bad = bytearray(whole)
        bad[position] ^= 1 << count % 8
        saved.write_bytes(bad)
        try:
            checkpoint.load(saved, "trained")
        except BenchError as error:
            messages.add(str(error))
    assert len(messages) > 10 and not any("\n" in message for message in messages)


def test_checkpoint_of_another_model_names_the_tensor(denoiser, spec, refused):
    model = denoiser()
    wider = denoiser(spec=spec.model_copy(update={"width": 64})).state_dict()
    first = min(name for name in model.state_dict())
    refused(lambda: checkpoint.load_into(model, wider, "w.safetensors"), "w.safetensors", "another model", f"'{first}'")
    name = "transformer_blocks.0.ff.net.0.proj.weight"
    fewer = {key: value for key, value in model.state_dict().items() if key != name}
    refused(lambda: checkpoint.load_into(model, fewer, "f"), name, "absent there and [192, 48] in this preset")
    more = model.state_dict() | {"zzz": torch.zeros(3)}
    refused(lambda: checkpoint.load_into(model, more, "m"), "'zzz' is [3] there and absent in this preset")


def test_refused_checkpoint_leaves_the_model_as_it_was(denoiser, refused):
    model = denoiser()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    refused(lambda: checkpoint.load_into(model, denoiser(1).state_dict() | {"zzz": torch.zeros(3)}, "m"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_load_into_takes_every_tensor(denoiser, batch):
    images, time, labels = batch
    mine, theirs = denoiser(0), denoiser(1)
    checkpoint.load_into(mine, theirs.state_dict(), "x")
    with torch.no_grad():
        assert torch.equal(*(m(images, timestep=time, class_labels=labels).sample for m in (mine, theirs)))


def test_failed_write_keeps_the_old_checkpoint(saved, card, tensors):
    before = saved.read_bytes()
    bad = replace(card("robuq/W1.58A2"), facts={"loss": float("inf")})
    with pytest.raises(ValueError):
        checkpoint.save(saved, tensors, bad)
    assert saved.read_bytes() == before and [*saved.parent.iterdir()] == [saved]


def test_the_same_checkpoint_is_the_same_bytes(saved, tmp_path):
    """Hashes of files stand for what is in them, so writing must not depend on the order of a hash map."""
    tensors, card = checkpoint.load(saved, "trained")
    for turn in range(8):
        checkpoint.save(tmp_path / f"{turn}.safetensors", tensors, card)
    assert len({(tmp_path / f"{turn}.safetensors").read_bytes() for turn in range(8)}) == 1
