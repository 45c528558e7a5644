"""The table in four formats: golden text, equal numbers, escaping."""

import csv
import io
from pathlib import Path

import pytest

from robuq_bench.files import read_json
from robuq_bench.report.formats import tex

GOLDEN = Path(__file__).with_name("golden")


@pytest.fixture
def full_lab(lab):
    """Three seeds, an added row that diverged in one of them, and a recipe with changes."""
    lab.preset(seeds=[0, 1, 2], rows=["full/W32A32", "alpha/W1.58A2", "beta/W1.58A2", "alpha,weight.scale=rms/W1.58A4"])
    for seed, (alpha, beta) in enumerate([(2.0, 4.0), (2.5, 5.0), (3.0, 6.0)]):
        lab.run("alpha/W1.58A2", seed, FD=alpha, IS=4.0)
        lab.run("beta/W1.58A2", seed, FD=beta, KID=-0.00001, loss=0.5)
        lab.run("alpha,weight.scale=rms/W1.58A4", seed, diverged="loss is nan at step 2" if seed == 1 else "")
    return lab


@pytest.mark.parametrize("suffix", [".csv", ".md", ".tex"])
def test_golden(full_lab, request, suffix):
    assert full_lab.table() == 0
    golden = GOLDEN / f"table{suffix}"
    if request.config.getoption("--fix"):
        golden.write_text(full_lab.text(suffix))
    assert full_lab.text(suffix) == golden.read_text()


def test_same_inputs_same_bytes(full_lab):
    texts = []
    for _ in range(2):
        assert full_lab.table() == 0
        texts.append([full_lab.text(suffix) for suffix in (".csv", ".md", ".tex", ".json")])
    assert texts[0] == texts[1]


def test_all_formats_print_the_cells_of_the_json(full_lab):
    assert full_lab.table() == 0
    table = read_json("results/table.json")
    lines = list(csv.reader(io.StringIO(full_lab.text(".csv"))))[1:]
    for row, line in zip(table["cells"], lines, strict=False):
        for cell in row:
            assert cell["number"] in full_lab.text(".md")
            assert tex(cell["number"]) in full_lab.text(".tex")
            assert cell["number"] in line or cell["number"] == "–"
            assert not cell["spread"] or f"± {cell['spread']}" in full_lab.text(".md")


def test_interval_by_hand(full_lab):
    """2, 2.5, 3: mean 2.5, standard deviation 0.5, half-width 4.30265 x 0.5 / sqrt 3 = 1.24207."""
    assert full_lab.table() == 0
    assert "2.500 ± 1.242" in full_lab.text(".md")
    assert "± is the half-width of Student's 95 % t interval over 3 training seeds (0, 1, 2)." in full_lab.text(".md")


def test_one_seed_says_so(lab):
    assert lab.table() == 0
    assert "One seed: no interval, and no test of any difference." in lab.text(".md")
    assert "±" not in lab.text(".md") + lab.text(".csv") + lab.text(".tex")


def test_a_diverged_row_is_never_blank(lab):
    lab.run("beta/W1.58A2", diverged="loss is nan at step 3")
    assert lab.table() == 0
    (line,) = [line for line in lab.text(".md").splitlines() if line.startswith("| Beta")]
    assert line.count("diverged") == 7
    assert "- Beta W1.58A2 diverged: loss is nan at step 3" in lab.text(".md")
    assert "Beta W1.58A2 diverged: loss is nan at step 3" in lab.text(".tex")
    (record,) = [r for r in csv.DictReader(io.StringIO(lab.text(".csv"))) if r["method"] == "Beta"]
    assert (record["status"], record["reason"]) == ("diverged", "loss is nan at step 3")
    assert record["FD-Pixels (simulated)"] == "diverged"
    assert record["our rank"] == ""


def test_every_row_diverged(lab):
    for row in ("full/W32A32", "alpha/W1.58A2", "beta/W1.58A2"):
        lab.run(row, diverged="loss is nan")
    assert lab.table() == 0
    assert lab.text(".md").count("loss is nan") == 3


def test_columns_carry_the_extractor_and_only_inception_is_called_fid(lab):
    assert lab.table() == 0
    assert "| FD-Pixels ↓ (simulated) |" in lab.text(".md")
    assert "FID" not in lab.text(".csv")
    lab.change("reference/floor.json", scores__extractor="Inception")
    for row in ("full/W32A32", "alpha/W1.58A2", "beta/W1.58A2"):
        lab.change(f"{row}/seed0/metrics.json", scores__extractor="Inception")
    assert lab.table() == 0
    assert "| FID ↓ (simulated) | sFID ↓ (simulated) |" in lab.text(".md")


def test_notes_name_n_floor_guidance_steps(lab):
    assert lab.table() == 0
    for text in ("N = 8 generated", "Floor: 8 real held-out images", "5 steps", "guidance 1.5", "100 real images"):
        assert text in lab.text(".md")


def test_kid_is_printed_times_a_thousand_and_never_as_minus_zero(lab):
    lab.run("alpha/W1.58A2", KID=0.0123)
    lab.run("beta/W1.58A2", KID=-1e-9)
    assert lab.table() == 0
    kid = [r["KID-Pixels ×1000 (simulated)"] for r in csv.DictReader(io.StringIO(lab.text(".csv")))]
    assert kid == ["1.000", "12.300", "0.000", "1.000"]


def test_a_deployed_latency_is_told_from_a_simulated_one(lab):
    lab.change("beta/W1.58A2/seed0/measure.json", latency__label="deployed", latency__median_ms=3.0)
    assert lab.table() == 0
    assert "3.00 (deployed)" in lab.text(".md")
    assert "12.50 (simulated)" in lab.text(".md")


def test_latencies_of_several_devices_are_not_to_be_compared(lab):
    lab.change("beta/W1.58A2/seed0/measure.json", latency__device="H100")
    assert lab.table() == 0
    assert "Latencies are of several devices or batch sizes: do not compare them." in lab.text(".md")


def test_rows_in_the_order_asked_for(lab):
    assert lab.table("--rows", "beta/W1.58A2", "full/W32A32") == 0
    rows = read_json("results/table.json")["rows"]
    assert [row["variant"]["recipe"] for row in rows] == ["beta", "full"]


def test_hostile_titles(lab):
    lab.recipe("beta", title=r"50% of A_b & $x$ {y} #1 ~^ \z | *b* `c` <i>")
    assert lab.table() == 0
    assert (
        r"50\% of A\_b \& \$x\$ \{y\} \#1 \textasciitilde{}\textasciicircum{} \textbackslash{}z | *b* `c` "
        r"\textless{}i\textgreater{} &" in lab.text(".tex")
    )
    assert r"| 50% of A\_b & $x$ {y} #1 ~^ \\z \| \*b\* \`c\` \<i> |" in lab.text(".md")
    assert next(csv.reader([lab.text(".csv").splitlines()[3]]))[0] == r"50% of A_b & $x$ {y} #1 ~^ \z | *b* `c` <i>"


def test_a_method_that_trains_otherwise_is_marked(lab):
    lab.recipe("beta", title="Beta", deviates="half the steps")
    assert lab.table() == 0
    assert "- Beta deviates from the common training: half the steps" in lab.text(".md")
