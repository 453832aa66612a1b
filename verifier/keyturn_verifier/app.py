"""The web application. Importing this does nothing; :func:`create_app` builds it around a service."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, Response
from starlette.routing import Route

from keyturn_protocol.api import SEGMENTS
from keyturn_protocol.api_read import OPENAPI
from keyturn_protocol.canonical import encode
from keyturn_verifier import problems
from keyturn_verifier.openapi import document
from keyturn_verifier.routes import (
    allowances,
    bundle,
    health,
    join,
    leases,
    log,
    logs,
    openings,
    permits,
    read,
    review,
    runs,
    statements,
)
from keyturn_verifier.routes.ingest import Segments
from keyturn_verifier.routes.query import only_known
from keyturn_verifier.service import Service


def create_app(service: Service) -> FastAPI:
    """The application; its lifespan runs the threads of ingest, sums, snapshots, webhooks and waiting hosts."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.ingest.start(asyncio.get_running_loop())
        service.watch.start(asyncio.get_running_loop())
        service.keeper.start()
        service.snapshots.start()
        service.webhooks.start()
        try:
            yield
        finally:
            # Every upload that was taken is answered and the log published before the process ends.
            await asyncio.to_thread(service.ingest.stop)
            await asyncio.to_thread(service.keeper.stop)
            await asyncio.to_thread(service.snapshots.stop)
            await asyncio.to_thread(service.webhooks.stop)
            await asyncio.to_thread(service.watch.stop)

    app = FastAPI(
        title="Keyturn verifier",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        # A redirect behind a proxy that ends TLS would lead to plain HTTP, and a token with it.
        redirect_slashes=False,
    )
    app.router.routes.append(Route(SEGMENTS, Segments(service), methods=None))
    switch = (permits, runs, openings, leases, allowances)
    for module in (health, join, log, logs, read, review, statements, *switch, bundle):
        app.include_router(module.router(service), dependencies=[Depends(only_known)])

    made: list[bytes] = []

    @app.get(OPENAPI)
    async def interface() -> Response:
        """This document."""
        if not made:
            made.append(encode(document(app)))
        return Response(made[0], media_type="application/json")

    problems.install(app, service.metrics)
    return app
