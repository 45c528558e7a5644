"""The page: one file without outside references, true to the table, and safe with any name."""

from html.parser import HTMLParser

import numpy as np
import pytest

from robuq_bench.cli import main
from robuq_bench.files import read_json, write_json

HOSTILE = '<script>alert("x")</script>'
VOID = {"meta", "img", "br", "use", "path", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects what a browser would fetch or run, and whether tags close."""

    def __init__(self, text: str):
        super().__init__()
        self.fetched, self.links, self.scripts, self.open, self.words = [], [], 0, [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        for name, value in attributes:
            assert not name.startswith("on"), f"handler {name} in the markup"
            if name in ("src", "srcset", "data", "poster") or (name.endswith("href") and tag != "a"):
                self.fetched.append(value)
            elif name == "href":
                self.links.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def ablation(lab):
    """Writes an ablation file and returns its path."""
    provenance = read_json(lab.results / "reference/floor.json")["provenance"]

    def make(**changes) -> str:
        columns = [{"key": "q", "title": "Quantiser", "format": ""}, {"key": "loss", "title": "Loss", "format": ".3f"}]
        rows = [{"q": "absmax", "bits": 2, "loss": 0.5}, {"q": "min-max", "bits": 2, "loss": None}]
        plot = {"x": "bits", "y": "loss", "series": "q", "xlabel": "bits", "ylabel": "loss", "log": False}
        record = {"name": "q", "title": "Which one?", "question": "Which?", "sentence": "That one: 0.5."}
        record |= {"columns": columns, "rows": rows, "plot": plot, "label": "simulated", "provenance": provenance}
        write_json("ablation.json", record | changes)
        return "ablation.json"

    return make


def test_no_outside_references(lab, ablation):
    lab.recipe("alpha", title="Alpha", url="https://example.org/paper")
    assert lab.table() == 0
    assert lab.report("--ablation", ablation()) == 0
    text = (lab.root / "reports/index.html").read_text()
    page = Page(text)
    assert page.open == []
    assert page.fetched
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in page.fetched)
    assert [link for link in page.links if not link.startswith("#")] == ["https://example.org/paper"]
    assert "@import" not in text
    assert "url(" not in text.replace("url(#", "")
    assert "default-src 'none'" in text


def test_links_of_the_page_lead_somewhere(lab):
    text = lab.page()
    for link in Page(text).links:
        assert f'id="{link.removeprefix("#")}"' in text


def test_page_says_what_the_table_says(lab):
    page = Page(lab.page()).text
    for words in ("Alpha W1.58A2 is the best of 2", "One seed: no interval", "NOT comparable", "not tested: one seed"):
        assert words in page
    for number in ("2.250", "4.500", "-0.010", "12.3"):
        assert number in page


def test_same_results_same_page(lab):
    assert lab.page() == lab.page()


def test_a_diverged_row_shows_its_reason(lab):
    lab.run("beta/W1.58A2", diverged="loss is nan at step 3")
    page = Page(lab.page()).text
    assert page.count("loss is nan at step 3") == 3  # table, footnote, image grid
    assert "Beta W1.58A2 (diverged)" in page  # loss curves


def test_every_row_diverged(lab):
    for row in ("full/W32A32", "alpha/W1.58A2", "beta/W1.58A2"):
        lab.run(row, diverged="loss is nan", losses=[])
    page = Page(lab.page()).text
    assert "No quantised row came through" in page
    assert "Nothing to draw: every row diverged." in page


def test_hostile_words(lab, ablation):
    words = {"title": HOSTILE, "citation": HOSTILE, "url": "javascript:alert(1)", "assumptions": [HOSTILE]}
    lab.recipe("beta", **words, deviates=HOSTILE, paper=[lab.quoted(1.0) | {"setting": HOSTILE, "source": HOSTILE}])
    lab.recipe("gamma", title="Gamma")
    lab.run("gamma/W1.58A2", diverged=HOSTILE)
    lab.preset(title=HOSTILE, rows=["full/W32A32", "beta/W1.58A2", "gamma/W1.58A2"])
    lab.change("full/W32A32/seed0/train.json", provenance__command=HOSTILE)
    assert lab.table() == 0
    columns = [{"key": HOSTILE, "title": HOSTILE, "format": ""}]
    plot = {"x": HOSTILE, "y": "y", "series": HOSTILE, "xlabel": HOSTILE, "ylabel": HOSTILE, "log": False}
    rows = [{HOSTILE: HOSTILE, "y": 1.0}]
    words = dict.fromkeys(("name", "title", "question", "sentence", "label"), HOSTILE)
    assert lab.report("--ablation", ablation(**words, columns=columns, rows=rows, plot=plot)) == 0
    page = Page((lab.root / "reports/index.html").read_text())
    assert page.scripts == 1  # our own
    assert page.open == []
    assert not any("javascript" in link for link in page.links)
    assert page.text.count("<script>alert(") >= 15  # shown as text


def test_grid_without_real_images_counts_classes(lab):
    assert "class 0" in Page(lab.page()).text


def test_grid_with_real_images_names_classes(lab):
    lab.classes = 10
    data = {"source": "digits", "size": 8, "held_out": 20}
    lab.preset(data=data)
    for row in ("full/W32A32", "alpha/W1.58A2", "beta/W1.58A2"):
        lab.run(row, images=np.zeros((20, 8, 8, 1), np.uint8), FD=2.0)
    text = lab.page()
    assert "Real, held out" in text
    assert text.count("data:image/png") == 4
    assert "two images of each of 10 classes" in text


def test_a_row_that_was_not_trained_has_no_curve(lab):
    lab.recipe("beta", title="Beta", training="ptq")
    lab.run("beta/W1.58A2", losses=[])
    assert "Beta W1.58A2" in lab.page()


def test_three_seeds(lab):
    lab.preset(seeds=[0, 1, 2])
    for seed in range(3):
        lab.run("alpha/W1.58A2", seed, FD=2.0 + seed / 2)
        lab.run("beta/W1.58A2", seed, FD=4.0 + seed)
    page = Page(lab.page()).text
    assert "2.500 ± 1.242" in page
    assert "Training seeds 3" in page
    assert "Alpha W1.58A2, seed 2" in page  # every run has its commands


def test_images_of_another_model_than_the_table_is_about(lab, capsys):
    assert lab.table() == 0
    lab.run("alpha/W1.58A2", FD=3.0)
    assert lab.report() == 2
    assert "samples.npz: images of another model than the table's" in capsys.readouterr().err
    assert not (lab.root / "reports/index.html").exists()


@pytest.mark.parametrize("file", ["train.json", "samples.npz"])
def test_missing_file(lab, capsys, file):
    assert lab.table() == 0
    (lab.folder("beta/W1.58A2") / file).unlink()
    assert lab.report() == 2
    assert f"results/beta/W1.58A2/seed0/{file}: no such" in capsys.readouterr().err


def test_a_table_of_something_else(lab, capsys):
    write_json("results/table.json", {"rows": []})
    assert lab.report() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "results/table.json: version: Field required" in line


def test_ablation_without_provenance(lab, capsys, ablation):
    assert lab.table() == 0
    assert lab.report("--ablation", ablation(provenance={})) == 2
    assert "ablation.json: provenance lacks version" in capsys.readouterr().err


def test_ablation_alone(lab, ablation):
    assert main(["report", "--preset", "tiny", "--ablation", ablation(), "--out", "reports/a.html"]) == 0
    page = Page((lab.root / "reports/a.html").read_text())
    assert page.open == []
    assert "That one: 0.5." in page.text
    assert "absmax 0.500 min-max –" in page.text


def test_ablations_in_the_order_given(lab, ablation):
    for name in ("one", "two", "three"):
        write_json(f"{name}.json", read_json(ablation(title=f"The {name}")))
    assert lab.table() == 0
    assert lab.report("--ablation", "two.json", "one.json", "--ablation", "three.json") == 0
    page = Page((lab.root / "reports/index.html").read_text()).text
    assert page.index("The two") < page.index("The one") < page.index("The three")


def test_neither_table_nor_ablation(lab, capsys):
    assert main(["report", "--preset", "tiny", "--out", "reports/a.html"]) == 2
    assert "give --results and --table together, or --ablation alone" in capsys.readouterr().err
