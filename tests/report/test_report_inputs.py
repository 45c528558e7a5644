"""What does not belong together is refused in one line that names the file."""

import pytest


def refusal(lab, capsys, *arguments: str) -> str:
    """The one line that `robuq-bench table` prints when it refuses; nothing is written."""
    assert lab.table(*arguments) == 2
    assert not (lab.root / "results/table.json").exists()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("file", ["train.json", "metrics.json", "measure.json", "packed.safetensors"])
def test_missing_file(lab, capsys, file):
    (lab.folder("beta/W1.58A2") / file).unlink()
    assert f"results/beta/W1.58A2/seed0/{file}: no such" in refusal(lab, capsys)


def test_missing_floor(lab, capsys):
    (lab.root / "results/reference/floor.json").unlink()
    assert "results/reference/floor.json: no such file" in refusal(lab, capsys)


@pytest.mark.parametrize("file", ["train.json", "metrics.json", "measure.json"])
def test_missing_provenance(lab, capsys, file):
    lab.change(f"beta/W1.58A2/seed0/{file}", provenance={"version": "0.1.0"})
    message = refusal(lab, capsys)
    assert f"seed0/{file}: provenance lacks commit, dirty, python" in message


@pytest.mark.parametrize("file", ["metrics.json", "measure.json"])
def test_another_model_than_the_packed_one(lab, capsys, file):
    lab.change(f"beta/W1.58A2/seed0/{file}", packed="f" * 64)
    message = refusal(lab, capsys)
    assert f"beta/W1.58A2/seed0/{file}: is about another model (SHA-256 ffffffff…)" in message


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("scores__n", 9, "n is 9, but 8 in results/full"),
        ("scores__extractor", "EffNetLite0", "extractor is EffNetLite0, but Pixels in results/reference/floor.json"),
        ("scores__digest", "other", "extractor digest is other"),
        ("scores__protocol", "other", "feature protocol is other"),
        ("scores__n_reference", 99, "n_reference is 99"),
        ("protocol__steps", 4, "sampling steps is 4, but 5"),
        ("protocol__guidance", 4.0, "sampling guidance is 4.0, but 1.5"),
    ],
)
def test_rows_that_cannot_stand_in_one_table(lab, capsys, key, value, expected):
    lab.change("beta/W1.58A2/seed0/metrics.json", **{key: value})
    message = refusal(lab, capsys)
    assert "results/beta/W1.58A2/seed0/metrics.json: " in message
    assert expected in message


def test_sampling_of_a_diverged_row_counts_too(lab, capsys):
    lab.run("beta/W1.58A2", diverged="loss is nan")
    lab.change("beta/W1.58A2/seed0/metrics.json", protocol__steps=4)
    assert "sampling steps is 4, but 5" in refusal(lab, capsys)


@pytest.mark.parametrize(
    ("file", "key", "named"),
    [
        ("train.json", "held_out_loss", "train.json: held_out_loss"),
        ("metrics.json", "scores", "metrics.json: scores"),
        ("measure.json", "size", "measure.json: size"),
    ],
)
def test_a_number_missing_from_a_row_that_did_not_diverge(lab, capsys, file, key, named):
    lab.change(f"beta/W1.58A2/seed0/{file}", **{key: None})
    assert f"{named} is missing though the run did not diverge" in refusal(lab, capsys)


def test_not_a_number(lab, capsys):
    path = lab.folder("beta/W1.58A2") / "metrics.json"
    path.write_text(path.read_text().replace('"FD": 4.5', '"FD": NaN'))
    assert "metrics.json: scores.FD: Input should be a finite number" in refusal(lab, capsys)


def test_damaged_json(lab, capsys):
    (lab.folder("beta/W1.58A2") / "measure.json").write_text("[]")
    assert "measure.json: provenance lacks version" in refusal(lab, capsys)
    (lab.folder("beta/W1.58A2") / "measure.json").write_text("{")
    assert "measure.json: not valid JSON" in refusal(lab, capsys)


def test_a_model_in_the_wrong_folder(lab, capsys):
    lab.run("alpha/W1.58A4", seed=3)
    lab.folder("alpha/W1.58A4", 3).rename(lab.folder("alpha/W1.58A4", 0))
    assert "holds alpha/W1.58A4 seed 3, not alpha/W1.58A4 seed 0" in refusal(lab, capsys, "--rows", "alpha/W1.58A4")


def test_a_recipe_changed_since_training(lab, capsys):
    lab.recipe("beta", title="Beta", low_rank={"rank": 2})
    assert "another version of recipe 'beta' (low_rank changed since)" in refusal(lab, capsys)


def test_new_words_about_a_recipe_need_no_training(lab):
    lab.recipe("beta", title="Better", assumptions=["one", "two"])
    assert lab.table() == 0
    assert "Better" in lab.text(".md")


def test_a_seed_that_was_not_run(lab, capsys):
    lab.preset(seeds=[0, 1])
    assert "results/alpha/W1.58A2/seed1/metrics.json: no such file" in refusal(lab, capsys)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("gamma/W1.58A2", "unknown recipe 'gamma'"),
        ("alpha/W1.58A3", "unknown variant 'W1.58A3'"),
        ("alpha", "write recipe/variant"),
    ],
)
def test_unknown_rows(lab, capsys, row, expected):
    assert expected in refusal(lab, capsys, "--rows", row)
