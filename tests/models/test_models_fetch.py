"""The verb `fetch`: nothing to do where the files are, one line where the hub is out of reach (as in all tests)."""

from types import SimpleNamespace

import pytest

from robuq_bench import cli
from robuq_bench.models import fetch_stage

NAMED = "train=null,pretrained.path={0}/dit,pretrained.repository=facebook/DiT-XL-2-256"


@pytest.fixture(autouse=True)
def root(in_root):
    return in_root


@pytest.mark.parametrize("begun", [False, True])
def test_hub_unreachable_is_one_line(tmp_path, capsys, begun):
    """Also where a fetch was begun before."""
    if begun:
        (tmp_path / "dit").mkdir()
        (tmp_path / "dit/.unfinished").touch()
    assert cli.main(["fetch", "smoke", "--set", NAMED.format(tmp_path)]) == 2
    text = capsys.readouterr().err
    assert text.splitlines()[-1].startswith("robuq-bench: facebook/DiT-XL-2-256: could not be fetched")
    assert "Traceback" not in text


def test_what_is_there_is_not_fetched(tmp_path, capsys):
    (tmp_path / "dit").mkdir()
    (tmp_path / "dit/config.json").write_text("{}")
    assert cli.main(["fetch", "smoke", "--set", NAMED.format(tmp_path)]) == 0
    assert "already there" in capsys.readouterr().out


def test_a_cut_fetch_is_not_taken_for_a_whole_one(tmp_path, capsys, monkeypatch):
    """Its small files came first."""
    arrived = ["dit/config.json"]

    def some(repository, local_dir, **_):
        for name in arrived:
            (tmp_path / name).write_text("{}")
        if len(arrived) == 1:
            raise ConnectionError("reset by peer")

    monkeypatch.setattr(fetch_stage, "model_info", lambda repository: SimpleNamespace(sha="0" * 40))
    monkeypatch.setattr(fetch_stage, "snapshot_download", some)
    assert cli.main(["fetch", "smoke", "--set", NAMED.format(tmp_path)]) == 2
    assert "reset by peer" in capsys.readouterr().err
    arrived.append("dit/diffusion_pytorch_model.bin")
    assert cli.main(["fetch", "smoke", "--set", NAMED.format(tmp_path)]) == 0
    assert "as its licence there allows" in capsys.readouterr().out
    assert cli.main(["fetch", "smoke", "--set", NAMED.format(tmp_path)]) == 0
    assert "already there" in capsys.readouterr().out


def test_nothing_named(capsys):
    assert cli.main(["fetch", "smoke"]) == 2
    assert "names no models" in capsys.readouterr().err
    changes = "train=null,pretrained.path=/nowhere/dit"
    assert cli.main(["fetch", "smoke", "--set", changes]) == 2
    assert "names no repository" in capsys.readouterr().err
