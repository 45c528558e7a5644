"""The command line: help with an example for every verb, mistakes in one line, quick without torch."""

import argparse
import importlib.util
import shlex
import subprocess
import sys

import pytest

from robuq_bench import __version__, cli
from robuq_bench.errors import BenchError, Diverged, unknown

VERBS = [verb for verb, module in cli.VERBS.items() if importlib.util.find_spec(module)]


def test_the_street_is_there():
    assert {"train", "export", "sample"} <= set(VERBS)
    assert cli.VERBS.keys() == cli.SUMMARY.keys()


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_an_example_that_parses(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and "example:\n" in text and "--log" in text
    example = importlib.import_module(cli.VERBS[verb]).EXAMPLE
    assert example in text
    program, *arguments = shlex.split(example.replace("\\\n", " "))
    assert program == "robuq-bench" and arguments[0] == verb
    parsed = cli.parser_for(arguments).parse_args(arguments)
    assert callable(parsed.run)


def test_help_lists_the_verbs_without_importing_torch():
    code = "import sys; from robuq_bench import cli\ntry: cli.main(['--help'])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "False"
    for verb, summary in cli.SUMMARY.items():
        assert verb in done.stdout and summary.split()[0] in done.stdout


def test_one_verb_imports_no_other(monkeypatch):
    asked = []
    fake = argparse.Namespace(__doc__="x", EXAMPLE="y", arguments=lambda parser: None, run=print)
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: asked.append(name) or fake)
    cli.parser_for(["sample", "--preset", "train"])
    assert asked == ["robuq_bench.sample.stage"]


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["train"], ["train", "--seed", "x"]])
def test_wrong_usage_exits_2(argv, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == 2 and "usage:" in capsys.readouterr().err


def call_with(monkeypatch, run, *more: str) -> int:
    verb = argparse.Namespace(__doc__="x", EXAMPLE="y", arguments=lambda parser: None, run=run)
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: verb)
    return cli.main(["train", *more])


def raising(error: BaseException):
    def run(args):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (BenchError("a.yaml: wrong\n  thing"), 2, "robuq-bench: a.yaml: wrong thing\n"),
        (Diverged("loss is nan"), 4, "robuq-bench: loss is nan\n"),
        (KeyboardInterrupt(), 130, "robuq-bench: interrupted; run the same command to go on\n"),
    ],
)
def test_mistakes_are_one_line_and_a_code(monkeypatch, capsys, error, code, line):
    assert call_with(monkeypatch, raising(error)) == code
    streams = capsys.readouterr()
    assert (streams.err, streams.out) == (line, "")


def test_faults_of_ours_are_not_hidden(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        call_with(monkeypatch, raising(ZeroDivisionError()))


def test_success_is_zero(monkeypatch, capsys):
    assert call_with(monkeypatch, lambda args: None) == 0
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def fresh_log(monkeypatch):
    """`main` adds handlers for the life of a process; here they go with the test."""
    monkeypatch.setattr(cli.logging.getLogger("robuq_bench"), "handlers", [])


def test_log_is_appended_to(fresh_log, monkeypatch, tmp_path):
    log = tmp_path / "logs" / "a.log"
    log.parent.mkdir()
    log.write_text("yesterday\n")
    assert call_with(monkeypatch, raising(BenchError("it broke")), "--log", str(log)) == 2
    lines = log.read_text().splitlines()
    assert lines[0] == "yesterday" and "robuq-bench" in lines[1] and lines[-1].endswith(" robuq-bench: it broke")


def test_log_that_cannot_be_written(fresh_log, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert call_with(monkeypatch, lambda args: None, "--log", str(tmp_path / "file" / "a.log")) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--preset", "smok"], ["unknown preset 'smok'", "did you mean 'smoke'?", "quick"]),
        (["--preset", "smoke", "--recipe", "robug"], ["unknown recipe 'robug'", "did you mean 'robuq'?"]),
        (["--preset", "smoke", "--variant", "W9A9"], ["unknown variant 'W9A9'"]),
        (["--preset", "smoke", "--set", "data.source=digit"], ["unknown data source 'digit'", "'digits'"]),
        (["--preset", "smoke", "--set", "data.source=idx,data.path=nowhere"], ["nowhere"]),
        (["--preset", "smoke", "--set", "device=cuda"], ["needs a CUDA GPU", "quick, smoke"]),
        (["--preset", "smoke", "--set", "data.held_out=1797"], ["held_out 1797"]),
    ],
)
def test_mistakes_in_a_call(in_root, tmp_path, capsys, monkeypatch, given, words):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    base = {"--preset": "smoke", "--recipe": "full_precision", "--variant": "W32A32"}
    base |= {f"--{name}": str(tmp_path / name) for name in ("model", "curve", "state")}
    base |= dict(zip(given[::2], given[1::2], strict=True))
    assert cli.main(["train", *(word for pair in base.items() for word in pair)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("robuq-bench: ")
    for word in words:
        assert word in error
    assert not (tmp_path / "model").exists() and not (tmp_path / "curve").exists()


def test_unknown_names_the_nearest_first():
    assert str(unknown("fruit", "aple", ["pear", "apple"])) == (
        "unknown fruit 'aple'; did you mean 'apple'? allowed: apple, pear"
    )
    assert str(unknown("fruit", "zzz", ["b", "a"], "f.yaml")) == "f.yaml: unknown fruit 'zzz'; allowed: a, b"
