"""Progress of long work: quiet when short, a line now and then without a terminal, all of it logged."""

from robuq_bench import progress
from robuq_bench.progress import Bar


def test_short_work_is_silent(capsys):
    with Bar("train x", 3) as bar:
        for _ in range(3):
            bar.advance(1, loss=0.5)
    assert capsys.readouterr() == ("", "")


def test_long_work_prints_a_line_with_eta(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Bar("train x", 100, done=20) as bar:
        for _ in range(40):
            now[0] += 1
            bar.advance(1, loss=0.123456)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["train x: 35/100, ETA 0:01:05 loss 0.1235", "train x: 50/100, ETA 0:00:50 loss 0.1235"]


def test_everything_is_logged(monkeypatch):
    now, messages = [0.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress.LOG, "info", lambda text, *values: messages.append(text % values))
    with Bar("sample", 2) as bar:
        now[0] += 20
        bar.advance(2)
    assert messages == ["sample: 2/2, ETA 0:00:00 ", "sample: 2/2 in 20.0 s"]
