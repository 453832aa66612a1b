"""What readers with a token see: nodes, totals per workload and span, usage rows, findings; a page at a time."""

from typing import Annotated, Final

from fastapi import APIRouter, Query, Response
from sqlalchemy import Connection

from keyturn_protocol.api import FINDINGS, NODES, PAGE_ITEMS, USAGE, WORKLOADS, FindingItem, NodeLog, ProblemCode
from keyturn_protocol.api_read import BUCKETS, LOGS, Bucket, By
from keyturn_protocol.chips import chip_table
from keyturn_protocol.findings import Finding
from keyturn_verifier import queries
from keyturn_verifier.db.engine import reading
from keyturn_verifier.problems import Refusal
from keyturn_verifier.rollup.reader import WorkloadKey
from keyturn_verifier.rollup.spans import DAY_S, LAST_S
from keyturn_verifier.rollup.totals import BucketKey
from keyturn_verifier.routes.pages import (
    After,
    Authorization,
    From,
    Limit,
    NodePath,
    To,
    Workload,
    allow,
    computed_page,
    cursor,
    keyset_page,
    page,
)
from keyturn_verifier.service import Service

MOST_DAYS: Final[dict[Bucket, int]] = {"hour": 31, "day": 366, "month": 36_600}
"""The longest span that is asked for at once: a gap of a year has a part in each of its buckets."""


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    def nodes_page(authorization: str | None, limit: int, after: str | None, node: str | None) -> Response:
        with reading(service.engine) as connection:
            allow(service, connection, authorization)
            start = cursor(after, queries.NodeCursor)
            items = queries.nodes(connection, start, limit, node)
        if node is not None and not items and start is None:
            raise Refusal(ProblemCode.NOT_FOUND, f"no node {node} is enrolled here")
        return page(items, _end(items, limit))

    @routes.get(NODES)
    def nodes(authorization: Authorization = None, limit: Limit = PAGE_ITEMS, after: After = None) -> Response:
        """Every log of every node."""
        return nodes_page(authorization, limit, after, None)

    @routes.get(LOGS)
    def logs(authorization: Authorization = None, limit: Limit = PAGE_ITEMS, after: After = None) -> Response:
        """Every log; the same list as that of nodes."""
        return nodes_page(authorization, limit, after, None)

    @routes.get(NODES + "/{node}")
    def node(
        node: NodePath, authorization: Authorization = None, limit: Limit = PAGE_ITEMS, after: After = None
    ) -> Response:
        """Every log of one node, the oldest first."""
        return nodes_page(authorization, limit, after, node)

    @routes.get(USAGE)
    def usage(
        authorization: Authorization = None,
        limit: Limit = PAGE_ITEMS,
        after: After = None,
        from_s: From = None,
        to_s: To = None,
        workload: Workload = None,
    ) -> Response:
        """Raw rows: integer integrals by log, chip, hour and workload."""
        wanted = _part(from_s, to_s, workload)
        with reading(service.engine) as connection:
            allow(service, connection, authorization)
            items, last = queries.usage_page(connection, wanted, cursor(after, queries.RowCursor), limit)
        return page(items, last)

    @routes.get(BUCKETS)
    def usage_buckets(
        bucket: Annotated[Bucket, Query(description="the length of a span, in UTC")],
        by: Annotated[By, Query(description="what is added up together")],
        authorization: Authorization = None,
        limit: Limit = PAGE_ITEMS,
        after: After = None,
        from_s: From = None,
        to_s: To = None,
        workload: Workload = None,
    ) -> Response:
        """Usage by spans of time. Hours need a span of at most 31 days, days one of at most 366."""
        wanted = _part(from_s, to_s, workload)
        _check(bucket, wanted)
        with reading(service.engine) as connection:
            now_us, _ = allow(service, connection, authorization)
            what = ("buckets", bucket, by, wanted)
            return keyset_page(
                *(service, connection, what, after, BucketKey, limit, now_us),
                lambda until_us, key: service.totals.buckets(wanted, bucket, by, until_us, key, limit),
            )

    @routes.get(WORKLOADS)
    def workloads(
        authorization: Authorization = None,
        limit: Limit = PAGE_ITEMS,
        after: After = None,
        from_s: From = None,
        to_s: To = None,
        workload: Workload = None,
    ) -> Response:
        """Totals by workload, as intervals of FLOP; the pools of what no workload can be given come last."""
        wanted = _part(from_s, to_s, workload)
        with reading(service.engine) as connection:
            now_us, _ = allow(service, connection, authorization)
            return keyset_page(
                *(service, connection, ("workloads", wanted), after, WorkloadKey, limit, now_us),
                lambda until_us, key: service.totals.workloads(wanted, until_us, key, limit),
            )

    @routes.get(FINDINGS)
    def findings(authorization: Authorization = None, limit: Limit = PAGE_ITEMS, after: After = None) -> Response:
        """Every finding, closed or not, the most severe first: what an audit finds too."""
        with reading(service.engine) as connection:
            now_us, _ = allow(service, connection, authorization)
            return computed_page(
                *(service, connection, "findings", after, limit, now_us),
                lambda until_us: _findings(connection, until_us, service.about_leases(connection)),
            )

    return routes


def _part(from_s: int | None, to_s: int | None, workload: str | None) -> queries.Filter:
    """What of the usage is asked for.

    :raises Refusal: ``bad_request``: it ends before it begins, which nobody means; none of it is an empty list.
    """
    if from_s is not None and to_s is not None and to_s < from_s:
        raise Refusal(ProblemCode.BAD_REQUEST, f"query.to: must not be before from, {from_s} (got {to_s})")
    return queries.Filter(from_s, to_s, workload)


def _check(bucket: Bucket, wanted: queries.Filter) -> None:
    """That a span isn't too long for its buckets.

    :raises Refusal: ``bad_request``.
    """
    most_s = MOST_DAYS[bucket] * DAY_S
    span_s = (wanted.to_s or LAST_S) - (wanted.from_s or 0)
    if bucket != "month" and (wanted.from_s is None or wanted.to_s is None or span_s > most_s):
        raise Refusal(
            ProblemCode.BAD_REQUEST,
            f"bucket={bucket}: from and to must be given, at most {MOST_DAYS[bucket]} days apart",
        )
    if (wanted.to_s or 0) > LAST_S or (wanted.from_s or 0) >= LAST_S:
        raise Refusal(ProblemCode.BAD_REQUEST, "from, to: after the year 9999")


def _end(items: list[NodeLog], limit: int) -> list[int | str] | None:
    return [items[-1].node_id, items[-1].incarnation] if len(items) == limit else None


def _findings(connection: Connection, until_us: int, about_leases: list[Finding]) -> list[FindingItem]:
    return [item(one) for one in queries.findings(connection, until_us, chip_table(), about_leases)]


def item(one: Finding) -> FindingItem:
    """A finding as it is listed."""
    return FindingItem(
        code=one.code,
        severity=one.severity,
        origin=one.origin,
        seq=one.seq,
        from_us=one.from_us,
        to_us=one.to_us,
        detail=one.detail,
    )
