"""Findings as lines that somebody works off: one for each (node, code), or one for a maintenance window.

A closing covers what began before it. A gap that was closed and goes on stays closed, since it is the same gap; one
that begins later opens the line again. Nothing here changes a finding, a bundle or an audit.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from keyturn_protocol.api import ProblemCode
from keyturn_protocol.api_read import (
    QUIET,
    CloseRequest,
    Closing,
    FindingGroup,
    GroupState,
    Maintenance,
    MaintenanceRequest,
)
from keyturn_protocol.findings import SEVERITY, Finding, FindingCode, Severity
from keyturn_protocol.ids import parse_origin
from keyturn_protocol.usage import HOUR_S
from keyturn_verifier.db.review_tables import finding_closing, maintenance_window
from keyturn_verifier.db.tables import log
from keyturn_verifier.errors import stored
from keyturn_verifier.problems import Refusal

_RANK = {severity: rank for rank, severity in enumerate(reversed(Severity))}
_STATES: Sequence[GroupState] = ("open", "maintenance", "closed")


@dataclass(frozen=True, slots=True)
class Covering:
    """The newest closing of one (node, code)."""

    closed_us: int
    timeless: int
    reason: str
    author: str


@dataclass(slots=True)
class _Group:
    first: Finding
    nodes: set[str] = field(default_factory=set)
    count: int = 0
    timeless: int = 0
    newest_us: int = 0
    """When the newest of them began."""
    from_us: int | None = None
    to_us: int | None = None

    def add(self, node: str, one: Finding) -> None:
        self.nodes.add(node)
        self.count += 1
        began_us = began(one)
        self.timeless += began_us is None
        self.newest_us = max(self.newest_us, began_us or 0)
        if one.from_us is not None:
            self.from_us = one.from_us if self.from_us is None else min(self.from_us, one.from_us)
        if one.to_us is not None:
            self.to_us = one.to_us if self.to_us is None else max(self.to_us, one.to_us)


def began(one: Finding) -> int | None:
    """When the newest part of a finding began. One about unread chips spans hours: its last hour counts."""
    if one.code is FindingCode.UNMEASURED and one.to_us is not None:
        return one.to_us - HOUR_S * 1_000_000
    return one.from_us


@stored
def groups(
    found: Iterable[Finding],
    closings: Mapping[tuple[str, str], Covering],
    windows: Sequence[Maintenance],
    sites: Mapping[str, str],
) -> list[FindingGroup]:
    """The lines: open ones first, each state by severity, code and node.

    :param sites: a node's site, by its id.
    """
    apart: dict[tuple[str, str], _Group] = {}
    within: dict[tuple[int, str], _Group] = {}
    by_id = {window.id: window for window in windows}
    for one in found:
        node = parse_origin(one.origin).node_id
        window = _window(one, node, sites.get(node), windows)
        if window is None:
            apart.setdefault((node, one.code), _Group(one)).add(node, one)
        else:
            within.setdefault((window.id, one.code), _Group(one)).add(node, one)
    lines = [_apart(node, group, closings.get((node, code))) for (node, code), group in apart.items()]
    lines += [_within(by_id[window], group) for (window, _), group in within.items()]
    return sorted(
        lines,
        key=lambda g: (
            _STATES.index(g.state),
            _RANK[Severity(g.severity)],
            g.code,
            g.node_id or "",
            g.window or 0,
        ),
    )


def _window(one: Finding, node: str, site: str | None, windows: Sequence[Maintenance]) -> Maintenance | None:
    """The first window that explains a finding: all of its time, and a code that work explains."""
    if one.code not in QUIET or one.from_us is None or one.to_us is None:
        return None
    for window in windows:
        here = window.node_id in (None, node) and window.site in (None, site)
        if here and window.cancelled_us is None and window.from_us <= one.from_us and one.to_us <= window.to_us:
            return window
    return None


def _apart(node: str, group: _Group, closing: Covering | None) -> FindingGroup:
    covered = closing is not None and group.newest_us <= closing.closed_us and group.timeless <= closing.timeless
    return _line(
        group,
        node_id=node,
        state="closed" if covered else "open",
        window=None,
        reason=closing.reason if closing is not None and covered else None,
        by=closing.author if closing is not None and covered else None,
    )


def _within(window: Maintenance, group: _Group) -> FindingGroup:
    return _line(
        group, node_id=window.node_id, state="maintenance", window=window.id, reason=window.reason, by=window.by
    )


def _line(group: _Group, **rest: Any) -> FindingGroup:
    return FindingGroup(
        nodes=len(group.nodes),
        code=group.first.code,
        severity=SEVERITY[group.first.code],
        count=group.count,
        from_us=group.from_us,
        to_us=group.to_us,
        detail=group.first.detail,
        **rest,
    )


@stored
def closings(connection: Connection) -> dict[tuple[str, str], Covering]:
    """The newest closing of each (node, code)."""
    rows = connection.execute(select(finding_closing).order_by(finding_closing.c.id))
    return {(row.node_id, row.code): Covering(row.closed_us, row.timeless, row.reason, row.author) for row in rows}


@stored
def sites(connection: Connection) -> dict[str, str]:
    """Every node's site."""
    rows = connection.execute(select(log.c.node_id, log.c.site).order_by(log.c.incarnation))
    return {row.node_id: row.site for row in rows}


def close(connection: Connection, request: CloseRequest, found: Iterable[Finding], author: str, now_us: int) -> Closing:
    """Record a closing; in a write transaction.

    :param found: every finding up to now.
    :raises Refusal: ``not_found``: there is nothing to close.
    """
    here = [f for f in found if f.code is request.code and parse_origin(f.origin).node_id == request.node_id]
    if not here:
        raise Refusal(ProblemCode.NOT_FOUND, f"nothing is found of {request.code} on node {request.node_id}")
    made = {
        "node_id": request.node_id,
        "code": str(request.code),
        "reason": request.reason,
        "author": author,
        "closed_us": now_us,
        "count": len(here),
    }
    timeless = sum(began(f) is None for f in here)
    connection.execute(insert(finding_closing).values(**made, timeless=timeless))
    return Closing(
        node_id=request.node_id,
        code=request.code,
        reason=request.reason,
        by=author,
        closed_us=now_us,
        count=len(here),
    )


@stored
def windows(connection: Connection, after: int = 0, limit: int | None = None) -> list[Maintenance]:
    """Maintenance windows, the oldest first."""
    query = select(maintenance_window).where(maintenance_window.c.id > after).order_by(maintenance_window.c.id)
    return [_maintenance(row) for row in connection.execute(query if limit is None else query.limit(limit))]


def announce(connection: Connection, request: MaintenanceRequest, author: str, now_us: int) -> Maintenance:
    """Record a window; in a write transaction.

    :raises Refusal: ``bad_request``: it ends before it begins, or names both a node and a site.
    """
    if request.from_us >= request.to_us:
        raise Refusal(ProblemCode.BAD_REQUEST, "to_us: a window must end after it begins")
    if request.node_id is not None and request.site is not None:
        raise Refusal(ProblemCode.BAD_REQUEST, "site: a window is for a node or for a site")
    values = {
        "node_id": request.node_id,
        "site": request.site,
        "from_us": request.from_us,
        "to_us": request.to_us,
        "reason": request.reason,
        "author": author,
        "created_us": now_us,
    }
    made = connection.execute(insert(maintenance_window).values(**values)).inserted_primary_key
    assert made is not None  # noqa: S101 -- one row was inserted
    return _window_by_id(connection, made[0])


def cancel(connection: Connection, number: int, now_us: int) -> Maintenance:
    """Make a window explain nothing; in a write transaction. Again changes nothing.

    :raises Refusal: ``not_found``.
    """
    live = maintenance_window.c.cancelled_us.is_(None)
    connection.execute(
        update(maintenance_window).where(maintenance_window.c.id == number, live).values(cancelled_us=now_us)
    )
    return _window_by_id(connection, number)


def _window_by_id(connection: Connection, number: int) -> Maintenance:
    row = connection.execute(select(maintenance_window).where(maintenance_window.c.id == number)).one_or_none()
    if row is None:
        raise Refusal(ProblemCode.NOT_FOUND, f"there is no maintenance window {number}")
    return _maintenance(row)


def _maintenance(row: Row[Any]) -> Maintenance:
    return Maintenance(
        id=row.id,
        node_id=row.node_id,
        site=row.site,
        from_us=row.from_us,
        to_us=row.to_us,
        reason=row.reason,
        by=row.author,
        created_us=row.created_us,
        cancelled_us=row.cancelled_us,
    )
