"""``/healthz``: the process answers. ``/readyz``: it can store and publish. ``/metrics``: Prometheus."""

import threading
import time
from contextlib import suppress
from typing import Final

from fastapi import APIRouter, Request, Response
from sqlalchemy import Connection, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from keyturn_protocol.api import HEALTH, ProblemCode
from keyturn_protocol.api_read import METRICS, READY
from keyturn_protocol.canonical import encode
from keyturn_protocol.leaves import parse_leaf
from keyturn_verifier import estranged, in_force, metrics, translog
from keyturn_verifier.auth import Right
from keyturn_verifier.db import durability
from keyturn_verifier.db.engine import reading, writing
from keyturn_verifier.db.tables import tree_head
from keyturn_verifier.errors import DamagedError, stored
from keyturn_verifier.problems import Refusal
from keyturn_verifier.rollup import feed
from keyturn_verifier.routes.pages import Authorization, allow
from keyturn_verifier.service import Service

PROBE_S: Final = 2.0
"""An answer is good for this long: asking often takes no write lock from ingest."""
_NO_STORE: Final = {"cache-control": "no-store"}
_FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


class _Undo(Exception):
    """Ends a write transaction that must leave nothing."""


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter()
    probe = _Probe(service)

    # HEAD too, which load balancers ask; the server leaves the body out.
    @routes.head(HEALTH, include_in_schema=False)
    @routes.get(HEALTH)
    async def healthz() -> Response:
        """The process answers. It asks nobody, so that it answers when the database doesn't."""
        return Response(b'{"status":"ok"}', media_type="application/json", headers=_NO_STORE)

    @routes.head(READY, include_in_schema=False)
    @routes.get(READY)
    def readyz() -> Response:
        """The database can be written, and the verifier's log is published in time; 503 says what isn't so.

        ``warnings``, where there are any: what doesn't keep this server from serving, and should be known.
        """
        why = probe.why_not()
        if why is not None:
            raise Refusal(ProblemCode.OVERLOADED, why)
        body = {"status": "ready"} | ({"warnings": probe.cautions} if probe.cautions else {})
        return Response(encode(body), media_type="application/json", headers=_NO_STORE)

    @routes.get(METRICS)
    def prometheus(request: Request, authorization: Authorization = None) -> Response:
        """Prometheus text. From this machine without a token, else with an operator's or admin's."""
        with reading(service.engine) as connection:
            if authorization is not None or not _from_here(request):
                allow(service, connection, authorization, Right.METRICS)
            unpublished, lag_s = publish_lag(connection, service.clock())
            behind = rollup_lag(connection)
            switch, root = b"", None
            with suppress(DamagedError):  # the rest matters all the more then
                root = in_force.root(connection)
                switch = metrics.of_switch(service.counts(connection))
        gauges = {
            "keyturn_queue_bytes": (service.ingest.intake.budget.used, "Bytes of uploads that wait for an answer."),
            "keyturn_queue_limit_bytes": (service.config.limits.queue_bytes, "The most that may wait."),
            "keyturn_unpublished_leaves": (unpublished, "Leaves that no checkpoint covers yet."),
            "keyturn_rollup_lag_leaves": (behind, "Leaves whose segments each page of totals has to add by itself."),
            "keyturn_publish_lag_seconds": (lag_s, "Age of the oldest leaf that no checkpoint covers yet."),
        }
        if root is not None:
            about = "When the root in force expires: after that no host is enrolled under it."
            gauges["keyturn_root_expires_timestamp_seconds"] = (root.expires_us / 1_000_000, about)
        text = metrics.text(service.metrics, service.ingest.batches, gauges) + switch
        return Response(text, media_type=metrics.TYPE, headers=_NO_STORE)

    return routes


def _from_here(request: Request) -> bool:
    """Whether a request comes from this machine itself, and not through a proxy on it."""
    host = request.client.host if request.client is not None else ""
    return host in ("127.0.0.1", "::1") and not any(name in request.headers for name in _FORWARDED)


@stored
def publish_lag(connection: Connection, now_us: int) -> tuple[int, float]:
    """How many leaves no checkpoint covers, and the age of the oldest of them in seconds."""
    size = translog.head(connection).size
    published = translog.published_size(connection)
    if published >= size:
        return 0, 0.0
    (leaf,) = translog.leaves(connection, published, 1)
    return size - published, max(0, now_us - parse_leaf(leaf).time_us) / 1_000_000


def rollup_lag(connection: Connection) -> int:
    """How many leaves stored sums don't hold yet; all of them before the first pass."""
    made = feed.load(connection)
    return feed.size(connection) - (0 if made is None else made.size)


class _Probe:
    """Asks the database at most once in :data:`PROBE_S`."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._asked_s = -PROBE_S
        self._why: str | None = None
        self.cautions: list[str] = []

    def why_not(self) -> str | None:
        """Why this server isn't ready; None: it is."""
        with self._lock:
            if time.monotonic() - self._asked_s >= PROBE_S:
                self._why = self._ask()
                self._asked_s = time.monotonic()
            return self._why

    def _ask(self) -> str | None:
        service = self._service
        try:
            with reading(service.engine) as connection:
                _, lag_s = publish_lag(connection, service.clock())
                about = (
                    durability.caution(connection),
                    estranged.caution(connection, service.config, service.keys),
                    in_force.caution(connection, service.clock()),
                )
                self.cautions = [each for each in about if each is not None]
            with suppress(_Undo), writing(service.engine) as connection:
                connection.execute(update(tree_head).values(id=tree_head.c.id))
                raise _Undo
        except (DBAPIError, PoolTimeout):
            return "the database can't be written"
        except DamagedError:
            return "what is stored is damaged"
        if lag_s > service.config.limits.publish_lag_s:
            return f"the verifier's log was not published for {lag_s:.0f} s"
        return None
