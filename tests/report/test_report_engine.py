"""The engine's page: goals judged by hand-made numbers, and nothing shown that was not measured."""

import json
import re

import pytest

from robuq_bench import cli, provenance
from robuq_bench.measure import engine_bounds as bounds
from robuq_bench.measure.engine_kernels import TOKENS, linears
from robuq_bench.measure.engine_records import (
    Check,
    Forward,
    ForwardTable,
    Hardware,
    KernelRow,
    Kernels,
    Missing,
    Rate,
    Rates,
    Times,
)
from robuq_bench.report.engine_findings import goals, headline
from robuq_bench.report.engine_markdown import to_markdown
from robuq_bench.report.engine_page import render
from robuq_bench.report.engine_plots import roofline

FULL_MS, RIVAL_MS, OURS_MS = 360.0, 34.0, 12.0


@pytest.fixture
def gpu() -> Hardware:
    return Hardware(
        name="Test GPU",
        capability="9.0",
        multiprocessors=132,
        l2_bytes=50 << 20,
        memory_bytes=80 << 30,
        driver="580.1",
        cuda="13.0",
        torch="2.11.0",
        triton=None,
        max_sm_clock_mhz=1980,
        sm_clock_mhz=None,
        memory_clock_mhz=2619,
        power_limit_w=700,
    )


@pytest.fixture
def rates(gpu) -> Rates:
    speeds = {"b1": 15e15, "s8": 1.3e15, "e4m3": 1.9e15, "bf16": 7e14}
    found = [
        Rate(unit=u, instruction=f"wgmma {u}", ops_per_s=s, threads=256, clock_mhz=1755) for u, s in speeds.items()
    ]
    found.append(Rate(unit="e4m3", instruction="mma.sync e4m3", reason="this GPU has no such instruction"))
    record = provenance.collect("Test GPU")
    return Rates(rates=tuple(found), copy_bytes_per_s=3e12, hardware=gpu, provenance=record)


@pytest.fixture
def kernels(rates) -> Kernels:
    """bf16 takes 30 µs, FP8 20, A-bits 5 a bit, at every shape."""
    rows = []
    for linear in linears(1152):
        for m in TOKENS["XL"]:
            facts = {"kind": "product", "size": "XL", "shape": linear.name, "m": m, "n": linear.n, "k": linear.k}
            facts |= {"sets": 3, "us_p20": 1.0, "us_p80": 99.0, "us_min": 1.0}
            for kernel, unit, us in (("torch.mm bf16", "bf16", 30.0), ("torch._scaled_mm fp8", "e4m3", 20.0)):
                bound = bounds.library_product(m, linear.n, linear.k, unit, rates)
                rows.append(KernelRow(**facts, kernel=kernel, unit=unit, us=us, bound=bound))
            for bits in (1, 2, 3, 4):
                bound = bounds.ternary_product(m, linear.n, linear.k, bits, 0, rates)
                ratio = {"over_bf16": 30 / (5 * bits), "over_fp8": 20 / (5 * bits)}
                row = KernelRow(
                    **facts, kernel=f"W1.58A{bits}", bits=bits, unit="b1", us=5.0 * bits, bound=bound, **ratio
                )
                rows.append(row)
    bound = bounds.row_wise(4096, 1152, 2, 16, True, rates)
    facts = {"kind": "row-wise", "size": "XL", "shape": "modulate 1152", "m": 4096, "k": 1152, "sets": 3}
    facts |= {"us_p20": 1.0, "us_p80": 99.0, "us_min": 1.0}
    rows.append(KernelRow(**facts, kernel="row-wise A2 and rank 16", bits=2, us=12.5, bound=bound))
    adaln = facts | {"kind": "adaln", "shape": "28 adaLN", "m": 2, "n": 193_536, "k": 1152}
    bound = bounds.library_product(2, 193_536, 1152, "bf16", rates)
    for kernel, us in (("torch.mm bf16", 160.0), ("W1.58A4", 47.0)):
        rows.append(KernelRow(**adaln, kernel=kernel, bits=4, us=us, bound=bound, over_bf16=160 / us))
    reason = Missing(what="torch._int_mm int8 qkv", reason="library <refuses>")
    record = provenance.collect("Test GPU", protocol="graph replays")
    return Kernels(rows=tuple(rows), missing=(reason,), rates=rates, provenance=record)


def forward(method: str, batch: int, ms: float | None, **more) -> Forward:
    if ms is None:
        return Forward(model="XL/2", method=method, batch=batch, status="disagrees", reason="off by 0.5", **more)
    times = Times(median_ms=ms, p20_ms=ms * 0.99, p80_ms=ms * 1.01, min_ms=ms * 0.98, repeats=30)
    check = Check(error=0.004, bound=0.03, against="a reference")
    return Forward(model="XL/2", method=method, batch=batch, status="ok", times=times, check=check, **more)


@pytest.fixture
def table(gpu) -> ForwardTable:
    rows = [
        forward("W1.58A2", 2, 1.5, peak_bytes=300 << 20, file_bytes=170_000_000, notes=("attention in bf16",)),
        forward("W1.58A2", 64, OURS_MS),
        forward("bf16 compiled", 2, 3.6, peak_bytes=1500 << 20),
        forward("bf16 compiled", 64, RIVAL_MS),
        forward("fp32 eager", 2, 30.0, peak_bytes=3000 << 20),
        forward("fp32 eager", 64, FULL_MS),
        forward("W1.58A1", 64, None),
        Forward(model="XL/2", method="int8 compiled", batch=64, status="not available", reason="no torchao here"),
    ]
    parameters = {"XL/2": {"tied": 674_816_272, "untied": 749_808_016}}
    record = provenance.collect("Test GPU", protocol="events")
    return ForwardTable(rows=rows, parameters=parameters, hardware=gpu, code="abc", seconds=99.0, provenance=record)


def verdicts(kernels, table) -> list[tuple[str, str]]:
    return [(goal.measured, goal.verdict) for goal in goals(kernels, table)]


def test_goals_are_judged_from_the_numbers(kernels, table):
    assert verdicts(kernels, table) == [
        ("3.00–3.00× (2.00–2.00× FP8)", "aim met"),
        ("2.83×", "aim met"),  # 34 / 12
        ("30.00×", "aim met"),  # 360 / 12
        ("2.40×", "bar met"),  # 3.6 / 1.5: above 2.0, below 3.5
        ("qkv 0.50, fc1 0.50, fc2 0.50", "aim met"),
        ("10.0× less", "bar met"),
        ("15.9× smaller (17.6× against diffusers' 750 M parameters)", "bar met"),
    ]


def test_a_goal_just_missed_is_not_met(kernels, table):
    slow = [r.model_copy(update={"over_bf16": 1.99}) if r.shape == "fc2" and r.m == 4096 else r for r in kernels.rows]
    assert verdicts(kernels.model_copy(update={"rows": tuple(slow)}), table)[0][1] == "not met"
    uneven = [
        r.model_copy(update={"us": 4.9}) if r.kernel == "W1.58A2" and r.shape == "qkv" else r for r in kernels.rows
    ]
    measured, verdict = verdicts(kernels.model_copy(update={"rows": tuple(uneven)}), table)[4]
    assert measured.endswith("not monotone") and verdict == "not met"


@pytest.mark.parametrize(
    ("us", "verdict"), [(11.0, "aim met"), (12.0, "bar met"), (12.4, "bar met"), (12.5, "not met")]
)
def test_two_bits_are_set_against_four(kernels, table, us, verdict):
    """A4 takes 20 µs: 0.55, 0.60, 0.62, 0.625."""
    rows = [r.model_copy(update={"us": us}) if (r.kernel, r.shape) == ("W1.58A2", "fc2") else r for r in kernels.rows]
    assert verdicts(kernels.model_copy(update={"rows": tuple(rows)}), table)[4][1] == verdict


def test_what_was_not_measured_is_not_judged(kernels, table):
    bare = table.model_copy(update={"rows": tuple(r for r in table.rows if r.method != "W1.58A2")})
    found = verdicts(kernels.model_copy(update={"rows": ()}), bare)
    assert {verdict for _, verdict in found} == {"not measured"}
    assert "was measured" in headline(bare) and headline(bare).startswith("No whole forward pass")


def test_the_headline_is_made_from_the_numbers(table):
    assert headline(table) == (
        "On one Test GPU, the deployed DiT-XL/2 at W1.58A2 takes 12 ms for 64 images: 2.83 times as fast as compiled "
        "bf16 and 30.0 times as fast as fp32; at batch 2 it is 2.40 times as fast as compiled bf16 and takes "
        "10.0 times less memory than fp32."
    )


def test_the_page_is_whole_deterministic_and_escaped(kernels, table):
    page = render(kernels, table)
    assert page == render(kernels, table)
    assert "library &lt;refuses&gt;" in page and "<refuses>" not in page
    assert "<li>W1.58: attention in bf16.</li>" in page
    assert "<dt>W1.58A2, XL/2, batch 16, 1, 256</dt><dd>not asked for in this run</dd>" in page
    assert "no torchao here" in page and "off by 0.5" in page
    assert not re.search(r"(?:src|href)=[\"']https?:", page)
    assert page.count("<svg ") == 3
    assert re.search(r"28 adaLN</th><td class=\"number\">2</td><td class=\"number\">160.0</td>.*>3.40<", page)


def test_a_row_that_disagrees_shows_no_speed(kernels, table):
    line = re.search(
        r"<tr[^>]*>\s*<th scope=\"row\"><strong>W1.58A1</strong>.*?</tr>", render(kernels, table), re.DOTALL
    )
    assert "disagrees" in line[0] and "ms" not in line[0]


def test_every_drawn_product_lies_below_its_roof(kernels):
    """The synthetic times are all longer than their bounds where M is small."""
    row = next(row for row in kernels.rows if row.kernel == "torch.mm bf16" and row.m == 512 and row.shape == "proj")
    assert row.bound.ops / row.us * 1e6 < min(7e14, row.bound.ops / row.bound.bytes * 3e12)
    assert roofline(kernels).startswith("<svg ")


def test_markdown_tells_the_same(kernels, table):
    text = to_markdown(kernels, table)
    assert text.startswith(headline(table))
    assert "| Whole forward, batch 64, against compiled bf16 | 2.83× | ≥ 2× | ≥ 2.7× | aim met |" in text
    assert "| W1.58A2 | 64 | 12 | 2.83 | 30.00 | – | – | 4.0e-03 |" in text
    assert "| W1.58A1 | 64 | disagrees: off by 0.5 | – |" in text


def test_the_verb_writes_page_and_picture_and_refuses_halves(kernels, table, tmp_path, capsys):
    for name, record in (("kernels", kernels), ("table", table)):
        (tmp_path / f"{name}.json").write_text(json.dumps(record.model_dump(mode="json")))
    given = ["engine-report", "--kernels", str(tmp_path / "kernels.json")]
    out, picture = tmp_path / "index.html", tmp_path / "roofline.svg"
    assert (
        cli.main([*given, "--table", str(tmp_path / "table.json"), "--out", str(out), "--roofline", str(picture)]) == 0
    )
    assert out.read_text().startswith("<!doctype html>") and "currentColor" not in picture.read_text()
    assert cli.main([*given, "--out", str(out)]) == 2
    (tmp_path / "kernels.json").write_text('{"rows": []}')
    assert cli.main([*given, "--roofline", str(picture)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "provenance lacks" in errors[1]
