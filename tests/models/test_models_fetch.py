"""The verb `fetch`: nothing to do where the files are, one line where the hub is out of reach (as in all tests)."""

import pytest

from robuq_bench import cli

NAMED = "train=null,pretrained.path={0}/dit,pretrained.repository=facebook/DiT-XL-2-256"


@pytest.fixture(autouse=True)
def root(in_root):
    return in_root


def test_hub_unreachable_is_one_line(tmp_path, capsys):
    assert cli.main(["fetch", "smoke", "--set", NAMED.format(tmp_path)]) == 2
    text = capsys.readouterr().err
    assert text.splitlines()[-1].startswith("robuq-bench: facebook/DiT-XL-2-256: could not be fetched")
    assert "Traceback" not in text


def test_what_is_there_is_not_fetched(tmp_path, capsys):
    (tmp_path / "dit").mkdir()
    (tmp_path / "dit/config.json").write_text("{}")
    assert cli.main(["fetch", "smoke", "--set", NAMED.format(tmp_path)]) == 0
    assert "already there" in capsys.readouterr().out


def test_nothing_named(capsys):
    assert cli.main(["fetch", "smoke"]) == 2
    assert "names no models" in capsys.readouterr().err
    changes = "train=null,pretrained.path=/nowhere/dit"
    assert cli.main(["fetch", "smoke", "--set", changes]) == 2
    assert "names no repository" in capsys.readouterr().err
