"""Findings as lines to work off, their closing, and maintenance windows.

What is said here is neither signed nor hashed, so any client's JSON will do: its order and white space are no matter.
"""

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Path, Query, Response
from sqlalchemy import Connection

from keyturn_protocol.api import PAGE_ITEMS
from keyturn_protocol.api_read import (
    CLOSE,
    GROUPS,
    MAINTENANCE,
    CloseRequest,
    FindingGroup,
    GroupState,
    Maintenance,
    MaintenanceRequest,
)
from keyturn_protocol.canonical import parse
from keyturn_protocol.chips import chip_table
from keyturn_protocol.findings import Finding
from keyturn_protocol.limits import MAX_INT
from keyturn_verifier import queries, review
from keyturn_verifier.auth import Right
from keyturn_verifier.db.engine import reading, writing
from keyturn_verifier.routes.body import body_of
from keyturn_verifier.routes.pages import After, Authorization, Limit, allow, computed_page, cursor, one, page
from keyturn_verifier.service import Service

BODY_BYTES: Final = 16_384


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter()
    body = body_of(service, BODY_BYTES)

    @routes.get(GROUPS)
    def groups(
        authorization: Authorization = None,
        limit: Limit = PAGE_ITEMS,
        after: After = None,
        state: Annotated[GroupState | None, Query(description="only these")] = None,
    ) -> Response:
        """Findings, one line for each node and code or maintenance window; open ones first."""
        with reading(service.engine) as connection:
            now_us, _ = allow(service, connection, authorization)
            closings, windows = review.closings(connection), review.windows(connection)
            # What operators said is in the key: a closing shows at once.
            said = (len(windows), sum(w.cancelled_us is not None for w in windows), _newest(closings))
            return computed_page(
                *(service, connection, ("groups", state, said), after, limit, now_us),
                lambda until_us: _groups(
                    connection, closings, windows, state, until_us, service.about_leases(connection)
                ),
            )

    @routes.post(CLOSE)
    def close(raw: Annotated[bytes, Depends(body)], authorization: Authorization = None) -> Response:
        """Close what is found of one code on one node so far, with a reason. It stays in the list and in audits."""
        with reading(service.engine) as connection:
            now_us, caller = allow(service, connection, authorization, Right.REVIEW)
            request: CloseRequest = parse(raw, CloseRequest)
            found = queries.findings(connection, now_us, chip_table(), service.about_leases(connection))
        with writing(service.engine) as connection:
            return one(review.close(connection, request, found, caller.name, now_us))

    @routes.get(MAINTENANCE)
    def maintenance(authorization: Authorization = None, limit: Limit = PAGE_ITEMS, after: After = None) -> Response:
        """Maintenance windows, cancelled ones too, the oldest first."""
        with reading(service.engine) as connection:
            allow(service, connection, authorization)
            start: tuple[int] | None = cursor(after, tuple[int])
            items = review.windows(connection, 0 if start is None else start[0], limit)
        return page(items, [items[-1].id] if len(items) == limit else None)

    @routes.post(MAINTENANCE)
    def announce(raw: Annotated[bytes, Depends(body)], authorization: Authorization = None) -> Response:
        """Announce work: what reboots cause within the window becomes one line."""
        with reading(service.engine) as connection:
            now_us, caller = allow(service, connection, authorization, Right.REVIEW)
        request: MaintenanceRequest = parse(raw, MaintenanceRequest)
        with writing(service.engine) as connection:
            return one(review.announce(connection, request, caller.name, now_us))

    @routes.post(MAINTENANCE + "/{window}/cancel")
    def cancel(
        window: Annotated[int, Path(ge=1, le=MAX_INT, description="its id")], authorization: Authorization = None
    ) -> Response:
        """Cancel a window: it explains nothing any more, and stays listed."""
        with reading(service.engine) as connection:
            now_us, _ = allow(service, connection, authorization, Right.REVIEW)
        with writing(service.engine) as connection:
            return one(review.cancel(connection, window, now_us))

    return routes


def _newest(closings: dict[tuple[str, str], review.Covering]) -> tuple[int, int]:
    return len(closings), max((c.closed_us for c in closings.values()), default=0)


def _groups(
    connection: Connection,
    closings: dict[tuple[str, str], review.Covering],
    windows: list[Maintenance],
    state: GroupState | None,
    until_us: int,
    about_leases: list[Finding],
) -> list[FindingGroup]:
    found = queries.findings(connection, until_us, chip_table(), about_leases)
    lines = review.groups(found, closings, windows, review.sites(connection))
    return [line for line in lines if state in (None, line.state)]
