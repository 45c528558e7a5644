"""Held-out losses of trained runs: means over seeds, paired tests, and what is not scored."""

import json

import pytest

from robuq_bench import cli

PROVENANCE = dict.fromkeys(
    ("version", "commit", "dirty", "python", "packages", "machine", "device", "command", "time", "seconds"), "x"
)


def trained(folder, row: str, losses: dict[int, float | None], scored: bool = False) -> None:
    for seed, loss in losses.items():
        place = folder / row / f"seed{seed}"
        place.mkdir(parents=True)
        status = {"status": "ok", "reason": ""} if loss else {"status": "diverged", "reason": "loss is nan at step 3"}
        record = {**status, "losses": [1.0], "held_out_loss": loss, "provenance": PROVENANCE}
        (place / "train.json").write_text(json.dumps({k: v for k, v in record.items() if v is not None}))
        if scored:
            (place / "metrics.json").write_text("{}")


@pytest.fixture
def page(in_root, tmp_path):
    """(record, Markdown) of three rows at one variant, one of them diverged, and one at another."""
    results = tmp_path / "results"
    trained(results, "robuq/W1.58A2", {0: 0.1, 1: 0.2, 2: 0.3}, scored=True)
    trained(results, "baseline/W1.58A2", {0: 0.2, 1: 0.31, 2: 0.39})
    trained(results, "bitnet_v2/W1.58A4", {0: 0.5})
    trained(results, "robuq_uniform/W1.58A2", {0: 0.4, 1: None})
    command = ["losses", "--preset", "smoke", "--results", str(results), "--out", str(tmp_path / "losses")]
    assert cli.main(command) == 0
    return json.loads((tmp_path / "losses.json").read_text()), (tmp_path / "losses.md").read_text()


def test_means_over_seeds_lowest_first(page):
    rows = [row for row in page[0]["rows"] if row["variant"] == "W1.58A2"]
    assert [row["recipe"] for row in rows] == ["robuq", "baseline", "robuq_uniform"]
    assert [row["mean"] for row in rows] == [pytest.approx(0.2), pytest.approx(0.3), None]
    assert rows[0]["half_width"] == pytest.approx(4.302653 * 0.1 / 3**0.5)  # t of 2 degrees of freedom


def test_gaps_are_paired_by_seed(page):
    """Gaps 0.10, 0.11, 0.09: mean 0.10, standard error 0.01 / sqrt 3."""
    (gap,) = page[0]["gaps"]
    assert (gap["better"], gap["other"], gap["seeds"]) == ("robuq", "baseline", [0, 1, 2])
    assert gap["difference"] == pytest.approx(0.1)
    assert gap["half_width"] == pytest.approx(4.302653 * 0.01 / 3**0.5, rel=1e-5)
    assert gap["p"] == pytest.approx(1 - (300 / 302) ** 0.5)  # Student's t with 2 degrees of freedom, t² = 300


def test_the_page_says_what_is_not_scored_and_what_diverged(page):
    text = page[1]
    assert "9 runs are trained, and the images of 3 of them are scored" in text
    assert "diverged (loss is nan at step 3)" in text and "| RobuQ | robuq | W1.58A2 | 0.20000 ±" in text


def test_every_run_has_its_provenance(page):
    assert all(record == PROVENANCE for row in page[0]["rows"] for record in row["provenance"].values())


def test_nothing_trained(in_root, tmp_path, capsys):
    command = ["losses", "--preset", "smoke", "--results", str(tmp_path), "--out", str(tmp_path / "losses")]
    assert cli.main(command) == 2
    assert "nothing has been trained here" in capsys.readouterr().err
