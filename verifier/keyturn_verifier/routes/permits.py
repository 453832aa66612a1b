"""What hosts ask for about a run, and wait for: the permit bundle.

A run's hash is the key: nobody can guess it, and no public route may show it (docs/adr/0011).
"""

import asyncio
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.requests import ClientDisconnect

from keyturn_protocol.api_switch import AUTHORITY, RUNS, WAIT_S
from keyturn_protocol.limits import MAX_INT
from keyturn_verifier.patterns import HEX_64
from keyturn_verifier.routes.body import gone
from keyturn_verifier.routes.pages import JSON
from keyturn_verifier.service import Service

RunPath = Annotated[str, Path(pattern=HEX_64, description="the hash of its request, 64 hex digits")]
Seen = Annotated[int | None, Query(ge=0, le=MAX_INT, description="the last leaf that is known: only what is newer")]
Wait = Annotated[int, Query(ge=0, le=WAIT_S, description="with `after`: seconds to wait for something newer")]
_HEADERS: Final = {"cache-control": "no-store"}


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    async def answer(request: Request, run: str | None, after: int | None, wait_s: int) -> Response:
        built = await service.permits.get(run)
        if after is not None and built.index <= after:
            if wait_s:
                await _until_news(service, request, run, after, wait_s)
                built = await service.permits.get(run)
            if built.index <= after:
                return Response(status_code=204, headers=_HEADERS)
        return Response(built.data, media_type=JSON, headers=_HEADERS)

    @routes.get(AUTHORITY)
    async def authority(request: Request, after: Seen = None, wait_s: Wait = 0) -> Response:
        """Every root and policy, as a permit bundle of no run."""
        return await answer(request, None, after, wait_s)

    @routes.get(RUNS + "/{run}/permit")
    async def permit(request: Request, run: RunPath, after: Seen = None, wait_s: Wait = 0) -> Response:
        """The permit bundle of a run; with `after` only if there is more than that leaf, else 204."""
        return await answer(request, run, after, wait_s)

    return routes


async def _until_news(service: Service, request: Request, run: str | None, after: int, wait_s: int) -> None:
    """Wait, for as long as the client does."""
    news = asyncio.ensure_future(service.watch.wait(run, after, wait_s))
    left = asyncio.ensure_future(gone(request.receive))
    try:
        await asyncio.wait({news, left}, return_when=asyncio.FIRST_COMPLETED)
        if not news.done():
            raise ClientDisconnect
        await news
    finally:
        for task in (news, left):
            task.cancel()
        await asyncio.gather(news, left, return_exceptions=True)
