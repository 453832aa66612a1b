"""Values on the command line, checked while it is parsed."""

import argparse
import re
from datetime import UTC, datetime
from typing import Final

_DURATION: Final = re.compile(r"([0-9]{1,9})(ms|s|m|h|)", re.ASCII)
_UNIT_US: Final = {"ms": 1_000, "": 1_000_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000}


def duration(text: str) -> int:
    """µs out of ``200ms``, ``60s``, ``15m``, ``2h``, or a number of seconds; more than none."""
    match = _DURATION.fullmatch(text)
    if match is None or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"must be a time such as 200ms, 60s, 15m or 2h (got {text!r})")
    return int(match[1]) * _UNIT_US[match[2]]


def positive(text: str) -> int:
    return _number(text, 1)


def natural(text: str) -> int:
    return _number(text, 0)


def _number(text: str, least: int) -> int:
    if not text.isascii() or not text.isdigit() or not least <= int(text) <= 10**9:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least} (got {text!r})")
    return int(text)


def moment_us(text: str) -> int:
    """UTC µs out of ISO 8601 or of POSIX seconds; a time without a zone is UTC."""
    if text.isascii() and text.isdigit():
        seconds = int(text)
    else:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be ISO 8601 or POSIX seconds (got {text!r})") from None
        seconds = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    if not 0 <= seconds < 2**33:
        raise argparse.ArgumentTypeError(f"must be a time from 1970 on (got {text!r})")
    return seconds * 1_000_000
