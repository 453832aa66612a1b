"""One node's log, as received: segments, receipts, proofs; and proofs of the verifier's own log."""

from typing import Any, Final

from fastapi import APIRouter, Response
from sqlalchemy import Connection, select

from keyturn_protocol.api import PAGE_ITEMS, PLAIN_TYPE, NodeLog, ProblemCode
from keyturn_protocol.api_read import LOGS, VERIFIER_PROOFS
from keyturn_protocol.ids import log_origin
from keyturn_verifier import proofs, queries, translog
from keyturn_verifier.db.engine import reading
from keyturn_verifier.db.tables import segment, segment_body
from keyturn_verifier.problems import Refusal
from keyturn_verifier.routes.pages import (
    HEADERS,
    After,
    Authorization,
    IncarnationPath,
    Index,
    Limit,
    NodePath,
    Size,
    Start,
    allow,
    cursor,
    one,
    page,
)
from keyturn_verifier.service import Service
from keyturn_verifier.upload import decompress

_LOG: Final = LOGS + "/{node}/{incarnation}"


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.get(_LOG)
    def log(node: NodePath, incarnation: IncarnationPath, authorization: Authorization = None) -> Response:
        """One log: its key, size and state."""
        with reading(service.engine) as connection:
            allow(service, connection, authorization)
            return one(_log(connection, node, incarnation)[1])

    @routes.get(_LOG + "/segments")
    def segments(
        node: NodePath,
        incarnation: IncarnationPath,
        authorization: Authorization = None,
        limit: Limit = PAGE_ITEMS,
        after: After = None,
    ) -> Response:
        """The segments of a log, by their first entries."""
        with reading(service.engine) as connection:
            allow(service, connection, authorization)
            log_id, _ = _log(connection, node, incarnation)
            start: tuple[int] | None = cursor(after, tuple[int])
            items = queries.segments(connection, log_id, None if start is None else start[0], limit)
        return page(items, [items[-1].start] if len(items) == limit else None)

    @routes.get(_LOG + "/segments/{start}")
    def segment_bytes(
        node: NodePath, incarnation: IncarnationPath, start: Start, authorization: Authorization = None
    ) -> Response:
        """A segment's bytes as they were received: entries, a line each, and the head that the node signed."""
        with reading(service.engine) as connection:
            allow(service, connection, authorization)
            log_id, _ = _log(connection, node, incarnation)
            frame = _segment(connection, log_id, start).body
        return Response(decompress(frame), media_type=PLAIN_TYPE, headers=HEADERS)

    @routes.get(_LOG + "/segments/{start}/receipt")
    def segment_receipt(
        node: NodePath, incarnation: IncarnationPath, start: Start, authorization: Authorization = None
    ) -> Response:
        """The verifier's receipt for a segment: a cosignature line for the head in it."""
        with reading(service.engine) as connection:
            allow(service, connection, authorization)
            log_id, _ = _log(connection, node, incarnation)
            receipt = _segment(connection, log_id, start).receipt
        return Response(receipt, media_type=PLAIN_TYPE, headers=HEADERS)

    @routes.get(_LOG + "/proof/inclusion")
    def log_inclusion(
        node: NodePath, incarnation: IncarnationPath, index: Index, size: Size, authorization: Authorization = None
    ) -> Response:
        """That an entry is in a node's log of some size (RFC 9162)."""
        with reading(service.engine) as connection:
            allow(service, connection, authorization)
            log_id, known = _log(connection, node, incarnation)
            ranges = proofs.of_node(connection, log_id)
            return one(proofs.inclusion(known.origin, index, size, known.size, ranges))

    @routes.get(_LOG + "/proof/consistency")
    def log_consistency(
        node: NodePath, incarnation: IncarnationPath, old_size: Size, size: Size, authorization: Authorization = None
    ) -> Response:
        """That a node's log of one size begins with that of a smaller one (RFC 9162)."""
        with reading(service.engine) as connection:
            allow(service, connection, authorization)
            log_id, known = _log(connection, node, incarnation)
            ranges = proofs.of_node(connection, log_id)
            return one(proofs.consistency(known.origin, old_size, size, known.size, ranges))

    @routes.get(VERIFIER_PROOFS + "/inclusion")
    def verifier_inclusion(index: Index, size: Size, authorization: Authorization = None) -> Response:
        """That a leaf is in the verifier's log of some published size."""
        with reading(service.engine) as connection:
            allow(service, connection, authorization)
            newest = translog.published_size(connection)
            ranges = proofs.of_verifier(connection, size)
            return one(proofs.inclusion(log_origin(service.config.deployment), index, size, newest, ranges))

    @routes.get(VERIFIER_PROOFS + "/consistency")
    def verifier_consistency(old_size: Size, size: Size, authorization: Authorization = None) -> Response:
        """That the verifier's log of one published size begins with that of a smaller one."""
        with reading(service.engine) as connection:
            allow(service, connection, authorization)
            newest = translog.published_size(connection)
            ranges = proofs.of_verifier(connection, size)
            return one(proofs.consistency(log_origin(service.config.deployment), old_size, size, newest, ranges))

    return routes


def _log(connection: Connection, node: str, incarnation: int) -> tuple[int, NodeLog]:
    found = queries.one_log(connection, node, incarnation)
    if found is None:
        raise Refusal(ProblemCode.UNKNOWN_LOG, "no such log is enrolled here")
    return found


def _segment(connection: Connection, log_id: int, start: int) -> Any:
    query = (
        select(segment_body.c.body, segment.c.receipt)
        .join(segment_body, (segment_body.c.log_id == segment.c.log_id) & (segment_body.c.start == segment.c.start))
        .where(segment.c.log_id == log_id, segment.c.start == start)
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        raise Refusal(ProblemCode.NOT_FOUND, f"no segment of this log begins with entry {start}")
    return row
