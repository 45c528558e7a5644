"""Ablations: each setting of the committed file is a recipe that can be run, and mistakes are one line."""

import pytest

from robuq_bench.config.ablation import load_ablation, load_ablations
from robuq_bench.config.recipe import load_variant


def test_every_setting_of_the_committed_ablations_is_a_valid_recipe(in_root):
    ablations = load_ablations()
    for name in ("rotation", "low_rank", "quantizer", "ternary", "estimator", "allocation", "attention"):
        rows = ablations[name].rows()
        methods = [load_variant(recipe, variant) for _, recipe, variant in rows]
        dumps = {method.model_dump_json(exclude={"recipe"}) for method in methods}
        assert len(dumps) == len(rows), f"two settings of '{name}' are the same method"


def test_rows_are_all_settings_at_each_variant(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("x: {title: T, question: Q, variants: [W1.58A2, W1.58A3], settings: {one: a, two: b}}")
    assert load_ablation("x", path).rows() == [
        ("one", "a", "W1.58A2"),
        ("two", "b", "W1.58A2"),
        ("one", "a", "W1.58A3"),
        ("two", "b", "W1.58A3"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x: {title: T, question: Q, variants: [W1.58A2], settings: {one: a}}", ("x: settings",)),
        ("x: {title: T, question: Q, variants: [W1.58A2], setings: {one: a, two: b}}", ("setings", "settings")),
        ("- a", ("expected a mapping",)),
    ],
)
def test_bad_files(tmp_path, refused, text, words):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    refused(lambda: load_ablations(path), path, *words)


def test_unknown_name_and_missing_file(in_root, tmp_path, refused):
    refused(lambda: load_ablation("rotatoin"), "did you mean 'rotation'")
    refused(lambda: load_ablations(tmp_path / "none.yaml"), "no such file")
