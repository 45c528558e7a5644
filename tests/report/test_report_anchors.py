"""Published scores beside ours: judged where the protocol is the same, and told apart where it is not."""

import json

import pytest

from robuq_bench import cli, provenance
from robuq_bench.config.external import Anchor
from robuq_bench.config.preset import load_preset
from robuq_bench.report.anchors import judge, outcome
from robuq_bench.report.records import Scores

PROTOCOL = {"n": 50000, "steps": 250, "guidance": 1.5}
ANCHOR = Anchor(
    source="DiT",
    n=50000,
    steps=250,
    guidance=1.5,
    scores={"FID": 2.27, "sFID": 4.60, "IS": 278.24, "recall": 0.57},
    tolerance={"FID": 0.15, "sFID": 0.3, "IS": 6.0},
)


def scores(**changes) -> Scores:
    facts = {"FD": 2.3, "sFD": 4.5, "IS": 280.0, "KID": 0.0, "KID_se": 0.0, "precision": 0.83, "recall": 0.5}
    facts |= {"n": 50000, "n_reference": None, "extractor": "Inception", "digest": "d", "protocol": "p"}
    return Scores(**facts | changes)


def test_scores_within_their_tolerance_pass_and_others_are_shown():
    found = {v.score: v for v in judge([ANCHOR], scores(), PROTOCOL)}
    assert [found[name].verdict for name in ("FID", "sFID", "IS")] == ["passes"] * 3
    assert (found["FID"].ours, found["sFID"].ours, found["IS"].ours) == (2.3, 4.5, 280.0)
    assert (found["recall"].verdict, found["recall"].ours) == ("not judged", 0.5)
    assert outcome(list(found.values()))[0] == "passes"


@pytest.mark.parametrize(("value", "verdict"), [(2.13, "passes"), (2.41, "passes"), (2.43, "fails"), (2.11, "fails")])
def test_tolerance_is_on_both_sides(value, verdict):
    """A score too good is as suspect as one too bad."""
    found = {v.score: v.verdict for v in judge([ANCHOR], scores(FD=value), PROTOCOL)}
    assert found["FID"] == verdict


def test_a_failure_names_score_and_both_values():
    verdict, sentence = outcome(judge([ANCHOR], scores(FD=4.5), PROTOCOL))
    assert verdict == "fails" and "FID 4.5 against 2.27 ± 0.15" in sentence and "sFID" not in sentence


@pytest.mark.parametrize(
    ("ours", "protocol", "reason"),
    [
        ({"n": 10000}, {}, "10000 images here, 50000 there"),
        ({}, {"steps": 50}, "50 steps here, 250 there"),
        ({}, {"guidance": 4.0}, "4.0 guidance here, 1.5 there"),
        ({"extractor": "EffNetLite0"}, {}, "features of EffNetLite0"),
        ({"extractor": "InceptionStandin"}, {}, "features of InceptionStandin"),
    ],
)
def test_another_protocol_is_never_judged(ours, protocol, reason):
    found = judge([ANCHOR], scores(**ours), PROTOCOL | protocol)
    assert all(v.verdict == "not comparable" and v.ours is None and reason in v.reason for v in found)
    verdict, sentence = outcome(found)
    assert verdict == "not comparable" and reason in sentence


def test_the_anchors_of_the_paper_preset_are_those_of_the_literature(in_root):
    anchors = {(a.n, a.steps): a for a in load_preset("paper").anchors}
    assert anchors[50000, 250].scores["FID"] == 2.27 and anchors[10000, 50].scores["FID"] == 6.02
    assert all(set(a.tolerance) <= set(a.scores) for a in anchors.values())


def test_the_verb(in_root, tmp_path, capsys):
    record = {"status": "ok", "reason": "", "protocol": PROTOCOL, "packed": "x", "provenance": provenance.collect()}
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(record | {"scores": scores(FD=4.0).model_dump()}))
    arguments = ["anchors", "--preset", "paper", "--metrics", str(path), "--out", str(tmp_path / "anchors.json")]
    assert cli.main(arguments) == 0
    assert "FID 4 against 2.27" in capsys.readouterr().out
    found = json.loads((tmp_path / "anchors.json").read_text())
    assert found["verdict"] == "fails" and found["anchors"][0]["ours"] == 4.0
    path.write_text(json.dumps(record | {"scores": None, "status": "diverged", "reason": "it blew up"}))
    assert cli.main(arguments) == 2
    assert "it blew up" in capsys.readouterr().err
    assert cli.main([*arguments[:2], "quick", *arguments[3:]]) == 2
    assert "names no anchors" in capsys.readouterr().err
