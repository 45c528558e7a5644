"""Where numbers come from: complete records, and digests that change exactly when a stage's code does."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from robuq_bench import provenance
from robuq_bench.files import write_json

# The record


def test_a_record_is_complete_and_fit_for_json(tmp_path):
    record = provenance.collect("cpu", preset="quick", seeds=[0])
    provenance.check({"provenance": record}, "x")
    assert (record["preset"], record["seeds"], record["device"]) == ("quick", [0], "cpu")
    assert {"torch", "diffusers", "numpy", "scipy", "torch-fidelity", "snakemake"} <= set(record["packages"])
    assert record["packages"]["torch"].count(".") >= 2
    assert record["machine"]["cores"] >= 1 and record["machine"]["processor"]
    write_json(tmp_path / "a.json", record)
    assert json.loads((tmp_path / "a.json").read_text()) == record


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A git checkout with one commit, taken for the package's own."""

    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "a.py").write_text("1")
    git("add", "a.py")
    git("-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-m", "x")
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    return tmp_path


def test_commit_and_dirty_flag(checkout):
    record = provenance.collect()
    assert len(record["commit"]) == 40 and record["dirty"] is False
    (checkout / "a.py").write_text("2")
    assert provenance.collect()["dirty"] is True
    (checkout / "a.py").write_text("1")
    assert provenance.collect()["dirty"] is False
    (checkout / "new.py").write_text("")
    assert provenance.collect()["dirty"] is True, "a module that git does not know yet"


def test_outside_a_checkout_it_is_stated(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    record = provenance.collect()
    assert record["commit"] == "not a git checkout" and record["dirty"] is None
    provenance.check({"provenance": record}, "x")


def test_missing_fields_are_named(refused):
    whole = provenance.collect()
    for field in provenance.REQUIRED:
        part = {key: value for key, value in whole.items() if key != field}
        refused(
            lambda part=part: provenance.check({"provenance": part}, "r.json"), f"r.json: provenance lacks {field};"
        )
    part = {key: value for key, value in whole.items() if key not in ("commit", "device")}
    refused(lambda: provenance.check({"provenance": part}, "r.json"), "lacks commit, device;", "make this result again")
    refused(lambda: provenance.check({}, "r.json"), "lacks version, commit")
    refused(lambda: provenance.check({"provenance": None}, "r.json"), "lacks version, commit")
    assert provenance.check({"provenance": whole, "value": 1}, "r.json") is whole


# Digests of code

STAGE = "robuq_bench.sample.stage"


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A copy of the package's modules that tests may edit."""
    source = provenance.PACKAGE
    for path in (p for p in source.rglob("*") if p.is_file() and p.parent.name != "__pycache__"):
        target = tmp_path / "robuq_bench" / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path / "robuq_bench")
    return tmp_path / "robuq_bench"


def digest(module: str = STAGE) -> str:
    provenance._imports.cache_clear()
    provenance._data.cache_clear()
    return provenance.code_digest(module)


def test_a_copy_has_the_digest_of_the_original(tmp_path, package, monkeypatch):
    copied = digest()
    monkeypatch.undo()
    assert digest() == copied


@pytest.mark.parametrize(
    "edited",
    [
        "sample/stage.py",
        "sample/generate.py",
        "models/dit.py",
        "quant/hadamard.py",
        "config/base.py",
        "files.py",
        "seeds.py",
    ],
)
def test_editing_what_a_stage_imports_changes_its_digest(package, edited):
    before = digest()
    (package / edited).write_text((package / edited).read_text() + "\n# edited\n")
    assert digest() != before


@pytest.mark.parametrize(
    "edited", ["report/table.py", "metrics/frechet.py", "train/loop.py", "measure/stage.py", "cli.py"]
)
def test_editing_anything_else_does_not(package, edited):
    before = digest()
    (package / edited).write_text("# edited\n")
    assert digest() == before


def test_data_files_count_for_the_stages_of_their_room(package):
    """Kernels, templates, packaged images."""
    before = digest()
    (package / "report" / "templates" / "new.css").write_text("a {}")
    assert digest() == before
    (package / "engine" / "kernels" / "cuda" / "new.cu").write_text("// new")
    after, trained = digest(), digest("robuq_bench.train.stage")
    assert after != before, "images may be drawn by the deployed model"
    (package / "data" / "packaged" / "new.webp").write_text("an image")
    assert digest() == after, "drawing reads no data"
    assert digest("robuq_bench.train.stage") != trained


def test_a_module_that_is_newly_imported_counts(package):
    before = digest()
    (package / "seeds.py").write_text((package / "seeds.py").read_text() + "\nimport robuq_bench.report.table\n")
    after = digest()
    (package / "report" / "table.py").write_text("# edited\n")
    assert len({before, after, digest()}) == 3


def test_imports_inside_functions_count(package):
    text = (package / "seeds.py").read_text()
    (package / "seeds.py").write_text(text + "\ndef f():\n    from robuq_bench.metrics import frechet\n")
    before = digest()
    (package / "metrics" / "frechet.py").write_text("# edited\n")
    assert digest() != before


def test_packages_that_are_imported_count_by_their_init(package):
    """`import robuq_bench.config.preset` runs `config/__init__.py` too."""
    before = digest()
    (package / "config" / "__init__.py").write_text("raise SystemExit\n")
    assert digest() != before


def test_a_digest_does_not_depend_on_the_place(package, tmp_path, monkeypatch):
    here = digest()
    shutil.copytree(package, tmp_path / "elsewhere" / "robuq_bench")
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path / "elsewhere" / "robuq_bench")
    assert digest() == here


def test_every_stage_has_its_own_digest():
    from robuq_bench.cli import VERBS

    modules = [module for module in VERBS.values() if provenance._path(module)]
    assert len({provenance.code_digest(module) for module in modules}) == len(modules) > 3


def test_a_changed_template_or_packaged_file_counts_for_its_room_alone(package):
    page, train = "robuq_bench.report.stage", "robuq_bench.train.stage"
    before = digest(page), digest(train)
    (package / "report" / "templates" / "page.css").write_text("body { color: red }")
    assert digest(page) != before[0] and digest(train) == before[1]
