"""The verb: one JSON with provenance, or one line."""

import pytest

from robuq_bench import cli, provenance
from robuq_bench.engine import packed
from robuq_bench.files import read_json, sha256_file
from robuq_bench.measure.inspect_records import Inspection
from robuq_bench.models import checkpoint


@pytest.fixture
def call(denoiser, converted, card, tmp_path, in_root):
    """Runs the verb on the smoke preset with a random model and a row of it."""
    row = "robuq_uniform/W1.58A2"
    checkpoint.save(tmp_path / "fp.safetensors", denoiser().state_dict(), card("full_precision/W32A32"))
    checkpoint.save(tmp_path / "model.safetensors", converted(row).state_dict(), card(row))
    packed.export(converted(row), card(row), tmp_path / "packed.safetensors")

    def run(**changes) -> int:
        given = {"preset": "smoke", "model": "fp.safetensors", "trained": "model.safetensors"}
        given |= {"packed": "packed.safetensors", "images": 8, "times": 3, "out": "out.json"} | changes
        for name in ("model", "trained", "packed", "out"):
            given[name] = tmp_path / given[name]
        return cli.main(["inspect", *(str(word) for name, value in given.items() for word in (f"--{name}", value))])

    return run


def test_one_record_of_everything(call, tmp_path):
    assert call() == 0
    raw = read_json(tmp_path / "out.json")
    found = Inspection.model_validate(raw)
    assert (found.preset, found.label) == ("smoke", "simulated")
    assert found.activations.times == (1 / 6, 0.5, 5 / 6)
    assert found.activations.layers[0].views["full"].overall.tokens == 3 * 8 * 16
    assert provenance.check(raw, "x")["packed"] == sha256_file(tmp_path / "packed.safetensors") == found.row.packed
    assert found.provenance["model"] == sha256_file(tmp_path / "fp.safetensors")


def test_the_same_call_gives_the_same_figures(call, tmp_path):
    assert call() == call(out="again.json") == 0
    first, second = (read_json(tmp_path / name) for name in ("out.json", "again.json"))
    for record in (first, second):
        record.pop("provenance")
    assert first == second


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": 401}, "--images 401: choose 1 to 400"),
        ({"images": 0}, "--images 0"),
        ({"times": 0}, "--times 0"),
        ({"model": "model.safetensors"}, "checkpoint of another model"),
        ({"packed": "fp.safetensors"}, "a packed one is needed"),
        ({"trained": "fp.safetensors"}, "checkpoint of another model"),
        ({"preset": "quick"}, "checkpoint of another model"),
    ],
)
def test_mistakes_are_one_line(call, capsys, tmp_path, changes, words):
    assert call(**changes) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "out.json").exists()
