"""Numbers as people read them. Bounds are rounded outwards: a printed interval contains the exact one."""

from datetime import UTC, datetime
from typing import Literal, assert_never

NOT_MEASURED = "not measured"
NOT_KNOWN = "not known"
UNBOUNDED = "unbounded"
Rounding = Literal["down", "nearest", "up"]


def scientific(value: int, rounding: Rounding = "nearest") -> str:
    """Three digits and a power of ten, ``1.23e15``; small numbers in full."""
    if value < 10_000:
        return str(value)
    power = len(str(value)) - 1
    unit = 10 ** (power - 2)
    match rounding:
        case "down":
            digits = value // unit
        case "up":
            digits = -(-value // unit)
        case "nearest":
            digits = (2 * value + unit) // (2 * unit)
        case _:
            assert_never(rounding)
    if digits >= 1_000:
        digits, power = digits // 10, power + 1
    return f"{digits // 100}.{digits % 100:02d}e{power}"


def flop_range(low: str, high: str | None) -> str:
    """``1.42e15 … 5.57e16``; an end that is not known says so."""
    top = UNBOUNDED if high is None else scientific(int(high), "up")
    return f"{scientific(int(low), 'down')} … {top}"


def at_most(high: str | None) -> str:
    """An upper bound alone: ``<= 5.57e16``."""
    return UNBOUNDED if high is None else f"<= {scientific(int(high), 'up')}"


def energy(millijoule: str | None) -> str:
    """kWh from 0.1 kWh on, kilojoules below."""
    if millijoule is None:
        return NOT_MEASURED
    joule = int(millijoule) / 1_000
    return f"{joule / 3.6e6:,.2f} kWh" if joule >= 3.6e5 else f"{joule / 1e3:,.1f} kJ"


def duration(us: int) -> str:
    """The time in one unit that fits: seconds, minutes, hours or days."""
    seconds = us / 1e6
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.1f} s"


def span(seconds: int) -> str:
    """A time that somebody set, exact: ``48 h 30 min``, ``7 days``."""
    parts = []
    left = seconds
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        # People who plan for an outage count hours, up to some days.
        if unit == "d" and seconds < 4 * 86_400:
            continue
        many, left = divmod(left, length)
        if many:
            parts.append((f"{many:,} day" + "s" * (many > 1)) if unit == "d" else f"{many:,} {unit}")
    return " ".join(parts) or "0 s"


def flop_of(tflop: int, rounding: Rounding = "up") -> str:
    """TFLOP as FLOP, three digits, and exactly: ``2.40e24 FLOP (2,400,000,000,000 TFLOP)``."""
    return f"{scientific(tflop * 10**12, rounding)} FLOP ({tflop:,} TFLOP)"


def moment(us: int | None) -> str:
    """UTC to the second."""
    if us is None:
        return "never"
    try:
        return datetime.fromtimestamp(us // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{us} µs"


def count(value: int, one: str, many: str | None = None) -> str:
    """``1 log``, ``2,048 logs``."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"
