"""``POST /v1/join``: announce a node with a join token."""

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Request, Response

from keyturn_protocol.api import JOIN, JoinRequest
from keyturn_protocol.canonical import decode, encode_record
from keyturn_verifier.db.engine import writing
from keyturn_verifier.enrolment import join
from keyturn_verifier.routes.body import content_length, read_body
from keyturn_verifier.service import Service

BODY_BYTES: Final = 4_096


def router(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter()
    limits = service.config.limits

    async def body(request: Request) -> bytes:
        content_length(dict(request.scope["headers"]), BODY_BYTES)
        budget = service.ingest.intake.budget
        raw = await read_body(request.receive, BODY_BYTES, limits.body_timeout_s, budget)
        budget.give(len(raw))
        return raw

    @routes.post(JOIN)
    def announce(raw: Annotated[bytes, Depends(body)]) -> Response:
        request: JoinRequest = decode(raw, JoinRequest, limit=BODY_BYTES)
        with writing(service.engine) as connection:
            answer = join(connection, service.config.deployment, limits, request, service.clock())
        return Response(encode_record(answer), media_type="application/json", headers={"cache-control": "no-store"})

    return routes
