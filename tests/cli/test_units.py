"""Numbers as people read them: a printed interval contains the exact one, and nothing missing looks like a number."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn_cli import units
from keyturn_protocol.limits import MAX_INT

big = st.integers(0, 10**40)


def value(text: str) -> Fraction:
    return Fraction(text)


@given(big)
def test_bounds_are_rounded_outwards(exact: int) -> None:
    low, high = units.scientific(exact, "down"), units.scientific(exact, "up")
    assert value(low) <= exact <= value(high)
    assert value(high) - value(low) <= Fraction(exact, 100)


@given(big)
def test_the_best_estimate_is_the_nearest(exact: int) -> None:
    shown = value(units.scientific(exact))
    assert abs(shown - exact) * 200 <= max(exact, 1)


@pytest.mark.parametrize(
    ("exact", "shown"),
    [(0, "0"), (9_999, "9999"), (10_000, "1.00e4"), (99_999, "1.00e5"), (1_234_567, "1.23e6"), (10**15, "1.00e15")],
)
def test_three_digits(exact: int, shown: str) -> None:
    assert units.scientific(exact) == shown


def test_what_is_missing_says_so() -> None:
    assert units.energy(None) == "not measured"
    assert units.flop_range("0", None) == "0 … unbounded"
    assert units.at_most(None) == "unbounded"
    assert units.moment(None) == "never"


@given(st.integers(0, MAX_INT))
def test_any_time_can_be_shown(us: int) -> None:
    assert units.moment(us)
    assert units.duration(us)


def test_units_that_fit() -> None:
    assert units.energy("5223054") == "5.2 kJ"
    assert units.energy("12960000000") == "3.60 kWh"
    assert [units.duration(s * 1_000_000) for s in (14, 240, 36_000, 864_000)] == [
        "14.0 s",
        "4.0 min",
        "10.0 h",
        "10.0 d",
    ]
    assert units.moment(1_790_000_000_000_000) == "2026-09-21 14:13:20Z"
    assert [units.count(n, "entry", "entries") for n in (1, 2048)] == ["1 entry", "2,048 entries"]
