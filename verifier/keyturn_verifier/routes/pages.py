"""What the reading routes share: who asks, pages, cursors, answers in canonical JSON."""

import base64
import binascii
from collections.abc import Callable, Hashable, Sequence
from hashlib import sha256
from typing import Annotated, Any, Final

from fastapi import Header, Path, Query, Response
from sqlalchemy import Connection

from keyturn_protocol.api import PAGE_ITEMS, Page, ProblemCode
from keyturn_protocol.canonical import Record, UInt, decode, encode, encode_record
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.limits import MAX_INT
from keyturn_protocol.usage import HOUR_S
from keyturn_verifier.auth import Caller, Right, check_reader
from keyturn_verifier.patterns import HEX_32, VISIBLE
from keyturn_verifier.problems import Refusal
from keyturn_verifier.service import Service

Authorization = Annotated[str | None, Header(include_in_schema=False)]
Limit = Annotated[int, Query(ge=1, le=PAGE_ITEMS, description="items of a page, at most")]
After = Annotated[str | None, Query(max_length=2_048, description="`next` of the page before; opaque")]
_LAST_HOUR: Final = MAX_INT // 1_000_000 // HOUR_S * HOUR_S
From = Annotated[
    int | None,
    Query(alias="from", ge=0, le=_LAST_HOUR, multiple_of=HOUR_S, description="POSIX seconds, a whole hour in UTC"),
]
To = Annotated[
    int | None, Query(alias="to", ge=0, le=_LAST_HOUR, multiple_of=HOUR_S, description="as `from`, not included")
]
Workload = Annotated[str | None, Query(max_length=256, pattern=VISIBLE, description="one workload's id, or a pool's")]
NodePath = Annotated[str, Path(pattern=HEX_32, description="32 hex digits")]
IncarnationPath = Annotated[int, Path(ge=1, le=MAX_INT, description="from 1")]
Size = Annotated[int, Query(ge=1, le=MAX_INT)]
Index = Annotated[int, Query(ge=0, le=MAX_INT)]
Start = Annotated[int, Path(ge=0, le=MAX_INT, description="the first entry of the segment")]

AHEAD_US: Final = 300_000_000
"""A cursor's moment may be so far ahead: another replica made it, by a clock of its own, or this one's was set back."""

HEADERS: Final = {"cache-control": "private, no-store"}
JSON: Final = "application/json"


def allow(
    service: Service, connection: Connection, authorization: str | None, right: Right = Right.READ
) -> tuple[int, Caller]:
    """Check the token; returns the time of asking, and who asks."""
    now_us = service.clock()
    return now_us, check_reader(connection, authorization, now_us, right)


def one(record: Record) -> Response:
    """One value."""
    return Response(encode_record(record), media_type=JSON, headers=HEADERS)


def _no_cursor() -> Refusal:
    return Refusal(ProblemCode.BAD_REQUEST, "after: not a cursor of this list")


def _check_moment(until_us: int | None, now_us: int) -> None:
    if until_us is not None and until_us > now_us + AHEAD_US:
        raise _no_cursor()


def page(items: Sequence[Any], last: Sequence[Any] | None) -> Response:
    """A page whose next one begins after ``last``; None: it is the last."""
    following = None if last is None else base64.urlsafe_b64encode(encode(list(last))).decode()
    return Response(encode(Page(items=list(items), next=following)), media_type=JSON, headers=HEADERS)


def cursor(text: str | None, kind: Any) -> Any:
    """A cursor that :func:`page` made."""
    if text is None:
        return None
    try:
        raw = base64.b64decode(text, altchars=b"-_", validate=True)
        # PostgreSQL has no text with a NUL in it, so that no list has one either.
        if b"\\u0000" in raw:
            raise _no_cursor()
        return decode(raw, kind)
    except (ProtocolError, binascii.Error, ValueError):
        raise _no_cursor() from None


def computed_page(
    service: Service,
    connection: Connection,
    what: Hashable,
    after: str | None,
    limit: int,
    now_us: int,
    make: Callable[[int], list[Any]],
) -> Response:
    """A page of a list that is computed as of one moment, which the cursor names beside the item that it ends with.

    Another replica, or this one later, may compute the list anew, with what was written meanwhile: the next page goes
    on behind that item, wherever it stands then.
    """
    start, until_us, last = cursor(after, tuple[UInt, UInt, str]) or (0, None, "")
    _check_moment(until_us, now_us)
    items, until_us = service.computed.get(connection, what, until_us, now_us, make)
    if last and (start > len(items) or _mark(items[start - 1]) != last):
        start = next((i for i, item in enumerate(items, 1) if _mark(item) == last), start)
    end = start + limit
    return page(items[start:end], [end, until_us, _mark(items[end - 1])] if end < len(items) else None)


def _mark(item: Record) -> str:
    return sha256(encode_record(item)).hexdigest()[:16]


def keyset_page(
    service: Service,
    connection: Connection,
    what: Hashable,
    after: str | None,
    kind: Any,
    limit: int,
    now_us: int,
    make: Callable[[int, Any], tuple[list[Any], tuple[Any, ...] | None]],
) -> Response:
    """A page of a list of which only the page is computed. Silence counts up to one moment in all of its pages.

    :param kind: the type of the key after which a page begins.
    """
    until_us, key = cursor(after, tuple[UInt, kind]) or (None, None)
    _check_moment(until_us, now_us)

    def computed(until_us: int) -> list[Any]:
        items, last = make(until_us, key)
        return [*items, last]

    found, until_us = service.computed.get(connection, (what, key, limit), until_us, now_us, computed)
    *items, last = found
    return page(items, None if last is None else [until_us, list(last)])
