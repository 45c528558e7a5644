"""A packed file is data from anywhere: it is refused in one line or read as it was written, never believed."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from robuq_bench.engine import packed
from robuq_bench.engine.layout import Field, layout
from robuq_bench.errors import BenchError
from robuq_bench.models import checkpoint

ROW = "robuq/W1.58A2"
QKV = "transformer_blocks.1.attn1.to_qkv"


@pytest.fixture
def sound(latent_file):
    """(path, tensors, card) of a packed file."""
    path = latent_file(ROW)
    return path, *checkpoint.load(path, "packed")


def rewrite(path, tensors, card):
    """Write whatever is given with a true content hash, as a forger would."""
    facts = {**card.facts, "content": packed.content(tensors)}
    checkpoint.save(path, tensors, replace(card, facts=facts))
    return path


def test_the_layout_is_what_export_writes(each_row, latent_file):
    path = latent_file(each_row)
    written = {name: Field(tensor.dtype, tuple(tensor.shape)) for name, tensor in load_file(path).items()}
    assert layout(checkpoint.read_card(path)) == written


LIES = [
    ("model.depth", 10**9, "1000000000 blocks, but only"),
    ("model.depth", 3, "bits per layer do not fit its 3 blocks"),
    ("model.width", 1 << 40, "its card wants"),
    ("model.heads", 10**12, "heads 1000000000000"),
    ("model.patch", 10**9, "no multiple of patch"),
    ("model.patch", 3, "no multiple of patch"),
    ("model.patch", 4, "its card wants"),
    ("shape.size", 10**9, "more than 16384 tokens"),
    ("shape.size", 10, None),
    ("shape.channels", 10**9, "its card wants"),
    ("shape.channels", 0, "shape.channels"),
    ("shape.classes", 10**12, "its card wants"),
    ("shape.classes", -1, "shape.classes"),
    ("seed", "x", "seed"),
    ("status", "fine", "status"),
    ("variant.method.low_rank.rank", 1 << 40, "rank 1099511627776 in a width of 128"),
    ("variant.method.low_rank.rank", 15, "its card wants"),
    ("variant.method.activation.buckets", 10**12, "buckets"),
    ("variant.method.rotation.signs", False, "signs"),
    ("variant.method.weight.granularity", "tensor", "its card wants"),
    ("variant.method.adaln", None, "its card wants"),
    ("variant.weight_bits", 17, "weights of 17 bits"),
    ("variant.weight_bits", 32, "weights of 32 bits"),
]


@pytest.mark.parametrize(("key", "value", "word"), LIES)
def test_a_card_that_lies(sound, replaced, monkeypatch, key, value, word):
    """Refused before a model is built; what changes no tensor's shape may pass, the file is then a sound one."""
    path, tensors, card = sound
    rewrite(path, tensors, replaced(card, key, value))
    monkeypatch.setattr(packed, "skeleton", lambda card: pytest.fail("a model was built"))
    if word is None:
        packed.read(path)
        return
    with pytest.raises(BenchError) as caught:
        packed.load(path)
    assert word in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bits",
    [
        {"blocks.0.qkv": 17},
        {"blocks.0.qkv": 0},
        {"blocks.0.qkv": -2},
        {"blocks.9.qkv": 2},
        {"blocks.0.qkv\n": 2},
    ],
)
def test_bits_that_no_model_has(sound, refused, bits):
    path, tensors, card = sound
    rewrite(path, tensors, replace(card, bits=card.bits | bits))
    refused(lambda: packed.read(path), path, "bits per layer do not fit its 2 blocks")


def test_bits_without_levels(sound, replaced, refused):
    path, tensors, card = sound
    lloyd = replaced(card, "variant.method.activation.format", "lloyd_max")
    lloyd = replaced(lloyd, "variant.method.allocation", None)
    rewrite(path, tensors, replace(lloyd, bits=card.bits | {"blocks.0.qkv": 8}))
    refused(lambda: packed.read(path), path, "format 'lloyd_max' has no levels for 8 bits")


def put(name, value):
    def change(tensors):
        tensors[name].view(-1)[-1] = value

    return change


def resize(name, *shape, dtype=torch.float16):
    def change(tensors):
        tensors[name] = torch.ones(shape, dtype=dtype)

    return change


FORGERIES = {
    "NaN scale": (put(f"{QKV}.step", torch.nan), "values that are not finite"),
    "infinite scale": (put(f"{QKV}.step", torch.inf), "values that are not finite"),
    "negative scale": (put(f"{QKV}.step", -1e-3), "holds negative scales"),
    "NaN bias": (put("proj_out_2.bias", torch.nan), "values that are not finite"),
    "infinite branch": (put(f"{QKV}.up", -torch.inf), "values that are not finite"),
    "no trits": (put(f"{QKV}.codes", 243), "blocks.1.qkv: damaged packed weights"),
    "scale missing": (lambda t: t.pop(f"{QKV}.step"), ".step' is absent, its card wants"),
    "bias missing": (lambda t: t.pop("proj_out_2.bias"), "'proj_out_2.bias' is absent"),
    "one too many": (resize("more\nthan that", 3), "'more\\nthan that' is torch.float16 [3], its card wants absent"),
    "codes too short": (resize(f"{QKV}.codes", 7, dtype=torch.uint8), "is torch.uint8 [7], its card wants"),
    "codes of floats": (resize(f"{QKV}.codes", 9831), "its card wants torch.uint8 [9831]"),
    "branch too wide": (resize(f"{QKV}.up", 384, 17), "[384, 17], its card wants"),
    "bfloat16": (resize("proj_out_2.bias", 16, dtype=torch.bfloat16), "torch.bfloat16 [16]"),
    "float8": (resize("proj_out_2.bias", 16, dtype=torch.float8_e4m3fn), "torch.float8_e4m3fn [16]"),
    "scalar": (resize("proj_out_2.bias"), "is torch.float16 [], its card wants"),
    "empty": (dict.clear, "2 blocks, but only 0 tensors"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_tensors_with_a_true_hash(sound, refused, monkeypatch, name):
    path, tensors, card = sound
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    change, word = FORGERIES[name]
    change(tensors)
    monkeypatch.setattr(packed, "content", lambda tensors: "the forger's own")
    rewrite(path, tensors, card)
    refused(lambda: packed.read(path), path, word)


def test_export_refuses_what_read_would(sound, refused, tmp_path):
    _, tensors, card = sound
    tensors[f"{QKV}.step"] = -tensors[f"{QKV}.step"]
    refused(lambda: packed.write(tmp_path / "new.safetensors", tensors, card), "negative scales")
    assert not (tmp_path / "new.safetensors").exists()


def header(**entries) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


HUGE = {"dtype": "F16", "shape": [1 << 40], "data_offsets": [0, 1 << 41]}
FOREIGN = {
    "nothing": b"",
    "text": b"hello, this is no model",
    "zeros": bytes(1000),
    "zip": b"PK\3\4" + bytes(100),
    "header longer than the file": (1 << 62).to_bytes(8, "little") + b"{}",
    "header of 100 MB that is not there": (100_000_000).to_bytes(8, "little") + b"{",
    "huge tensor": header(x=HUGE),
    "overflowing shape": header(x=HUGE | {"shape": [1 << 63, 1 << 63, 4]}),
    "negative shape": header(x=HUGE | {"shape": [-1]}),
    "unknown type": header(x=HUGE | {"dtype": "F17"}),
    "no record": header(__metadata__={"a": "b"}),
    "empty record": header(__metadata__={"robuq_bench": ""}),
    "no tensors": header(),
    "list": (2).to_bytes(8, "little") + b"[]",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files(tmp_path, refused, name):
    path = tmp_path / "p.safetensors"
    path.write_bytes(FOREIGN[name])
    refused(lambda: packed.load(path), path)
    refused(lambda: checkpoint.read_card(path), path)


@pytest.mark.parametrize("text", ["[" * 100_000, "null", "[]", "{}", "9" * 5000, '{"schema": 1}', '"x"'])
def test_records_that_are_no_cards(tmp_path, refused, text):
    path = tmp_path / "p.safetensors"
    path.write_bytes(header(__metadata__={"robuq_bench": f"{hashlib.sha256(text.encode()).hexdigest()} {text}"}))
    refused(lambda: packed.load(path), path)


def test_a_folder_is_no_file(tmp_path, refused):
    refused(lambda: packed.load(tmp_path), tmp_path)


def test_damaged_bytes_anywhere(sound, tmp_path):
    """Flip or cut whatever: a BenchError of one line, or the very same card and content."""
    original, tensors, card = sound
    path, whole, content = tmp_path / "damaged.safetensors", original.read_bytes(), packed.content(tensors)
    head = 8 + int.from_bytes(whole[:8], "little")
    positions = st.one_of(st.integers(0, head - 1), st.integers(0, len(whole) - 1))
    refusals = []

    @settings(max_examples=150)
    @given(
        flips=st.lists(st.tuples(positions, st.integers(1, 255)), max_size=4),
        cut=st.one_of(st.none(), st.integers(0, len(whole))),
        more=st.binary(max_size=3),
    )
    def damage(flips, cut, more):
        bad = bytearray(whole)
        for position, mask in flips:
            bad[position] ^= mask
        path.write_bytes(bytes(bad[:cut]) + more)
        try:
            stored = packed.read(path)
        except BenchError as error:
            assert "\n" not in str(error)
            refusals.append(error)
        else:
            assert packed.content(checkpoint.load(path, "packed")[0]) == content
            assert stored.card == card

    damage()
    assert len(refusals) > 75
