"""Moments, budgets, hashes and nodes as people type them."""

import math
import re
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any, Final

from keyturn_cli.errors import CliError, Exit
from keyturn_protocol.limits import MAX_INT

_FORMS: Final = ("%Y-%m-%d", "%Y-%m-%dT%HZ", "%Y-%m-%dT%H:%MZ", "%Y-%m-%dT%H:%M:%SZ")
_TERA: Final = 10**12


def moment_us(where: str, value: Any) -> int:
    """µs of a day or a time in UTC, as text or as TOML has it.

    :param where: the option or the key that it stands at.
    :raises CliError: something else.
    """
    if isinstance(value, datetime) and value.tzinfo is not None:
        return round(value.timestamp() * 1_000_000)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = value.isoformat()
    for form in _FORMS:
        try:
            return int(datetime.strptime(value, form).replace(tzinfo=UTC).timestamp()) * 1_000_000
        except (TypeError, ValueError):
            continue
    raise _not(where, "a day or a time in UTC, such as 2026-01-31 or 2026-01-31T08:30Z", value)


def tflop(where: str, value: Any, *, least: int = 1, up: bool = False) -> int:
    """A number of FLOP, such as ``2.4e24``, in TFLOP; rounded down as a budget, ``up`` as what was used.

    :param value: text, an integer, or a decimal; never a float, which isn't what was typed.
    :param least: TFLOP.
    :raises CliError: something else, or less.
    """
    try:
        flop = Decimal(value) if isinstance(value, (str, int, Decimal)) and not isinstance(value, bool) else None
    except InvalidOperation:
        flop = None
    if flop is None or not flop.is_finite() or not 0 <= flop <= MAX_INT * _TERA:
        raise _not(where, "a number of FLOP, such as 2.4e24, up to 9e27", value)
    exact = Fraction(flop) / _TERA
    found = math.ceil(exact) if up else math.floor(exact)
    if found < least:
        raise _not(where, f"at least {least}e12 FLOP", value)
    return found


def digest_of(where: str, text: str) -> str:
    """64 hex digits, with or without ``sha256:`` before them.

    :raises CliError: something else.
    """
    bare = text.removeprefix("sha256:")
    if re.fullmatch(r"[0-9a-f]{64}", bare) is None:
        raise _not(where, "64 lower-case hex digits", text)
    return bare


def node_of(where: str, text: str) -> str:
    """A node's id.

    :raises CliError: something else.
    """
    if re.fullmatch(r"[0-9a-f]{32}", text) is None:
        raise CliError(
            f"{where}: expected 32 hex digits, got {text!r}", exit=Exit.USAGE, hint="keyturn nodes lists them"
        )
    return text


def _not(where: str, expected: str, got: Any) -> CliError:
    return CliError(f"{where}: must be {expected} (got {got})", exit=Exit.USAGE)
