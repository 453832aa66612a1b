"""Statements by people: posted by anybody, since the signatures in them decide; served by role."""

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Path, Query, Response

from keyturn_protocol.api import PAGE_ITEMS, STATEMENTS, ProblemCode
from keyturn_protocol.api_read import REPLACEMENTS
from keyturn_protocol.limits import ENVELOPE_BYTES
from keyturn_verifier import people, taking
from keyturn_verifier.auth import Right
from keyturn_verifier.db.engine import reading
from keyturn_verifier.patterns import HEX_32, HEX_64
from keyturn_verifier.problems import Refusal
from keyturn_verifier.routes.body import body_of
from keyturn_verifier.routes.pages import HEADERS, JSON, After, Authorization, Limit, allow, cursor, one, page
from keyturn_verifier.service import Service

Sha256Path = Annotated[str, Path(pattern=HEX_64, description="of its payload, 64 hex digits")]
Node = Annotated[str | None, Query(pattern=HEX_32, description="only those that name this node")]
About = Annotated[str | None, Query(pattern=HEX_64, description="only those about this run")]
_FIRST: Final = -1


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter()
    body = body_of(service, ENVELOPE_BYTES)

    @routes.post(STATEMENTS)
    def state(raw: Annotated[bytes, Depends(body)]) -> Response:
        """Take a statement in its envelope. Who may say it is a matter of its signatures; again changes nothing."""
        taken = service.taker.take(taking.opened(raw, service.config))
        service.said()
        return one(taken)

    @routes.get(STATEMENTS)
    def statements(
        authorization: Authorization = None, limit: Limit = PAGE_ITEMS, after: After = None, run: About = None
    ) -> Response:
        """Every statement, the oldest first."""
        with reading(service.engine) as connection:
            allow(service, connection, authorization, Right.SWITCH)
            start: tuple[int] | None = cursor(after, tuple[int])
            items = people.statements(connection, _FIRST if start is None else start[0], limit, run)
        return page(items, [items[-1].index] if len(items) == limit else None)

    @routes.get(STATEMENTS + "/{sha256}")
    def statement(sha256: Sha256Path, authorization: Authorization = None) -> Response:
        """A statement's envelope, byte for byte."""
        with reading(service.engine) as connection:
            allow(service, connection, authorization, Right.SWITCH)
            data = people.envelope_of(connection, bytes.fromhex(sha256))
        if data is None:
            raise Refusal(ProblemCode.NOT_FOUND, f"no statement {sha256} is here")
        return Response(data, media_type=JSON, headers=HEADERS)

    @routes.get(REPLACEMENTS)
    def replacements(
        authorization: Authorization = None, limit: Limit = PAGE_ITEMS, after: After = None, node: Node = None
    ) -> Response:
        """Nodes that hosts had and have: which one replaces which, and why."""
        with reading(service.engine) as connection:
            allow(service, connection, authorization)
            start: tuple[int] | None = cursor(after, tuple[int])
            items = people.replacements(connection, _FIRST if start is None else start[0], limit, node)
        return page(items, [items[-1].index] if len(items) == limit else None)

    return routes
