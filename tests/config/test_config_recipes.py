"""Recipes: the shipped ones load and are whole, overrides, and one line for parts that do not fit together."""

from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from robuq_bench.config.base import override, parse_overrides
from robuq_bench.config.quantiser import SCALES
from robuq_bench.config.recipe import ACTIVATION_BITS, WEIGHT_BITS, load_recipe, load_variant, parse_variant
from robuq_bench.errors import BenchError
from robuq_bench.quant.formats import SCALE_RULES
from robuq_bench.quant.quantiser import Quantiser

BASELINES = Path(__file__).parents[2] / "baselines"
NAMES = sorted(path.stem for path in BASELINES.glob("*.yaml"))


@pytest.fixture
def folder(tmp_path):
    """`folder(base, change)`: a folder with the recipe `own`, a changed copy of `base`."""

    def make(change=lambda raw: None, base: str = "quest_stable") -> Path:
        raw = yaml.safe_load((BASELINES / f"{base}.yaml").read_text())
        change(raw)
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(raw))
        return tmp_path

    return make


def test_there_are_recipes():
    assert {"full_precision", "quest_stable", "robuq", "bitnet_v2", "baseline"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_is_whole(name):
    """Cited, with what was assumed, and the paper's numbers at variants that exist."""
    recipe = load_recipe(name, BASELINES)
    assert recipe.citation and recipe.assumptions and recipe.variants
    for variant in recipe.variants:
        loaded = load_variant(name, variant, BASELINES)
        assert (loaded.recipe, loaded.name) == (name, variant)
        assert (loaded.weight_bits, loaded.activation_bits) == parse_variant(variant)
    for number in recipe.paper:
        parse_variant(number.variant)
        assert number.setting and number.source


def test_titles_differ():
    titles = [load_recipe(name, BASELINES).title for name in NAMES]
    assert len(set(titles)) == len(titles)


# Overrides


def test_overrides():
    method = load_variant("robuq,activation.scale=rms,low_rank.rank=4", "W1.58A4", BASELINES).method
    plain = load_variant("robuq", "W1.58A4", BASELINES).method
    assert (method.activation.scale, method.low_rank.rank) == ("rms", 4)
    assert (plain.activation.scale, plain.low_rank.rank) == ("mean_abs", 16)
    assert method.rotation == plain.rotation and method.weight == plain.weight


def test_a_block_can_be_left_out_and_put_back():
    assert load_variant("robuq,low_rank=null,rotation=null", "W1.58A4", BASELINES).method.low_rank is None
    added = load_variant("bitnet_v2,low_rank.rank=4", "W1.58A4", BASELINES).method.low_rank
    assert (added.rank, added.init) == (4, "svd")


def test_rank_0_is_no_branch():
    none, zero = (
        load_variant(f"robuq,{change}", "W1.58A4", BASELINES) for change in ("low_rank=null", "low_rank.rank=0")
    )
    assert none.method == zero.method and zero.method.low_rank is None


def test_variants_override_the_recipe_and_are_overridden():
    assert load_variant("robuq", "W3A3", BASELINES).method.weight.format == "midrise"
    assert load_variant("robuq", "W1.58A4", BASELINES).method.weight.format == "ternary"
    own = load_variant("robuq,weight.format=midtread", "W3A3", BASELINES).method.weight
    assert (own.format, own.scale) == ("midtread", "mean_abs")


def test_override_leaves_its_input_alone():
    raw = {"a": {"b": 1, "c": 2}, "d": 3}
    assert override(raw, {"a.b": 9, "e.f": 1, "d": None}) == {"a": {"b": 9, "c": 2}, "d": None, "e": {"f": 1}}
    assert raw == {"a": {"b": 1, "c": 2}, "d": 3}


@given(
    st.dictionaries(
        st.sampled_from(["weight", "weight.scale", "low_rank.rank", "adaln", "a.b.c"]),
        st.one_of(st.integers(-99, 99), st.booleans(), st.none(), st.sampled_from(["rms", "block-128", "x y"])),
        max_size=4,
    )
)
def test_parsed_overrides_are_what_was_written(overrides):
    text = ",".join(f"{key}={'null' if value is None else str(value)}" for key, value in overrides.items())
    assert parse_overrides(text, "x") == overrides


# Mistakes


@pytest.mark.parametrize(
    ("expression", "variant", "words"),
    [
        ("robug", "W1.58A2", ("unknown recipe 'robug'", "did you mean 'robuq'?", "bitnet_v2")),
        ("robuq", "W1.58A5", ("robuq.yaml", "unknown variant 'W1.58A5'", "W1.58A4", "W3A3")),
        ("none.yaml", "W1.58A2", ("none.yaml: no such recipe file",)),
        ("robuq,activation.scal=rms", "W1.58A4", ("unknown key 'activation.scal'", "did you mean 'activation.scale'?")),
        ("robuq,activaton.scale=rms", "W1.58A4", ("unknown key 'activaton'", "did you mean 'activation'?")),
        ("robuq,activation.scale=rsm", "W1.58A4", ("activation.scale", "'rms'", "found 'rsm'")),
        ("robuq,low_rank.rank=two", "W1.58A4", ("low_rank.rank", "integer", "'two'")),
        ("robuq,low_rank.rank=-1", "W1.58A4", ("low_rank.rank", "greater than 0")),
        ("robuq,adaln.activation_bits=5", "W1.58A4", ("adaln.activation_bits", "2, 3, 4, 6, 8 or 32")),
        ("robuq,attention_bits=4", "W1.58A4", ("attention_bits", "8")),
        ("robuq,rotation.kind=half", "W1.58A4", ("rotation.kind", "'full' or 'block-128'", "'half'")),
        ("robuq,activation.scale=minmax", "W1.58A4", ("activation", "'midrise' takes scale mean_abs | rms | absmax")),
        ("robuq,activation.format=asymmetric", "W1.58A4", ("format 'asymmetric' takes scale minmax",)),
        ("robuq,weight.scale=minmax", "W1.58A4", ("weight", "format 'ternary' takes scale conditional_mean |")),
        ("robuq,weight.granularity=token", "W1.58A4", ("weight.granularity", "allowed: tensor, channel")),
        ("robuq,activation.granularity=channel", "W1.58A4", ("activation.granularity", "allowed: tensor, token")),
        ("robuq,weight.format=midrise,weight.scale=rms", "W1.58A4", ("'ternary' goes with W1.58",)),
        ("robuq,weight.format=ternary", "W3A3", ("'ternary' goes with W1.58",)),
        ("robuq,activation=null", "W1.58A4", ("activation must be null exactly when", "A32")),
        ("robuq,weight=null", "W1.58A4", ("training 'qat' needs a weight quantiser",)),
        ("robuq,training=none", "W1.58A4", ("training 'none' takes no weight or activation quantiser",)),
        ("robuq,low_rank", "W1.58A4", ("'low_rank' is not key=value",)),
        ("robuq,low_rnk.rank=4", "W1.58A4", ("unknown key 'low_rnk'", "did you mean 'low_rank'?")),
        ("bitnet_v2,low_rank.rnk=4", "W1.58A4", ("unknown key 'low_rank.rnk'", "did you mean 'low_rank.rank'?")),
        ("robuq,low_rank.rank=4,low_rank.rank=8", "W1.58A4", ("'low_rank.rank' is given twice",)),
        ("robuq,rotation.layers=qvk", "W1.58A4", ("rotation.layers.0", "found 'qvk'; did you mean 'qkv'?")),
        ("robuq,rotation.layers=foo", "W1.58A4", ("'qkv', 'proj', 'fc1', 'fc2' or 'adaln', found 'foo'",)),
        ("robuq,rotation.layers=[]", "W1.58A4", ("rotation.layers", "at least 1 item")),
    ],
)
def test_bad_expressions(expression, variant, words, refused):
    refused(lambda: load_variant(expression, variant, BASELINES), *words)


TIMED = "robuq,activation.format=asymmetric,activation.granularity=tensor,activation.scale=learned"


@pytest.mark.parametrize(
    ("expression", "variant", "words"),
    [
        ("robuq,activation.scale=learned", "W1.58A4", ("format 'midrise' takes scale",)),
        (f"{TIMED},activation.estimator=trust", "W1.58A4", ("no estimator 'trust'", "take estimator 'ste'")),
        (f"{TIMED},activation.centre=true", "W1.58A4", ("'learned' is static", "no centring")),
        (f"{TIMED}", "W1.58A2", ("allocation: scale 'learned'",)),
        ("robuq,activation.buckets=4", "W1.58A4", ("buckets", "only scale 'learned'")),
        ("robuq,weight.scale=rms,weight.threshold=0.7", "W1.58A4", ("threshold", "'conditional_mean'")),
        ("robuq,weight.stretch=0.8", "W1.58A4", ("stretch", "only mean_abs and rms do")),
        ("robuq,activation.step=midrise", "W1.58A4", ("step 'midrise' is for format 'midtread'",)),
        (
            "robuq,activation.format=midtread,activation.scale=absmax,activation.step=midrise",
            "W1.58A4",
            ("with scale mean_abs | rms, not for 'midtread' with 'absmax'",),
        ),
        ("robuq,low_rank.init=zero,low_rank.of=error", "W1.58A4", ("low_rank.of", "take init 'svd'")),
        ("svdquant_ptq,low_rank.init=zero", "W4A4", ("low_rank.init", "stays zero without training")),
        ("svdquant_ptq,loss=distil,deviates=x", "W4A4", ("loss 'distil' has no effect", "training 'qat'")),
        ("svdquant_ptq,schedule.lr=2", "W4A4", ("schedule has no effect", "training 'qat'")),
        ("full_precision,schedule.steps=2", "W32A32", ("takes no schedule",)),
        ("robuq,distil_share=0.5", "W1.58A4", ("distil_share", "take loss 'distil'")),
        ("terdit,schedule.warm_bits=4", "W1.58A32", ("schedule.warm_bits", "activation quantiser")),
        ("robuq,schedule.warm_share=0.5", "W1.58A4", ("nothing is warmed without warm_bits",)),
        ("robuq,activation.format=lloyd_max,allocation=null,schedule.warm_bits=6", "W1.58A2", ("1 to 4 bits, not 6",)),
        ("minmax_ptq,weight.gain=true", "W4A4", ("weight.gain has no effect",)),
        ("full_precision,low_rank.rank=4", "W32A32", ("takes no low_rank",)),
        ("full_precision,attention_bits=8", "W32A32", ("takes no attention_bits",)),
        ("robuq,adaln=null,rotation.layers=adaln", "W1.58A4", ("matches no quantised layer", "qkv, proj, fc1 or fc2")),
        ("terdit,adaln.activation_bits=4", "W1.58A32", ("adaln.activation_bits 4", "at A32 it must be 32")),
        (
            "robuq,activation.format=lloyd_max,adaln.activation_bits=8",
            "W1.58A4",
            ("activation.format 'lloyd_max' has levels for 1 to 4 bits, not 8",),
        ),
    ],
)
def test_parts_that_do_not_go_together(expression, variant, words, refused):
    refused(lambda: load_variant(expression, variant, BASELINES), *words)


@pytest.mark.parametrize(
    ("expression", "variant"),
    [
        (f"{TIMED},activation.buckets=4", "W1.58A4"),
        ("robuq,activation.format=midtread,activation.step=midrise", "W1.58A4"),
        ("robuq,weight.threshold=0.7", "W1.58A4"),
        ("robuq,adaln=null,rotation.layers=adaln+qkv", "W1.58A4"),
        ("robuq,low_rank.init=zero", "W1.58A4"),
        ("terdit,adaln=null", "W1.58A32"),
    ],
)
def test_parts_that_do(expression, variant):
    load_variant(expression, variant, BASELINES)


@pytest.mark.parametrize("expression", ["robuq,title.x=1", "robuq,low_rank=]", "robuq,low_rank.rank.x=1"])
def test_overrides_that_are_no_scalar_for_a_key(expression, refused):
    refused(lambda: load_variant(expression, "W1.58A4", BASELINES))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw.pop("citation"), ("citation", "required")),
        (lambda raw: raw.pop("assumptions"), ("assumptions", "required")),
        (lambda raw: raw.update(wieght={}), ("unknown key 'wieght'", "did you mean 'weight'?")),
        (lambda raw: raw.update(variants={"W5A2": {}}), ("'W5A2' is no variant", "1.58, 2, 3, 4", "W1.58A2")),
        (lambda raw: raw.update(variants={"A2W3": {}}), ("'A2W3' is no variant",)),
        (lambda raw: raw.update(variants={"W3A3": 3}), ("variants.W3A3",)),
        (lambda raw: raw.update(variants=["W3A3"]), ("variants", "dictionary")),
        (lambda raw: raw.update(training="sometimes"), ("training", "'none'", "'qat'", "'sometimes'")),
        (lambda raw: raw.update(paper=[{"variant": "W3A3"}]), ("paper.0.metric", "required")),
        (lambda raw: raw["weight"].update(format="quaternary"), ("weight.format", "'ternary'", "'midrise'")),
    ],
)
def test_bad_files(folder, change, words, refused):
    refused(lambda: load_variant("own", "W3A3", folder(change)), "own.yaml", *words)


@pytest.mark.parametrize("change", [{"loss": "distil"}, {"schedule": {"lr": 2}}])
def test_a_recipe_says_how_its_training_differs(folder, refused, change):
    refused(lambda: load_variant("own", "W3A3", folder(lambda raw: raw.update(change))), "own.yaml", "deviates")
    load_variant("own", "W3A3", folder(lambda raw: raw.update(change, deviates="so")))
    load_variant("own,loss=distil", "W3A3", folder())


def test_bad_overrides_of_a_variant_name_the_variant(folder, refused):
    def change(raw):
        raw["variants"]["W3A3"] = {"weight.scale": "minmax"}

    refused(lambda: load_variant("own", "W3A3", folder(change)), "own.yaml at W3A3", "weight")
    load_variant("own", "W4A4", folder(change))


@pytest.mark.parametrize("text", ["W1.58A2", "W4A4", "W32A32", "W3A1", "W8A8"])
def test_variants_are_read(text):
    weights, activations = parse_variant(text)
    assert f"W{weights:g}A{activations}" == text


@pytest.mark.parametrize("text", ["", "W1.58", "A2", "W1.5A2", "W2A5", "w2a2", "W2A2 ", "W2.A2", "W02A2x"])
def test_no_variant(text):
    with pytest.raises(ValueError, match=r"is no variant; write W<1\.58, 2, 3, 4"):
        parse_variant(text)


def settings(part: str) -> list[tuple[str, str]]:
    """Changes of `part` to every format, scale and step, with the changes' text."""
    pairs = [(f, s) for f, scales in SCALES.items() for s in scales if s in SCALE_RULES]
    return [
        f"{part}.format={format},{part}.scale={scale},{part}.step={step},{part}.estimator=ste"
        for (format, scale), step in product(pairs, ("own", "midrise"))
    ]


def test_whatever_is_accepted_can_be_computed(folder):
    """Every format, scale, step table and width: refused in one line, or a quantiser that works."""

    def change(raw):
        raw["variants"] = {f"W{w:g}A{a}": {} for w in WEIGHT_BITS for a in ACTIVATION_BITS}
        raw.update(paper=[], assumptions=["x"])  # quick to read

    own, x, broken, works = folder(change), torch.randn(2, 64), [], 0
    ways = [("weight", f"W{w:g}A4") for w in WEIGHT_BITS] + [("activation", f"W4A{a}") for a in ACTIVATION_BITS]
    for part, variant in ways:
        for changes in settings(part):
            try:
                loaded = load_variant(f"own,{changes}", variant, own)
            except BenchError:
                continue
            bits = loaded.weight_bits if part == "weight" else loaded.activation_bits
            try:
                assert torch.isfinite(Quantiser(getattr(loaded.method, part), bits)(x)).all()
                works += 1
            except (KeyError, RuntimeError, OverflowError, AssertionError) as error:
                broken.append(f"{variant} {changes}: {type(error).__name__} {error}")
    assert not broken, "\n".join(broken)
    assert works > 50
