"""A study that was cut: what is there is taken, what is missing is named."""

import shutil

import yaml

from robuq_bench.cli import main
from robuq_bench.config.ablation import Ablation as Plan
from robuq_bench.config.preset import load_preset
from robuq_bench.report.ablation_stage import comparable
from robuq_bench.report.partial import read_available
from robuq_bench.report.records import Ablation, read_record

ROWS = ["full/W32A32", "alpha/W1.58A2", "beta/W1.58A2"]


def test_seeds_that_are_there_count(lab):
    lab.preset(seeds=[0, 1, 2])
    for seed, distance in ((1, 2.5), (2, 2.75)):
        lab.run("alpha/W1.58A2", seed, FD=distance)
    (lab.folder("alpha/W1.58A2", 2) / "measure.json").unlink()
    results, left_out = read_available(lab.results, load_preset("tiny"), ROWS)
    assert [row.key for row in results.rows] == ROWS
    assert results.rows[1].figures["FD"].values == (2.25, 2.5) and results.rows[1].rank == 1
    assert left_out == {"alpha/W1.58A2": "seed 2 not run", "beta/W1.58A2": "seed 1, 2 not run"}


def test_more_seeds_of_a_single_row(lab):
    lab.preset(seeds=[0, 1], more_seeds={"alpha/W1.58A2": [2, 3]})
    for seed, distance in ((1, 2.5), (2, 2.75)):
        lab.run("alpha/W1.58A2", seed, FD=distance)
    results, left_out = read_available(lab.results, load_preset("tiny"), ROWS)
    assert results.rows[1].figures["FD"].values == (2.25, 2.5, 2.75) and len(results.rows[2].runs) == 1
    assert left_out == {"alpha/W1.58A2": "seed 3 not run", "beta/W1.58A2": "seed 1 not run"}


def test_no_row_at_all_is_one_line(lab, refused):
    refused(lambda: read_available(lab.results, load_preset("tiny"), ["alpha/W1.58A4"]), "no run of these rows")


def test_an_ablation_keeps_what_has_a_reference(scored, refused):
    plan = Plan(
        title="T", question="Q", variants=("W1.58A2", "W1.58A4"), settings={"ref": "a", "one": "b", "two": "c"},
    )  # fmt: skip
    names = {"a": "ref", "b": "one", "c": "two"}
    found = [(names[key[0]], scored(key, 1.0)) for key in ("a/W1.58A2", "b/W1.58A2", "b/W1.58A4")]
    kept, left_out = comparable("x", plan, found, {"c/W1.58A2": "not run", "a/W1.58A4": "not run"})
    assert [row.key for _, row in kept] == ["a/W1.58A2", "b/W1.58A2"]
    assert left_out == {
        "two, W1.58A2": "not run",
        "ref, W1.58A4": "not run",
        "one, W1.58A4": "its reference was not run",
        "two, W1.58A4": "its reference was not run",
    }
    refused(lambda: comparable("x", plan, found[:1], {}), "'ref' and another setting")
    refused(lambda: comparable("x", plan, found[2:], {}), "'ref' and another setting")


def test_an_ablation_of_what_is_there(lab):
    """Alpha at A2 against Beta, and nothing at A4."""
    (lab.root / "workflows").mkdir()
    plan = {
        "title": "T",
        "question": "Q",
        "variants": ["W1.58A2", "W1.58A4"],
        "settings": {"ref": "alpha", "one": "beta"},
    }
    (lab.root / "workflows/ablations.yaml").write_text(yaml.safe_dump({"x": plan}, sort_keys=False))
    arguments = ["--preset", "tiny", "--name", "x", "--results", "results", "--out", "x.json"]
    assert main(["ablate", *arguments]) == 2
    assert main(["ablate", *arguments, "--partial"]) == 0
    record = read_record(lab.root / "x.json", Ablation)
    assert [(row["setting"], row["variant"], row["difference"]) for row in record.rows] == [
        ("ref", "W1.58A2", None),
        ("one", "W1.58A2", 2.25),
    ]
    assert "'ref, W1.58A4' was left out: not run." in record.note and "W1.58A4" not in record.sentence


def test_a_table_of_what_is_there_says_what_is_not(lab):
    shutil.rmtree(lab.folder("beta/W1.58A2"))
    assert lab.table() == 2
    assert lab.table("--partial") == 0
    assert "Not whole: beta/W1.58A2: not run." in lab.text(".md")
    assert lab.report() == 0
