"""Plots and the image grid: stable bytes, true pixels, no markup from names."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from robuq_bench.config.base import build
from robuq_bench.files import read_json
from robuq_bench.report import plots
from robuq_bench.report.ablation_plot import ablation_plot
from robuq_bench.report.grid import GAP, SIDE, shown_classes, strip
from robuq_bench.report.records import Ablation
from robuq_bench.report.table import Table

HOSTILE = "<script>alert(1)</script> & $x_1$"
LINES = {"x": "bits", "y": "loss", "series": "q", "xlabel": "bits", "ylabel": "loss", "log": True}
DOTS = LINES | {"x": "q", "series": "bits"}


def ablation(plot=LINES, **changes) -> Ablation:
    rows = [{"q": q, "bits": b, "loss": 0.1 * b * len(q)} for q in ("absmax", "min-max") for b in (2, 3, 4)]
    columns = [{"key": "q", "title": "Quantiser"}, {"key": "loss", "title": "Loss", "format": ".3f"}]
    fields = {"name": "a b", "title": "T", "question": "Q?", "sentence": "S.", "label": "simulated", "provenance": {}}
    return build(Ablation, fields | {"columns": columns, "rows": rows, "plot": plot} | changes, "a.json")


@pytest.fixture
def table(lab) -> Table:
    lab.recipe("beta", title=HOSTILE)
    lab.run("alpha/W1.58A4", diverged="nan")
    assert lab.table("--rows", "full/W32A32", "alpha/W1.58A2", "beta/W1.58A2", "alpha/W1.58A4") == 0
    return build(Table, read_json("results/table.json"), "table.json")


@pytest.fixture
def drawings(table):
    """Every kind of figure, by name."""
    curves = [plots.Curve(row, [3.0, 2.0, 1.0] if row.status == "ok" else []) for row in table.rows]
    return lambda: {
        "losses": plots.loss_curves("losses", "Losses", curves),
        "bits": plots.quality_and_bits(table.rows, 1.0, "FD-Pixels"),
        "size": plots.quality_and_size(table.rows, 1.0, "FD-Pixels"),
        "lines": ablation_plot(ablation()),
        "dots": ablation_plot(ablation(DOTS)),
    }


def test_same_bytes_twice(drawings):
    assert drawings() == drawings()


def test_svg_is_clean(drawings):
    for text in drawings().values():
        assert text.startswith('<svg role="img" aria-label="')
        assert "<script" not in text
        assert not re.search(r'(href|src)="(?!#)', text)
        assert "#0a0b0c" not in text
        assert "metadata" not in text


def test_ids_do_not_clash_between_figures(drawings):
    ids = [set(re.findall(r' id="([^"]+)"', text)) for text in drawings().values()]
    same_ablation = ids.pop() & ids[-1]
    assert all(name.startswith("ablation-a-b-") for name in same_ablation)
    assert len(set.union(*ids)) == sum(map(len, ids))


def test_names_are_text(drawings):
    found = drawings()
    for name in ("losses", "bits", "size"):
        assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; $x_1$" in found[name]


def test_a_diverged_row_is_in_the_legend(drawings):
    found = drawings()
    assert "Alpha W1.58A4 (diverged)" in found["losses"]
    assert ">diverged<" in found["bits"]


def test_running_mean():
    assert plots.running_mean([4.0, 2.0, 6.0, 1.0], 2) == [4.0, 3.0, 4.0, 3.5]
    assert plots.running_mean([4.0, 2.0], 1) == [4.0, 2.0]
    assert plots.running_mean([], 3) == []


def test_an_ablation_keeps_the_place_of_a_setting_without_a_number():
    rows = [{"q": "a", "bits": 2, "loss": None}, {"q": "b", "bits": 2, "loss": 1.0}]
    found = ablation(DOTS, rows=rows)
    assert found.cells == [["a", "–"], ["b", "1.000"]]
    assert ">a<" in ablation_plot(found)
    assert ablation_plot(ablation(DOTS, rows=rows[:1]))  # nothing to draw is no error


@pytest.mark.parametrize("plot", [LINES, DOTS])
def test_an_ablation_shows_its_intervals(plot):
    """Bars for each series, where a half-width is known at all."""
    rows = [{"q": q, "bits": b, "loss": 1.0, "wide": 0.2, "none": None} for q in "ab" for b in (2, 3)]
    bars = [
        ablation_plot(ablation(plot | {"error": name}, rows=rows)).count("LineCollection") for name in ("none", "wide")
    ]
    assert bars[0] == 0 < bars[1]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rows": [{"q": "a"}]}, "a row lacks 'loss'"),
        ({"plot": LINES | {"x": "absent"}}, "a row lacks 'absent'"),
        ({"plot": LINES | {"error": "absent"}}, "a row lacks 'absent'"),
        ({"columns": [{"key": "loss", "title": "Loss", "format": "d"}]}, "Unknown format code 'd'"),
        ({"title": 3}, "title: Input should be a valid string"),
    ],
)
def test_ablations_that_cannot_be_shown(refused, changes, expected):
    refused(lambda: ablation(**changes), "a.json", expected)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_strip_shows_the_first_two_of_each_class_enlarged():
    images = np.arange(1, 9, dtype=np.uint8).reshape(8, 1, 1, 1).repeat(24, 1).repeat(24, 2)
    found = pixels(strip(images, np.arange(8) % 2, range(2)))
    factor, tile = SIDE // 24, 24 + 2 * GAP
    assert found.shape == (tile * factor, 4 * tile * factor, 4)
    centres = found[tile * factor // 2, tile * factor // 2 :: tile * factor]
    assert centres[:, 0].tolist() == [1, 3, 2, 4]
    assert centres[:, 3].tolist() == [255] * 4
    assert not found[0].any()  # the gap is transparent


def test_strip_keeps_colours_and_marks_missing_images():
    images = np.zeros((1, 48, 48, 3), np.uint8)
    images[..., 1] = 200
    found = pixels(strip(images, np.array([1]), range(2)))
    alpha = found[25, 25 :: 48 + 2 * GAP]
    assert alpha.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 200, 0, 255], [0, 0, 0, 0]]


def test_strip_is_stable():
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 1), dtype=np.uint8)
    assert strip(images, np.arange(4) % 2, range(2)) == strip(images, np.arange(4) % 2, range(2))


def test_many_classes_are_cut():
    assert shown_classes(1000) == range(10)
    assert shown_classes(3) == range(3)
