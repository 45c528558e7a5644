"""The page of an inspection: one file without outside references, true to its numbers."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from robuq_bench import cli
from robuq_bench.config.preset import DiT
from robuq_bench.config.recipe import load_variant
from robuq_bench.engine import packed
from robuq_bench.files import read_json, write_json
from robuq_bench.measure.inspect_records import Inspection
from robuq_bench.models import checkpoint, dit
from robuq_bench.models.checkpoint import Card
from robuq_bench.quant.convert import convert, uniform_bits
from robuq_bench.report.inspect_page import maps, render
from robuq_bench.report.inspect_plots import by_type, short

ROOT = Path(__file__).parents[2]
HOSTILE = '<script>alert("x")</script>'


class Page(HTMLParser):
    """What a browser would fetch or run, the words, and the cells of each table body."""

    def __init__(self, text: str):
        super().__init__()
        self.fetched, self.words, self.tables, self.scripts = [], [], [], 0
        self.cell = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        self.fetched += [v for k, v in attributes if k in ("src", "srcset", "poster") or k.endswith("href")]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.cell = True

    def handle_endtag(self, tag):
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.words.append(data)
        if self.cell:
            self.tables[-1][-1][-1] += data.strip()

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module", params=["robuq_uniform/W1.58A2", "bitnet_v2/W1.58A4"])
def path(request, tmp_path_factory) -> Path:
    """An inspection of an untrained model: with and without a low-rank branch."""
    folder = tmp_path_factory.mktemp("inspection")
    spec, shape = DiT(width=48, depth=2, heads=2, patch=2), dit.Shape(8, 1, 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for row in ("full_precision/W32A32", request.param):
            variant, model = load_variant(*row.split("/")), dit.build(spec, shape)
            generator = torch.Generator().manual_seed(0)
            for parameter in model.parameters():
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
            bits = uniform_bits(model, variant)
            card = Card("trained", "smoke", variant, 0, spec, shape, bits, "ok", "", {}, {"commit": "abc"})
            convert(model, variant, bits, 0)
            name = variant.recipe.split("_")[0]
            checkpoint.save(folder / f"{name}.safetensors", model.state_dict(), card)
        packed.export(model, card, folder / "packed.safetensors")
        files = {"model": "full.safetensors", "trained": f"{name}.safetensors", "packed": "packed.safetensors"}
        files = [word for key, file in files.items() for word in (f"--{key}", str(folder / file))]
        out = folder / "inspection.json"
        assert (
            cli.main(["inspect", "--preset", "smoke", *files, "--images", "4", "--times", "2", "--out", str(out)]) == 0
        )
    return out


@pytest.fixture(scope="module")
def inspection(path) -> Inspection:
    return Inspection.model_validate(read_json(path))


@pytest.fixture(scope="module")
def html(inspection) -> str:
    return render(inspection)


def test_one_file_without_outside_references(path, tmp_path):
    out = tmp_path / "page.html"
    assert cli.main(["inspect-page", "--inspection", str(path), "--out", str(out)]) == 0
    page = Page(out.read_text())
    assert page.scripts == 1
    assert page.fetched and all(target.startswith("#") for target in page.fetched)
    text = out.read_text()
    for target in page.fetched:
        assert f'id="{target[1:]}"' in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_the_same_inspection_gives_the_same_bytes(inspection, html):
    assert render(inspection) == html


def test_the_verdict_and_its_sentences_are_there(inspection, html):
    text = Page(html).text
    for sentence in (inspection.verdict.headline, *inspection.verdict.sentences):
        assert " ".join(sentence.split()) in text


def test_the_tables_hold_the_numbers(inspection, html):
    page = Page(html)
    statistics = next(table for table in page.tables if table[0][0] == "Layer" and "Wasserstein" in table[0])
    head, *body = statistics
    layer = next(layer for layer in inspection.activations.layers if layer.name == "blocks.1.fc2")
    cells = dict(zip(head, next(row for row in body if row[0] == "fc2 1"), strict=True))
    before, floor = layer.views["none"], inspection.activations.floors.uniform[1]
    assert cells["Width"] == "192"
    assert cells["2-bit error / floor"] == f"{before.overall.gaussian[1] / floor:.2f}"
    assert cells["Kurtosis"] == f"{before.overall.kurtosis:z.2f}"
    assert cells["Wasserstein"] == f"{before.wasserstein:.3f}"
    after = next(row for row in body if row[0] == "fc2 1")[head.index("Kurtosis") + 1]
    assert after == f"{layer.views['full'].overall.kurtosis:z.2f}"
    assert len(body) == 10 + 2  # layers, and normal tokens of both widths

    parts = next(table for table in page.tables if "Drift" in table[0])
    own = next(layer for layer in inspection.row.layers if layer.name == "blocks.0.qkv")
    cells = dict(zip(parts[0], next(row for row in parts if row[0] == "qkv 0"), strict=True))
    assert cells["Zero, %"] == f"{100 * own.zero:.1f}" and cells["Drift"] == f"{own.drift:.4f}"
    assert ("Branch / output" in cells) == (own.branch is not None)
    if own.branch:
        assert cells["Branch / output"] == f"{own.branch.output_share:.3f}"


def test_there_is_a_figure_for_each_question(inspection, html):
    branched = inspection.row.layers[0].branch is not None
    assert html.count('aria-label="Q-Q plot of the inputs of') == 5
    assert html.count("<svg") == 5 + 2 + 2 + (3 if branched else 1)


def test_maps_show_each_time(inspection):
    kurtosis, rotated, error, _ = maps(inspection.activations)
    layer = next(layer for layer in inspection.activations.layers if layer.name == "blocks.1.proj")
    values = [summary.kurtosis for summary in layer.views["none"].by_time]
    assert [text for text, _ in kurtosis.cells["proj 1"]] == [f"{value:z.1f}" for value in values]
    assert list(rotated.cells) == list(error.cells) and len(error.cells["proj 1"]) == 2
    assert all(0 <= tint <= 5 for row in kurtosis.cells.values() for _, tint in row)


def test_layers_stand_by_type(inspection):
    names = [short(layer.name) for layer in by_type(inspection.activations.layers)]
    assert names[:4] == ["qkv 0", "qkv 1", "proj 0", "proj 1"] and names[-1] == "adaln 1"


def test_any_name_is_safe(inspection):
    row = inspection.row.model_copy(update={"title": HOSTILE})
    text = render(inspection.model_copy(update={"title": HOSTILE, "preset": HOSTILE, "row": row}))
    assert HOSTILE not in text and Page(text).scripts == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda record: record.pop("provenance"), "provenance lacks"),
        (lambda record: record.pop("row"), "row: Field required"),
        (lambda record: record["row"].update(extra=1), "unknown key 'row.extra'"),
        (lambda record: record["row"]["layers"][0].update(zero=2), "row.layers.0.zero"),
    ],
)
def test_damaged_records_are_one_line(path, tmp_path, capsys, change, words):
    record = read_json(path)
    change(record)
    write_json(tmp_path / "bad.json", record)
    assert (
        cli.main(["inspect-page", "--inspection", str(tmp_path / "bad.json"), "--out", str(tmp_path / "p.html")]) == 2
    )
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "p.html").exists()


def test_another_file_is_refused(tmp_path, capsys):
    write_json(tmp_path / "list.json", [])
    assert cli.main(["inspect-page", "--inspection", str(tmp_path / "list.json"), "--out", str(tmp_path / "p")]) == 2
    assert "holds no inspection" in capsys.readouterr().err
