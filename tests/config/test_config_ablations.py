"""Ablations: each setting of the committed file is a recipe that can be run, and mistakes are one line."""

import pytest

from robuq_bench.config.ablation import EXAMPLE, Ablation, load_ablation, load_ablations, parse_sweep
from robuq_bench.config.recipe import load_variant


def test_every_setting_of_the_committed_ablations_is_a_valid_recipe(in_root):
    ablations = load_ablations()
    wanted = {"rotation", "low_rank", "quantizer", "ternary", "estimator", "allocation", "attention", "beat_robuq"}
    assert wanted <= ablations.keys()
    for name, ablation in ablations.items():
        rows = ablation.rows()
        methods = [load_variant(recipe, variant) for _, recipe, variant in rows]
        dumps = {method.model_dump_json(exclude={"recipe"}) for method in methods}
        assert len(dumps) == len(rows), f"two settings of '{name}' are the same method"


def test_what_might_beat_robuq_has_no_more_bits_or_parameters(in_root):
    """Average bits of the variant, and a branch with as many parameters as rank 16 in all layers (in widths)."""
    sides = {"qkv": 4, "proj": 2, "fc1": 5, "fc2": 5, "adaln": 7}
    for _, recipe, variant in load_ablation("beat_robuq").rows():
        branch = load_variant(recipe, variant).method.low_rank
        ranks = {kind: part.rank for kind in sides if (part := branch.at(kind))}
        assert sum(sides[kind] * rank for kind, rank in ranks.items()) <= 16 * sum(sides.values()), recipe
        assert variant == "W1.58A2" and branch.largest >= 16


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
        (
            "x: {title: T, question: Q, variants: [W1.58A2], settings: {rank 4: a, Rank-4: b}}",
            ("x: settings", "'rank 4' and 'Rank-4'", "target rank_4"),
        ),
        (
            "x: {title: T, question: Q, variants: [W1.58A2], settings: {one: a, two: b}, expected: {tow: 'worse, x'}}",
            ("'tow' is no setting",),
        ),
        (
            "x: {title: T, question: Q, variants: [W1.58A2], settings: {one: a, two: b}, expected: {two: nicer}}",
            ("x: expected.two", "better|same|worse"),
        ),
    ],
)
def test_bad_files(tmp_path, refused, text, words):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    refused(lambda: load_ablations(path), path, *words)


def test_settings_have_targets():
    raw = {"proj + fc2, full width": "a,rotation.layers=proj+fc2", "None": "a,rotation=null", "rank 0.5": "b"}
    ablation = Ablation(title="T", question="Q", variants=("W1.58A2", "W3A3"), settings=raw)
    assert ablation.targets() == {
        "proj_fc2_full_width": ["a,rotation.layers=proj+fc2/W1.58A2", "a,rotation.layers=proj+fc2/W3A3"],
        "none": ["a,rotation=null/W1.58A2", "a,rotation=null/W3A3"],
        "rank_0.5": ["b/W1.58A2", "b/W3A3"],
    }


def test_no_two_targets_of_all_ablations_are_the_same(in_root):
    names = list(load_ablations())
    names += [f"{name}_{target}" for name, ablation in load_ablations().items() for target in ablation.targets()]
    assert len(set(names)) == len(names)


# Sweeps


def test_a_sweep_is_an_ablation(in_root):
    name, sweep = parse_sweep("robuq_uniform,low_rank.rank=0|4|8/W1.58A2")
    assert name == "sweep-robuq_uniform-low_rank.rank-W1.58A2"
    assert sweep.variants == ("W1.58A2",)
    assert sweep.settings == {f"low_rank.rank={rank}": f"robuq_uniform,low_rank.rank={rank}" for rank in (0, 4, 8)}


def test_what_the_recipe_says_anyway_is_the_recipe_itself(in_root):
    _, sweep = parse_sweep("robuq_uniform,low_rank.rank=16|4,activation.scale=mean_abs/W1.58A2")
    assert list(sweep.settings.values()) == ["robuq_uniform", "robuq_uniform,low_rank.rank=4"]


def test_several_keys_and_variants_are_crossed(in_root):
    name, sweep = parse_sweep(
        "robuq_uniform,low_rank.rank=4|8,rotation.layers=proj+fc2|qkv,attention_bits=null/W1.58A2|W1.58A3"
    )
    assert name == "sweep-robuq_uniform-attention_bits-null-low_rank.rank-rotation.layers-W1.58A2-W1.58A3"
    assert list(sweep.settings) == [
        f"low_rank.rank={rank}, rotation.layers={layers}" for rank in (4, 8) for layers in ("proj+fc2", "qkv")
    ]
    assert sweep.settings["low_rank.rank=8, rotation.layers=qkv"] == (
        "robuq_uniform,attention_bits=null,low_rank.rank=8,rotation.layers=qkv"
    )
    assert len(sweep.rows()) == 8 and sweep.variants == ("W1.58A2", "W1.58A3")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("robuq,low_rnk.rank=4|8/W1.58A2", ("unknown key 'low_rnk'", "did you mean 'low_rank'?")),
        ("robuq,low_rank.rnk=4|8/W1.58A2", ("unknown key 'low_rank.rnk'", "did you mean 'low_rank.rank'?")),
        ("robug,low_rank.rank=4|8/W1.58A2", ("unknown recipe 'robug'", "did you mean 'robuq'?")),
        ("robuq,low_rank.rank=4|8/W1.58A5", ("unknown variant 'W1.58A5'",)),
        ("robuq,low_rank.rank=4|two/W1.58A2", ("low_rank.rank", "'two'")),
        ("robuq,low_rank.rank=4|/W1.58A2", ("values that are there",)),
        ("robuq,low_rank.rank=4|4/W1.58A2", ("and differ",)),
        ("robuq,low_rank.rank=4/W1.58A2", ("no values to choose from", EXAMPLE)),
        ("robuq,low_rank.rank=4|8", ("write recipe,key=value|value/variant", EXAMPLE)),
        ("low_rank.rank", ("write recipe",)),
        ("", ("write recipe",)),
    ],
)
def test_what_is_no_sweep(in_root, refused, text, words):
    refused(lambda: parse_sweep(text), *words)


def test_unknown_name_and_missing_file(in_root, tmp_path, refused):
    refused(lambda: load_ablation("rotatoin"), "did you mean 'rotation'")
    refused(lambda: load_ablations(tmp_path / "none.yaml"), "no such file")
