"""``GET /healthz``: the process answers."""

from fastapi import APIRouter, Response

from keyturn_protocol.api import HEALTH


def router() -> APIRouter:
    """The route. It asks nobody, so that it answers when the database doesn't."""
    routes = APIRouter()

    @routes.get(HEALTH)
    async def healthz() -> Response:
        return Response(b'{"status":"ok"}', media_type="application/json", headers={"cache-control": "no-store"})

    return routes
