"""What readers with a token see: nodes, totals per workload, usage rows, findings; a page at a time."""

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Response
from sqlalchemy import Connection

from keyturn_protocol.api import (
    FINDINGS,
    NODES,
    PAGE_ITEMS,
    USAGE,
    WORKLOADS,
    FindingItem,
    Page,
    ProblemCode,
)
from keyturn_protocol.canonical import decode, encode
from keyturn_protocol.chips import chip_table
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.limits import MAX_INT
from keyturn_protocol.usage import HOUR_S
from keyturn_verifier import queries
from keyturn_verifier.auth import check_reader
from keyturn_verifier.db.engine import reading
from keyturn_verifier.problems import Refusal
from keyturn_verifier.service import Service

Authorization = Annotated[str | None, Header()]
Limit = Annotated[int, Query(ge=1, le=PAGE_ITEMS)]
After = Annotated[str | None, Query(max_length=2_048)]
Hour = Annotated[int | None, Query(ge=0, le=MAX_INT // 1_000_000, multiple_of=HOUR_S)]
Workload = Annotated[str | None, Query(max_length=256)]
_HEADERS: Final = {"cache-control": "private, no-store"}


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    def allow(connection: Connection, authorization: str | None) -> int:
        """Check the token; returns the time of asking."""
        now_us = service.clock()
        check_reader(connection, authorization, now_us)
        return now_us

    @routes.get(NODES)
    def nodes(authorization: Authorization = None, limit: Limit = PAGE_ITEMS, after: After = None) -> Response:
        with reading(service.engine) as connection:
            allow(connection, authorization)
            items = queries.nodes(connection, _cursor(after, queries.NodeCursor), limit)
        more = len(items) == limit
        return _page(items, [items[-1].node_id, items[-1].incarnation] if more else None)

    @routes.get(USAGE)
    def usage(
        authorization: Authorization = None,
        limit: Limit = PAGE_ITEMS,
        after: After = None,
        from_s: Annotated[Hour, Query(alias="from")] = None,
        to_s: Annotated[Hour, Query(alias="to")] = None,
        workload: Workload = None,
    ) -> Response:
        wanted = queries.Filter(from_s, to_s, workload)
        with reading(service.engine) as connection:
            allow(connection, authorization)
            items, last = queries.usage_page(connection, wanted, _cursor(after, queries.RowCursor), limit)
        return _page(items, last)

    @routes.get(WORKLOADS)
    def workloads(
        authorization: Authorization = None,
        limit: Limit = PAGE_ITEMS,
        after: After = None,
        from_s: Annotated[Hour, Query(alias="from")] = None,
        to_s: Annotated[Hour, Query(alias="to")] = None,
        workload: Workload = None,
    ) -> Response:
        wanted = queries.Filter(from_s, to_s, workload)
        with reading(service.engine) as connection:
            now_us = allow(connection, authorization)
            start, until_us = _cursor(after, tuple[int, int]) or (0, now_us)
            items = queries.workloads(connection, wanted, until_us, chip_table())
        return _slice(items, start, limit, until_us)

    @routes.get(FINDINGS)
    def findings(authorization: Authorization = None, limit: Limit = PAGE_ITEMS, after: After = None) -> Response:
        with reading(service.engine) as connection:
            now_us = allow(connection, authorization)
            start, until_us = _cursor(after, tuple[int, int]) or (0, now_us)
            found = queries.findings(connection, until_us, chip_table())
        items = [
            FindingItem(
                code=f.code,
                severity=f.severity,
                origin=f.origin,
                seq=f.seq,
                from_us=f.from_us,
                to_us=f.to_us,
                detail=f.detail,
            )
            for f in found
        ]
        return _slice(items, start, limit, until_us)

    return routes


def _slice(items: Sequence[Any], start: int, limit: int, until_us: int) -> Response:
    """A page of a list that is computed anew for each page, as of one moment."""
    end = start + limit
    return _page(items[start:end], [end, until_us] if end < len(items) else None)


def _page(items: Sequence[Any], last: Sequence[int | str] | None) -> Response:
    cursor = None if last is None else base64.urlsafe_b64encode(encode(list(last))).decode()
    return Response(encode(Page(items=list(items), next=cursor)), media_type="application/json", headers=_HEADERS)


def _cursor(text: str | None, kind: Any) -> Any:
    """A cursor that :func:`_page` made."""
    if text is None:
        return None
    try:
        return decode(base64.b64decode(text, altchars=b"-_", validate=True), kind)
    except (ProtocolError, binascii.Error, ValueError):
        raise Refusal(ProblemCode.BAD_REQUEST, "after: not a cursor of this list") from None
