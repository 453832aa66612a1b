"""How much one person asks for in a day: requests stay in the log and in memory for good, however they end."""

from typing import TypeAlias

from keyturn_protocol.authority import Logged, Why, refuse
from keyturn_protocol.limits import ASKED_BYTES, ASKED_LEAST_BYTES, ASKED_US

Recent: TypeAlias = tuple[tuple[int, int], ...]
"""Time and counted bytes of one person's requests of the last day, the oldest first; 1,024 at most."""


def asked_lately(recent: Recent, person: str, logged: Logged) -> Recent:
    """What a person asked for within a day before the leaf of one more request, and that one.

    :raises Refused: ``too_much``: with that one it is.
    """
    left = tuple(one for one in recent if one[0] > logged.time_us - ASKED_US)
    size = max(logged.size, ASKED_LEAST_BYTES)
    if sum(size for _, size in left) + size > ASKED_BYTES:
        raise refuse(
            Why.TOO_MUCH,
            "asked for too much within 24 h",
            expected=f"<= {ASKED_BYTES} bytes of requests, each counted as {ASKED_LEAST_BYTES} at least",
            got=f"{len(left)} requests by {person} before this one",
        )
    return (*left, (logged.time_us, size))
