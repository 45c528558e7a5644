"""Presets: the shipped ones load, mistakes get one line with file, key and allowed values, the schema is in step."""

import json
from pathlib import Path

import pytest
import yaml

from robuq_bench.config.base import build
from robuq_bench.config.preset import Preset, load_preset, schema
from robuq_bench.config.recipe import load_variant
from robuq_bench.files import write_json

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "config"
PRESETS = sorted(p.stem for p in CONFIG.glob("*.yaml") if "model" in yaml.safe_load(p.read_text()))


@pytest.fixture
def folder(tmp_path):
    """`folder(change)`: a folder with the smoke preset, changed."""

    def make(change=lambda raw: None) -> Path:
        raw = yaml.safe_load((CONFIG / "smoke.yaml").read_text())
        change(raw)
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(raw))
        return tmp_path

    return make


def test_there_are_presets():
    assert {"quick", "smoke"} <= set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_loads_and_its_rows_exist(name):
    preset = load_preset(name, folder=CONFIG)
    assert preset.rows and preset.seeds
    for row in preset.rows:
        load_variant(*row.split("/"), folder=ROOT / "baselines")


def test_schema_is_in_step(request):
    path = CONFIG / "schema.json"
    if request.config.getoption("--fix"):
        write_json(path, schema())
    assert json.loads(path.read_text()) == schema(), "run `pytest --fix`"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_name_the_schema_for_editors(name):
    assert (CONFIG / f"{name}.yaml").read_text().startswith("# yaml-language-server: $schema=schema.json\n")


def test_overrides():
    preset = load_preset("smoke", "train.steps=7,sample.guidance=2,data.path=null,train.lr=1e-4", folder=CONFIG)
    assert (preset.train.steps, preset.sample.guidance, preset.data.path, preset.train.lr) == (7, 2.0, None, 1e-4)
    assert preset.qat == load_preset("smoke", folder=CONFIG).qat
    lists = load_preset("smoke", "seeds=[3,4],rows=[robuq/W3A3],train.steps=7", folder=CONFIG)
    assert (lists.seeds, lists.rows, lists.train.steps) == ((3, 4), ("robuq/W3A3",), 7)
    assert load_preset("smoke", "", folder=CONFIG) == load_preset("smoke", folder=CONFIG)


def test_a_path_will_do(folder):
    assert load_preset(str(folder() / "own.yaml")) == load_preset("smoke", folder=CONFIG)


def test_presets_are_frozen():
    preset = load_preset("smoke", folder=CONFIG)
    with pytest.raises(Exception, match="frozen"):
        preset.train.steps = 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ("train.step=1", ("unknown key 'train.step'", "did you mean 'train.steps'?", "train.save_every")),
        ("trian.steps=1", ("unknown key 'trian'", "did you mean 'train'?")),
        ("colour=red", ("unknown key 'colour'", "allowed: ", "title")),
        ("train.steps=many", ("train.steps", "integer", "'many'")),
        ("train.steps=1.5", ("train.steps", "integer", "1.5")),
        ("train.steps=0", ("train.steps", "greater than 0", "found 0")),
        ("train.lr=-1", ("train.lr", "greater than 0")),
        ("train.lr=.nan", ("train.lr",)),
        ("train.lr=.inf", ("train.lr",)),
        ("train.ema=1", ("train.ema", "less than 1")),
        ("sample.guidance=0.5", ("sample.guidance", "greater than or equal to 1")),
        ("sample.scheduler=dpm", ("sample.scheduler", "'flow_euler', 'flow_heun'", "'dpm'")),
        ("sample.scheduler=ddim", ("sample.scheduler ddim does not fit objective flow",)),
        ("objective=ddpm", ("sample.scheduler flow_euler does not fit objective ddpm",)),
        ("pretrained.path=dit", ("train: required, unless `pretrained`",)),
        ("device=tpu", ("device", "'cpu' or 'cuda'", "'tpu'")),
        ("model.heads=5", ("model", "width 48 is not a multiple of heads 5")),
        ("model.patch=3", ("data.size 8 is not a multiple of model.patch 3",)),
        ("train=null", ("train",)),
        ("train.steps=null", ("train.steps", "integer")),
        ("train.steps", ("'train.steps' is not key=value",)),
        ("=3", ("'=3' is not key=value",)),
    ],
)
def test_bad_overrides(changes, words, refused):
    message = refused(lambda: load_preset("smoke", changes, folder=CONFIG), *words)
    assert "smoke.yaml" in message or "--set" in message


@pytest.mark.parametrize("changes", ["title.x=1", "seeds=[0", "train.lr=]"])
def test_overrides_that_are_no_scalar_for_a_key(changes, refused):
    refused(lambda: load_preset("smoke", changes, folder=CONFIG))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw.pop("train"), ("train", "required")),
        (lambda raw: raw["qat"].pop("steps"), ("qat.steps", "required")),
        (lambda raw: raw.update(rows=[]), ("rows",)),
        (lambda raw: raw.update(rows=["robuq"]), ("rows.0", "'robuq'")),
        (lambda raw: raw.update(rows=["robuq/W3A3", "robuq/W3A3"]), ("rows: one stands twice",)),
        (lambda raw: raw.update(seeds=[]), ("seeds",)),
        (lambda raw: raw.update(seeds=["a"]), ("seeds.0", "'a'")),
        (lambda raw: raw.update(seeds=[1, 0, 1]), ("seeds: one stands twice",)),
        (lambda raw: raw.update(seeds=[-1]), ("seeds.0", "greater than or equal to 0")),
        (lambda raw: raw.update(data=3), ("data", "found 3")),
        (lambda raw: raw["data"].update(sise=8), ("unknown key 'data.sise'", "did you mean 'data.size'?")),
    ],
)
def test_bad_files(folder, change, words, refused):
    refused(lambda: load_preset("own", folder=folder(change)), "own.yaml", *words)


def test_further_problems_are_counted(folder, refused):
    def change(raw):
        raw["train"].update(steps=0, batch=0, lr=0)

    refused(lambda: load_preset("own", folder=folder(change)), "train.steps", "(and 2 more)")


@pytest.mark.parametrize(
    ("text", "word"),
    [("a: [1", "not valid YAML"), ("- 1\n- 2\n", "found list"), ("", "found NoneType"), ("a: \x00", "not valid YAML")],
)
def test_not_a_mapping(tmp_path, text, word, refused):
    (tmp_path / "own.yaml").write_text(text)
    refused(lambda: load_preset("own", folder=tmp_path), "own.yaml", word)


def test_not_text(tmp_path, refused):
    (tmp_path / "own.yaml").write_bytes(b"\xff\xfe\x00title")
    refused(lambda: load_preset("own", folder=tmp_path), "own.yaml", "not valid YAML")


def test_unknown_preset(refused):
    refused(lambda: load_preset("smok", folder=CONFIG), "unknown preset 'smok'", "did you mean 'smoke'?", "quick")
    refused(lambda: load_preset("none.yaml"), "none.yaml: no such preset file")


def test_outside_a_checkout(tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    refused(lambda: load_preset("smoke"), "config/: no such folder", "root of a robuq_bench checkout")


def test_rows_outside_the_preset_may_have_seeds_of_their_own():
    preset = load_preset("quick", "seeds=[0,1,2],extra_seeds=[0]")
    assert preset.seeds_of("robuq/W1.58A2") == (0, 1, 2) and preset.seeds_of("terdit/W1.58A32") == (0,)
    seeded = load_preset("quick", "seeds=[0,1,2],extra_seeds=[0],seeded=[terdit/W1.58A32]")
    assert seeded.seeds_of("terdit/W1.58A32") == (0, 1, 2) and seeded.seeds_of("plain_qat/W4A4") == (0,)
    assert load_preset("quick", "seeds=[0,1]").seeds_of("terdit/W1.58A32") == (0, 1)


def test_single_rows_may_have_more_seeds(refused):
    gpu = load_preset("gpu")
    assert gpu.seeds_of("robuq/W1.58A2") == (0, 1, 2, 3, 4, 5) and gpu.seeds_of("robuq/W1.58A3") == (0, 1, 2)
    known = gpu.model_dump()
    twice = known | {"more_seeds": {"robuq/W1.58A2": (2, 3)}}
    refused(lambda: build(Preset, twice, "gpu"), "more_seeds: robuq/W1.58A2 has one of these seeds already")


@pytest.fixture
def derived(tmp_path):
    """`derived(**own)`: a folder with the smoke preset, and `other`, whose models it trains."""

    def make(**own) -> Path:
        (tmp_path / "smoke.yaml").write_text((CONFIG / "smoke.yaml").read_text())
        (tmp_path / "other.yaml").write_text(yaml.safe_dump({"title": "T", "trained_by": "smoke"} | own))
        return tmp_path

    return make


def test_a_preset_may_draw_from_the_models_of_another(derived):
    smoke = load_preset("smoke", folder=CONFIG)
    other = load_preset("other", "sample.lane=25", folder=derived(sample={"steps": 3}))
    changed = smoke.sample.model_copy(update={"steps": 3, "lane": 25})
    assert other == smoke.model_copy(update={"title": "T", "trained_by": "smoke", "sample": changed})


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"qat": {"steps": 3}}, ("qat: is that of 'smoke'", "leave it out")),
        ({"seeds": [1]}, ("seeds: is that of 'smoke'",)),
        ({"trained_by": "smoek"}, ("unknown preset 'smoek'", "did you mean 'smoke'?")),
        ({"trained_by": "other"}, ("'other' trains nothing itself",)),
    ],
)
def test_what_it_trains_is_not_its_to_say(derived, refused, own, words):
    refused(lambda: load_preset("other", folder=derived(**own)), *words)
