"""Records of the engine's measurements refuse what must not be shown."""

import pytest
from pydantic import ValidationError

from robuq_bench.measure.engine_records import Check, Forward, Rate, Times

TIMES = Times(median_ms=2, p20_ms=1, p80_ms=3, min_ms=1, repeats=5)
GOOD = Check(error=0.01, bound=0.02, against="x")
ROW = {"model": "S/2", "method": "m", "batch": 2}


def test_a_speed_stands_beside_a_check_that_holds():
    assert Forward(**ROW, status="ok", times=TIMES, check=GOOD).times is TIMES
    bad = Check(error=0.03, bound=0.02, against="x")
    for given in (
        {"status": "ok", "times": TIMES},  # no check
        {"status": "ok", "times": TIMES, "check": bad},
        {"status": "ok", "check": GOOD},  # no speed
        {"status": "disagrees", "reason": "r", "times": TIMES, "check": bad},
        {"status": "failed", "reason": "r", "times": TIMES, "check": GOOD},
    ):
        with pytest.raises(ValidationError, match="a speed stands only beside a check that holds"):
            Forward(**ROW, **given)


def test_a_row_without_speed_says_why():
    with pytest.raises(ValidationError, match="needs a reason"):
        Forward(**ROW, status="failed")


@pytest.mark.parametrize("change", [{"batch": "many"}, {"colour": "red"}, {"status": "fine"}, {"peak_bytes": -1}])
def test_other_fields_and_values_are_refused(change):
    with pytest.raises(ValidationError):
        Forward(**ROW | {"status": "ok", "times": TIMES, "check": GOOD} | change)


def test_no_nan_passes():
    with pytest.raises(ValidationError):
        Check(error=float("nan"), bound=1, against="x")


def test_a_rate_is_a_number_or_a_reason():
    for given in ({}, {"ops_per_s": 1.0, "reason": "none"}):
        with pytest.raises(ValidationError, match="a number or a reason"):
            Rate(unit="b1", instruction="x", **given)
