"""Statements by people that are here, and what replacements say about nodes."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, or_, select

from keyturn_protocol.api_read import ReplacementItem, StatementItem
from keyturn_protocol.canonical import parse
from keyturn_protocol.cosignature import parse_cosignature, parse_receipt
from keyturn_protocol.dsse import Envelope, parse_envelope
from keyturn_protocol.ids import LogName, NodeId, parse_origin
from keyturn_protocol.keys import SignatureType
from keyturn_protocol.links import Link, Links, NodeLogs, Received, named
from keyturn_protocol.root import Root, Standing, stand
from keyturn_protocol.segment import ChainState
from keyturn_protocol.statements import parse_payload
from keyturn_protocol.totals import Moment
from keyturn_verifier.db.statement_tables import node_replacement, statement
from keyturn_verifier.db.tables import log, segment

Listings = Mapping[int, Mapping[str, Moment]]
"""The id of a log → what it lists or retires."""


def known(connection: Connection, envelope: Envelope) -> StatementItem | None:
    """A statement that is here already."""
    row = connection.execute(select(statement).where(statement.c.sha256 == envelope.hash)).one_or_none()
    return None if row is None else _item(row)


def statements(connection: Connection, after: int, limit: int, run: str | None) -> list[StatementItem]:
    """Statements in the order of their leaves; those about a run, if one is given."""
    query = select(statement).where(statement.c.leaf > after).order_by(statement.c.leaf).limit(limit)
    if run is not None:
        query = query.where(statement.c.run == run)
    return [_item(row) for row in connection.execute(query)]


def newest_root(connection: Connection) -> Standing | None:
    """The root in force, as it is stored; None before there is one."""
    query = select(statement.c.envelope).where(statement.c.kind == "root").order_by(statement.c.leaf.desc()).limit(1)
    data = connection.execute(query).scalar()
    if data is None:
        return None
    envelope = parse_envelope(bytes(data))
    root = parse_payload(envelope.kind, envelope.payload)
    return stand(root, envelope.hash.hex()) if isinstance(root, Root) else None


def envelope_of(connection: Connection, sha256: bytes) -> bytes | None:
    """A statement's bytes, as they were taken."""
    return connection.execute(select(statement.c.envelope).where(statement.c.sha256 == sha256)).scalar()


def replacements(connection: Connection, after: int, limit: int, node: str | None) -> list[ReplacementItem]:
    """Replacements in the order of their leaves; those that name a node, if one is given."""
    query = _replacements().where(statement.c.leaf > after).order_by(statement.c.leaf).limit(limit)
    if node is not None:
        query = query.where(or_(node_replacement.c.old == node, node_replacement.c.new == node))
    return [
        ReplacementItem(
            index=row.leaf, time_us=row.time_us, sha256=row.sha256.hex(), old=row.old, new=row.new, reason=row.reason
        )
        for row in connection.execute(query)
    ]


def links(connection: Connection) -> Links:
    """Every replacement."""
    return Links(
        Link(NodeId(row.old), NodeId(row.new), row.reason, row.sha256.hex(), row.leaf, row.time_us)
        for row in connection.execute(_replacements().order_by(statement.c.leaf))
    )


def node_logs(connection: Connection, known: Links, listed: Listings) -> dict[NodeId, NodeLogs]:
    """What links need of every node in one that is enrolled."""
    rows: dict[NodeId, list[Any]] = {}
    columns = (log.c.id, log.c.node_id, log.c.chain, log.c.receipt_s)
    query = select(*columns, segment.c.receipt).join(segment, (segment.c.log_id == log.c.id) & (segment.c.start == 0))
    wanted = sorted(known.by_old.keys() | known.by_new.keys())
    for at in range(0, len(wanted), 500):
        part = query.where(log.c.node_id.in_(wanted[at : at + 500])).order_by(log.c.node_id, log.c.incarnation)
        for row in connection.execute(part):
            rows.setdefault(NodeId(row.node_id), []).append(row)
    return {
        node: NodeLogs(
            Received(receipt_time_s(logs[0].receipt), max(row.receipt_s for row in logs)),
            named((parse(row.chain, ChainState).source, listed.get(row.id, {})) for row in logs),
        )
        for node, logs in rows.items()
    }


def newest_logs(connection: Connection, known: Links) -> dict[NodeId, LogName]:
    """The newest log of every node that is replaced."""
    found: dict[NodeId, LogName] = {}
    wanted = sorted(known.by_old)
    for at in range(0, len(wanted), 500):
        query = select(log.c.origin).where(log.c.node_id.in_(wanted[at : at + 500])).order_by(log.c.incarnation)
        for row in connection.execute(query):
            name = parse_origin(row.origin)
            found[name.node_id] = name
    return found


def _replacements() -> Any:
    return select(node_replacement, statement.c.sha256, statement.c.time_us).join(
        statement, statement.c.leaf == node_replacement.c.leaf
    )


def receipt_time_s(receipt: bytes) -> int:
    """The time of a receipt of ours."""
    return parse_cosignature(parse_receipt(receipt).signature, SignatureType.COSIGNATURE_ED25519).time_s


def _item(row: Any) -> StatementItem:
    return StatementItem(index=row.leaf, time_us=row.time_us, kind=row.kind, sha256=row.sha256.hex())
