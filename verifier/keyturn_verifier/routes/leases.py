"""Leases: issued to hosts, whose signed entries ask for them; and listed for people."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Response
from sqlalchemy import select

from keyturn_protocol.api import PAGE_ITEMS, PLAIN_TYPE, ProblemCode
from keyturn_protocol.api_switch import LEASES, LeaseRequest
from keyturn_protocol.canonical import decode
from keyturn_verifier import runs, translog
from keyturn_verifier.auth import Right
from keyturn_verifier.db.engine import reading
from keyturn_verifier.db.switch_tables import lease_issued
from keyturn_verifier.patterns import HEX_64
from keyturn_verifier.problems import Refusal
from keyturn_verifier.routes.body import body_of
from keyturn_verifier.routes.pages import HEADERS, After, Authorization, Limit, allow, cursor, page
from keyturn_verifier.routes.review import BODY_BYTES
from keyturn_verifier.service import Service

About = Annotated[str | None, Query(pattern=HEX_64, description="only those of this run")]
Sha256Path = Annotated[str, Path(pattern=HEX_64, description="of its text, 64 hex digits")]
_NO_STORE = {"cache-control": "no-store"}


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter()
    body = body_of(service, BODY_BYTES)

    @routes.post(LEASES)
    def issue(raw: Annotated[bytes, Depends(body)]) -> Response:
        """Lease what a `permit` entry asks for. The entry is signed; the same one gets the same lease, always."""
        request: LeaseRequest = decode(raw, LeaseRequest, limit=BODY_BYTES)
        note = service.leaser.issue(request)
        service.said()
        return Response(note, media_type=PLAIN_TYPE, headers=_NO_STORE)

    @routes.get(LEASES)
    def leases(
        authorization: Authorization = None, limit: Limit = PAGE_ITEMS, after: After = None, run: About = None
    ) -> Response:
        """Leases in the order in which they were issued."""
        start: tuple[int] | None = cursor(after, tuple[int])
        with reading(service.engine) as connection:
            now_us, _ = allow(service, connection, authorization, Right.SWITCH)
            rows = runs.lease_rows(connection, -1 if start is None else start[0], limit, run)
            with service.switch.caught_up(connection, translog.head(connection).size) as switch:
                items: list[Any] = [runs.lease_item(switch, row, now_us) for row in rows]
        return page(items, [items[-1].index] if len(items) == limit else None)

    @routes.get(LEASES + "/{sha256}")
    def lease(sha256: Sha256Path, authorization: Authorization = None) -> Response:
        """A lease, the signed note."""
        query = select(lease_issued.c.note).where(lease_issued.c.sha256 == bytes.fromhex(sha256))
        with reading(service.engine) as connection:
            allow(service, connection, authorization, Right.SWITCH)
            note = connection.execute(query).scalar()
        if note is None:
            raise Refusal(ProblemCode.NOT_FOUND, f"no lease {sha256} is here")
        return Response(note, media_type=PLAIN_TYPE, headers=HEADERS)

    return routes
