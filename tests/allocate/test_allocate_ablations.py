"""An ablation as a preset runs it: its own variants, and nothing that has no price there."""

import pytest

from robuq_bench.allocate.ablations import for_preset, study_rows
from robuq_bench.config.ablation import load_ablations
from robuq_bench.config.preset import load_preset
from robuq_bench.config.recipe import full_rows


@pytest.fixture
def ablations(in_root):
    return load_ablations()


def test_the_preset_names_the_variants(ablations):
    preset = load_preset("smoke", "ablations.rotation=[W1.58A2,W1.58A4]")
    found, left_out = for_preset(preset, "rotation", ablations["rotation"])
    assert found.variants == ("W1.58A2", "W1.58A4") and not left_out
    assert found.settings == ablations["rotation"].settings


def test_other_ablations_keep_theirs(ablations):
    preset = load_preset("smoke", "ablations.rotation=[W1.58A4]")
    assert for_preset(preset, "low_rank", ablations["low_rank"]) == (ablations["low_rank"], {})


def test_what_has_no_measured_time_is_left_out_with_its_reason(ablations):
    """No engine table holds the layers of the smoke preset's model; everything else of the ablation runs."""
    found, left_out = for_preset(load_preset("smoke"), "allocation", ablations["allocation"])
    assert list(left_out) == ["AMPN, measured latency"]
    assert set(ablations["allocation"].settings) - set(found.settings) == set(left_out)
    assert "W1.58A1" in left_out["AMPN, measured latency"] or "engine" in left_out["AMPN, measured latency"]


def test_a_variant_that_a_recipe_lacks_is_refused(ablations, refused):
    preset = load_preset("smoke", "ablations.construction=[W4A4]")
    refused(lambda: for_preset(preset, "construction", ablations["construction"]), "unknown variant 'W4A4'")


def test_nothing_left_to_compare(ablations, refused):
    short = ablations["allocation"].model_copy(
        update={"settings": {"a": "robuq,allocation.cost=latency", "b": "robuq_uniform"}}
    )
    refused(lambda: for_preset(load_preset("smoke"), "allocation", short), "ablation allocation: ")


def test_a_seeded_row_is_one_of_the_study(ablations, refused):
    preset = load_preset("smoke", "seeded=[robuk/W1.58A2]")
    refused(lambda: study_rows(preset, ablations, full_rows()), "seeded: 'robuk/W1.58A2' is no row")
    preset = preset.model_copy(update={"seeded": (), "more_seeds": {"robuk/W1.58A2": (3,)}})
    refused(lambda: study_rows(preset, ablations, full_rows()), "more_seeds: 'robuk/W1.58A2' is no row")


def test_the_study_has_every_row_once(ablations):
    preset = load_preset("smoke", "ablations.rotation=[W1.58A2],ablations.construction=[W1.58A4]")
    rows = study_rows(preset, ablations, full_rows())
    assert len(set(rows)) == len(rows) and rows[: len(preset.rows)] == list(preset.rows)
    assert set(full_rows()) < set(rows)
    assert {"robuq_uniform,rotation=null/W1.58A2", "baseline,rotation.layers=proj+fc2/W1.58A4"} <= set(rows)
    assert not any("low_rank" in row for row in rows), "an ablation that the preset does not name"


def test_the_full_table_goes_from_wide_to_narrow(in_root):
    rows = full_rows()
    assert rows[0] == "full_precision/W32A32" and rows[-1].endswith("W1.58A2")
    assert {row.partition("/")[0] for row in rows} == {path.stem for path in (in_root / "baselines").glob("*.yaml")}
