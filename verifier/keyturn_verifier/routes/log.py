"""The verifier's own log (C2SP tlog-tiles) and the heads of nodes' logs.

Checkpoint and hash tiles are public: they are all that a witness needs, and show of a leaf only its hash. Entry bundles
are for readers: they name nodes and sites, and hold the hashes by which hosts ask for permits.
"""

from typing import Final

from fastapi import APIRouter, Response
from sqlalchemy import select

from keyturn_protocol.api import ENTRY_BUNDLES, LOG, ProblemCode
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.ids import node_id
from keyturn_protocol.tiles import ENTRIES, parse_tile_path
from keyturn_verifier import translog
from keyturn_verifier.db.engine import reading
from keyturn_verifier.db.tables import log
from keyturn_verifier.problems import Refusal
from keyturn_verifier.routes.pages import HEADERS, Authorization, allow
from keyturn_verifier.service import Service

_TEXT: Final = "text/plain; charset=utf-8"
_IMMUTABLE: Final = {"cache-control": "public, max-age=31536000, immutable"}
"""A tile of some width never changes, full or partial."""
_NEWEST: Final = {"cache-control": "public, max-age=1"}
_NO_STORE: Final = {"cache-control": "no-store"}


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.get(LOG + "/checkpoint")
    def checkpoint() -> Response:
        with reading(service.engine) as connection:
            note = translog.newest_checkpoint(connection)
        if note is None:
            raise Refusal(ProblemCode.NOT_FOUND, "nothing is published yet")
        return Response(note, media_type=_TEXT, headers=_NEWEST)

    def tile(path: str, authorization: str | None) -> Response:
        try:
            wanted = parse_tile_path(path)
        except ProtocolError as error:
            raise Refusal(ProblemCode.NOT_FOUND, str(error)) from None
        with reading(service.engine) as connection:
            # What the path parses to decides, not which route it came by.
            if wanted.level == ENTRIES:
                allow(service, connection, authorization)
            data = translog.read_tile(connection, wanted)
        if data is None:
            raise Refusal(ProblemCode.NOT_FOUND, f"the newest checkpoint does not cover {path}")
        headers = HEADERS if wanted.level == ENTRIES else _IMMUTABLE
        return Response(data, media_type="application/octet-stream", headers=headers)

    @routes.get(ENTRY_BUNDLES + "/{path:path}")
    def entries(path: str, authorization: Authorization = None) -> Response:
        """An entry bundle that the newest checkpoint covers: leaves of the verifier's log."""
        return tile(f"tile/entries/{path}", authorization)

    @routes.get(LOG + "/{path:path}")
    def hashes(path: str) -> Response:
        """A hash tile that the newest checkpoint covers."""
        return tile(path, None)

    @routes.get("/v1/logs/{node}/{incarnation}/head")
    def head(node: str, incarnation: str) -> Response:
        try:
            checked = node_id(node)
        except ProtocolError as error:
            raise Refusal(ProblemCode.NOT_FOUND, str(error)) from None
        if not incarnation.isascii() or not incarnation.isdigit() or len(incarnation) > 15:
            raise Refusal(ProblemCode.NOT_FOUND, "not an incarnation")
        query = select(log.c.note, log.c.receipt).where(
            log.c.node_id == checked, log.c.incarnation == int(incarnation), log.c.note.is_not(None)
        )
        with reading(service.engine) as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise Refusal(ProblemCode.UNKNOWN_LOG, "nothing was received of such a log")
        return Response(row.note + row.receipt, media_type=_TEXT, headers=_NO_STORE)

    return routes
