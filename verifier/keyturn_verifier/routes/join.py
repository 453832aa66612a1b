"""``POST /v1/join``: announce a node with a join token."""

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Response

from keyturn_protocol.api import JOIN, JoinRequest
from keyturn_protocol.canonical import decode, encode_record
from keyturn_verifier.db.engine import writing
from keyturn_verifier.enrolment import join
from keyturn_verifier.routes.body import body_of
from keyturn_verifier.service import Service

BODY_BYTES: Final = 4_096


def router(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter()
    limits = service.config.limits
    body = body_of(service, BODY_BYTES)

    @routes.post(JOIN)
    def announce(raw: Annotated[bytes, Depends(body)]) -> Response:
        request: JoinRequest = decode(raw, JoinRequest, limit=BODY_BYTES)
        with writing(service.engine) as connection:
            answer = join(connection, service.config.deployment, limits, request, service.clock())
        return Response(encode_record(answer), media_type="application/json", headers={"cache-control": "no-store"})

    return routes
