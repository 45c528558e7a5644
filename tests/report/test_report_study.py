"""The study: collected whole, read back anywhere, and a page and a summary that are true to it."""

import base64
import io
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from robuq_bench.cli import main
from robuq_bench.config.recipe import load_variant
from robuq_bench.files import read_json, write_json
from robuq_bench.measure.engine_records import Kernels
from robuq_bench.report.expectations import expectations
from robuq_bench.report.plots import Curve
from robuq_bench.report.records import Ablation
from robuq_bench.report.study import Study, budgets, device_seconds, read_study, steps, without_budget
from robuq_bench.report.study_collect import POINTS, thinned
from robuq_bench.report.study_findings import cut_short
from robuq_bench.report.study_markdown import MARKS, insert
from robuq_bench.report.study_plots import Point, budget_groups, front, kernel_points, on_engine

ROWS = ["full/W32A32", "alpha/W1.58A2", "beta/W1.58A2"]


@pytest.fixture
def second(lab, tmp_path):
    """Scores every run and the floor under a second extractor; `second(path)` reads the study that was collected."""
    for path in ("reference/floor.json", *(f"{row}/seed0/metrics.json" for row in ROWS)):
        found = read_json(lab.results / path)["scores"]
        lab.change(path, also=[found | {"extractor": "Second", "digest": "e", "FD": 10 * found["FD"]}])

    def collect(*rows: str) -> Study:
        arguments = ["--preset", "tiny", "--results", "results", "--out", "results/study.json"]
        assert main(["study-rows", *arguments, "--rows", *(rows or ROWS)]) == 0
        return read_study([lab.results / "study.json"])

    return collect


def report(*more: str) -> int:
    return main(
        ["study-report", "--study", "results/study.json", "--out", "study.html", "--markdown", "study.md", *more]
    )


def test_everything_is_collected(second):
    study = second()
    assert [row.key for row in study.rows] == ROWS
    assert study.extractors == ("Pixels", "Second")
    assert study.rows[1].figures["FD-Second"].mean == 22.5
    assert study.floor_of("Second").FD == 10.0
    assert study.curves["alpha/W1.58A2"] == (3.0, 2.0, 1.0)
    picture = np.array(Image.open(io.BytesIO(base64.b64decode(study.strips["beta/W1.58A2"]))))
    assert picture.shape == (10, 4 * 10, 4), "two images of two classes, 8 pixels and a gap on each side"
    assert (picture[1:9, 1:9, :3] == 100).all()


def test_rows_are_collected_once(second):
    assert [row.key for row in second(*ROWS, "alpha/W1.58A2").rows] == ROWS


def test_a_row_that_diverged_keeps_its_place(lab, second):
    lab.run("beta/W1.58A2", diverged="loss is nan at step 3")
    assert second().strips["beta/W1.58A2"] == ""
    assert report() == 0
    assert "diverged: loss is nan at step 3" in (lab.root / "study.html").read_text()
    assert "| Beta | 1.58/2 | – | diverged | diverged |" in (lab.root / "study.md").read_text()


class Tags(HTMLParser):
    """Open tags, and what a browser would fetch."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.fetched = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.fetched += [value for name, value in attributes if name in ("src", "srcset")]
        if tag not in {"meta", "img", "br", "use", "path", "link", "input", "hr"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_fetches_nothing(lab, second):
    second()
    assert report() == 0
    page = Tags((lab.root / "study.html").read_text())
    assert page.open == [] and page.fetched
    assert all(value.startswith("data:image/png;base64,") for value in page.fetched)


def test_the_summary_has_verdicts_rows_and_cost(lab, second, capsys):
    second()
    assert report() == 0
    text = (lab.root / "study.md").read_text()
    assert "Of 10 claims, 10 are not measured here." in text, "these rows are of no claim"
    assert "no row robuq_uniform/W1.58A2 or robuq/W1.58A2" in text
    assert "| Alpha | 1.58/2 | – | 2.2 | 22.5 |" in text
    # Three rows, three stages and the reference, 7.5 s each.
    assert "cpu: 1.2 minutes (reference 0.1, train 0.4, sample 0.4, evaluate 0.4)" in text
    assert "cpu: 1.2 minutes" in capsys.readouterr().out


def test_the_same_study_gives_the_same_bytes(lab, second):
    second()
    texts = []
    for _ in range(2):
        assert report() == 0
        texts.append([(lab.root / name).read_bytes() for name in ("study.html", "study.md")])
    assert texts[0] == texts[1]


def test_a_table_is_a_study_without_images(lab):
    assert lab.table() == 0
    study = read_study([lab.results / "table.json"])
    assert [row.key for row in study.rows] == ROWS and not study.strips
    assert main(["study-report", "--study", "results/table.json", "--out", "study.html"]) == 0


def test_several_files_are_one_study(lab, second, refused):
    one = second("full/W32A32", "alpha/W1.58A2").model_dump(mode="json")
    write_json(lab.root / "one.json", one)
    second("beta/W1.58A2", "alpha/W1.58A2")
    paths = [lab.root / "one.json", lab.results / "study.json"]
    assert [row.key for row in read_study(paths).rows] == ["full/W32A32", "alpha/W1.58A2", "beta/W1.58A2"]
    write_json(lab.root / "one.json", one | {"sampling": one["sampling"] | {"steps": 6}})
    refused(lambda: read_study(paths), "other sampling settings", paths[1])


def test_nothing_to_write_is_one_line(lab, second, capsys):
    second()
    assert main(["study-report", "--study", "results/study.json"]) == 2
    assert "give --out, --markdown or --into" in capsys.readouterr().err


# Parts


@pytest.mark.parametrize("count", [1, 3, POINTS])
def test_short_curves_are_kept(count):
    assert thinned([float(i) for i in range(count)]) == tuple(map(float, range(count)))


def test_long_curves_are_running_means_that_end_at_the_end():
    """Of 0, 1, 2, ... the mean over a window of w ends (w - 1) / 2 before its last value."""
    found = thinned([float(i) for i in range(20 * POINTS)])
    assert len(found) == POINTS
    assert found[-1] == 20 * POINTS - 1 - 9.5
    assert np.diff(found).tolist() == [20.0] * (POINTS - 1)


def test_what_is_calibrated_only_has_no_steps(scored):
    row = scored("minmax_ptq/W4A4", 1.0, steps=1000)
    method = row.variant.method.model_copy(update={"training": "ptq"})
    row = row.model_copy(update={"variant": row.variant.model_copy(update={"method": method})})
    assert steps(row) is None and budgets([row]) == []


def test_rows_of_other_budgets_are_told_by_their_steps(scored):
    given = [
        scored("robuq/W1.58A4", 1.0, steps=1000),
        scored("robuq,schedule.steps=3/W1.58A4", 1.0, steps=3000),
        scored("robuq,low_rank.rank=4,schedule.steps=3/W1.58A4", 1.0, steps=3000),
        scored("robuq/W1.58A2", 1.0),
    ]
    assert [without_budget(row) for row in given] == ["robuq", "robuq", "robuq,low_rank.rank=4", "robuq"]
    assert budgets(given)[:2] == [
        ("robuq", 1000, "robuq/W1.58A4"),
        ("robuq", 3000, "robuq,schedule.steps=3/W1.58A4"),
    ]
    assert len(budgets(given)) == 3, "records that do not say their steps are of no budget"


def test_only_recipes_with_two_budgets_have_a_curve(second, scored):
    rows = [
        scored("robuq,schedule.steps=3/W1.58A4", 1.0, steps=3000),
        scored("robuq/W1.58A4", 1.0, steps=1000),
        scored("baseline/W1.58A4", 1.0, steps=1000),
    ]
    (groups,) = budget_groups(second().model_copy(update={"rows": tuple(rows)})).values()
    assert [row.runs[0].steps for row in groups["robuq"]] == [1000, 3000] and list(groups) == ["robuq"]


def test_seconds_on_a_device_count_where_they_are_known(second):
    study = second()
    record = study.floor_provenance | {"device": "GPU", "device_seconds": 2.0, "seconds": 90.0}
    found = device_seconds(study.model_copy(update={"floor_provenance": record}))
    assert found["GPU"] == {"reference": 2.0}
    assert found["cpu"] == {"train": 22.5, "sample": 22.5, "evaluate": 22.5}


def test_the_front_has_what_no_other_undercuts(scored):
    row = scored("a/W1.58A2", 1.0)
    points = [Point(row, *place, "A2") for place in ((1.0, 9.0), (2.0, 5.0), (2.0, 4.0), (3.0, 4.0), (4.0, 1.0))]
    assert [(p.x, p.y) for p in front(points)] == [(1.0, 9.0), (2.0, 4.0), (4.0, 1.0)]


@pytest.mark.parametrize(
    ("expression", "runs"),
    [
        ("robuq/W1.58A2", True),
        ("robuq_uniform,activation.format=midtread/W1.58A2", True),
        ("robuq_uniform,activation.scale=rms/W1.58A2", False),
        ("baseline/W1.58A2", False),
        ("robuq/W3A3", False),
        ("robuq_uniform,rotation.layers=proj+fc2/W1.58A2", False),
        ("terdit/W1.58A32", False),
    ],
)
def test_rows_with_a_kernel_time_are_those_the_kernels_compute(in_root, scored, expression, runs):
    row = scored("x/W1.58A2", 1.0)
    assert on_engine(row.model_copy(update={"variant": load_variant(*expression.rsplit("/", 1))})) is runs


# Expectations


def ablation(*lines: dict, noise: float | None = 3.0) -> Ablation:
    base = {"variant": "W1.58A2", "status": "ok", "FD_half_width": None, "expected": None, "difference": None}
    rows = [base | {"setting": "reference", "FD": 50.0, "FD-Second": 70.0, "FD_half_width": noise}]
    rows += [base | {"setting": f"setting {i}"} | line for i, line in enumerate(lines)]
    columns = [{"key": "FD", "title": "FD"}, {"key": "FD-Second", "title": "FD-Second"}]
    words = dict.fromkeys(("name", "title", "question", "sentence"), "x")
    return Ablation(**words, columns=columns, rows=rows, label="simulated", provenance={})


@pytest.mark.parametrize(
    ("gap", "noise", "found", "right"),
    [(-5.0, 3.0, "better", True), (5.0, 3.0, "worse", False), (3.0, 3.0, "same", False), (-5.0, None, "", None)],
)
def test_found_is_told_from_noise(gap, noise, found, right):
    line = {"FD": 50 + gap, "FD-Second": 71.5, "difference": gap, "expected": "better, so"}
    ((_, (one,)),) = expectations([ablation(line, noise=noise)])
    assert (one.expected, one.because, one.found, one.right) == ("better", "so", found, right)
    assert one.outcome == f"FD {gap:+.1f}, +1.5"


def test_what_diverged_has_no_number_and_what_was_not_expected_no_line():
    lost = {"FD": None, "FD-Second": None, "status": "diverged", "expected": "same, so"}
    ((_, found),) = expectations([ablation(lost, {"FD": 1.0, "FD-Second": 1.0, "difference": -49.0}), ablation()])
    assert [(one.found, one.outcome) for one in found] == [("", "diverged")]


def test_a_document_is_updated_between_its_marks(lab, second, refused):
    second()
    document = lab.root / "findings.md"
    document.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    for _ in range(2):
        assert report("--into", "findings.md") == 0
        text = document.read_text()
        assert text.startswith(f"before\n{MARKS[0]}\n\nOf 10 claims") and text.endswith(f"\n{MARKS[1]}\nafter\n")
        assert "old" not in text and text.count("Of 10 claims") == 1
    refused(lambda: insert("nothing", "x"), *MARKS)


def test_the_page_of_findings_has_the_marks(in_root):
    assert "x\n\n" + MARKS[1] in insert((in_root / "docs/findings.md").read_text(), "x")


# Time


def placed(row, variant, bits: dict[str, int]):
    """The row as if it were of `variant` with these bits."""
    run = row.runs[0].model_copy(update={"bits": bits})
    return row.model_copy(update={"variant": variant, "runs": (run,)})


def test_products_are_timed_at_the_bits_of_each_block(in_root, study, scored, variant):
    """Sums over the four linears of the committed times; blocks of 2 and of 4 bits give the mean of the two."""
    kernels = Kernels.model_validate(read_json(in_root / "results/reference/engine/kernels.json"))
    us = {
        (row.kernel, row.shape): row.us
        for row in kernels.rows
        if (row.kind, row.size, row.m) == ("product", "XL", 16384)
    }

    def block(kernel: str) -> float:
        return sum(us[kernel, shape] for shape in ("qkv", "proj", "fc1", "fc2"))

    def bits(*widths: int) -> dict[str, int]:
        kinds = {"qkv", "proj", "fc1", "fc2"}
        found = {f"blocks.{i}.{kind}": width for i, width in enumerate(widths) for kind in kinds}
        return found | {f"blocks.{i}.adaln": 4 for i in range(len(widths))}

    rows = [
        placed(scored("a/W1.58A2", 5.0), variant("robuq_uniform/W1.58A2"), bits(2, 2)),
        placed(scored("b/W1.58A2", 4.0), variant("robuq/W1.58A2"), bits(2, 4)),
        placed(scored("c/W1.58A2", 9.0), variant("baseline/W1.58A2"), bits(2, 2)),
        placed(scored("d/W1.58A2", 1.0), variant("full_precision/W32A32"), bits(32, 32)),
    ]
    points = kernel_points(study.model_copy(update={"rows": tuple(rows)}), kernels, "Lite0")
    assert [(point.bits, point.y) for point in points] == [("A2", 5.0), ("A2*", 4.0), ("bf16", 1.0)]
    two, four = block("W1.58A2"), block("W1.58A4")
    assert [point.x for point in points] == pytest.approx([two, (two + four) / 2, block("torch.mm bf16")])


@pytest.fixture
def study(second) -> Study:
    return second()


def test_thinned_losses_stand_at_their_steps(scored):
    assert Curve(scored("a/W1.58A2", 1.0), [3.0, 2.0, 1.0]).places == [1, 2, 3]
    assert Curve(scored("a/W1.58A2", 1.0), [3.0, 2.0, 1.0], steps=300).places == [100, 200, 300]


# A study that was cut


def test_a_whole_study_is_asked_for_unless_said_otherwise(lab, second, capsys):
    shutil.rmtree(lab.folder("beta/W1.58A2"))
    arguments = ["--preset", "tiny", "--results", "results", "--out", "results/study.json", "--rows", *ROWS]
    assert main(["study-rows", *arguments]) == 2
    assert "beta/W1.58A2/seed0/metrics.json: no such file" in capsys.readouterr().err
    assert main(["study-rows", *arguments, "--partial"]) == 0
    study = read_study([lab.results / "study.json"])
    assert [row.key for row in study.rows] == ROWS[:2] and study.left_out == {"beta/W1.58A2": "not run"}
    assert report() == 0
    for name in ("study.html", "study.md"):
        assert "1 row is missing or lacks a seed (beta/W1.58A2: not run)" in (lab.root / name).read_text()


def test_a_long_list_of_missing_rows_is_shortened(study):
    left_out = {f"row{k}/W1.58A2": "not run" for k in range(20)}
    text = cut_short(study.model_copy(update={"left_out": left_out}))
    assert text.startswith("This study was cut: 20 rows are missing or lack a seed (row0/W1.58A2: not run; row1")
    assert text.endswith("row7/W1.58A2: not run; and 12 more).")
    assert cut_short(study.model_copy(update={"left_out": {}})) == ""


def test_records_without_weights_and_images_are_enough(lab, second):
    """What comes back from another machine: the same scores and bits, no pictures."""
    whole = second()
    for row in ROWS:
        for name in ("packed.safetensors", "samples.npz"):
            (lab.folder(row) / name).unlink()
    arguments = ["--preset", "tiny", "--results", "results", "--out", "results/study.json", "--rows", *ROWS]
    assert main(["study-rows", *arguments]) == 2
    assert main(["study-rows", *arguments, "--partial"]) == 0
    found = read_study([lab.results / "study.json"])
    assert [row.figures for row in found.rows] == [row.figures for row in whole.rows]
    assert found.rows[1].runs[0].bits == {"blocks.0.adaln": 32} | {
        f"blocks.0.{kind}": 2 for kind in ("qkv", "proj", "fc1", "fc2")
    }
    assert not found.strips and not found.left_out
    lab.change("alpha/W1.58A2/seed0/measure.json", packed="another")
    assert main(["study-rows", *arguments, "--partial"]) == 2, "measured another model than was evaluated"
