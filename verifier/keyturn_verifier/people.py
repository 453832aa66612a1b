"""Statements by people: taking them, once, with a leaf each; and what replacements say about nodes."""

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, insert, or_, select

from keyturn_protocol.api import OperatorKey, ProblemCode
from keyturn_protocol.api_read import ReplacementItem, StatementItem
from keyturn_protocol.bundle import operator_keys
from keyturn_protocol.canonical import parse
from keyturn_protocol.cosignature import parse_cosignature, parse_receipt
from keyturn_protocol.dsse import Envelope, verify
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import Deployment, LogName, NodeId, parse_origin
from keyturn_protocol.keys import SignatureType
from keyturn_protocol.leaves import StatementBody
from keyturn_protocol.links import Link, Links, NodeLogs, Received, named
from keyturn_protocol.segment import ChainState
from keyturn_protocol.statements import Replacement, Statement, check_operators, check_place, parse_statement
from keyturn_protocol.totals import Moment
from keyturn_verifier import translog
from keyturn_verifier.db.statement_tables import node_replacement, statement
from keyturn_verifier.db.tables import log, segment
from keyturn_verifier.problems import Refusal

Listings = Mapping[int, Mapping[str, Moment]]
"""The id of a log → what it lists or retires."""


def opened(data: bytes, deployment: Deployment) -> tuple[Envelope, Statement]:
    """A statement for this deployment; who signed it is yet to be checked.

    :raises Refusal: ``bad_statement``, or ``too_large``.
    """
    try:
        envelope, said = parse_statement(data)
        check_place(said, deployment, None)
        check_operators(envelope.kind)
    except ProtocolError as error:
        if error.code is Code.TOO_LARGE:
            raise
        raise Refusal(ProblemCode.BAD_STATEMENT, str(error)) from None
    return envelope, said


def check_signers(envelope: Envelope, operators: Iterable[OperatorKey], at_us: int) -> None:
    """That every signature of an operator's statement is by an operator's key that is good at a time.

    :raises Refusal: ``bad_signature``.
    """
    try:
        verify(envelope, operator_keys(operators, at_us))
    except ProtocolError as error:
        raise Refusal(ProblemCode.BAD_SIGNATURE, str(error)) from None


def known(connection: Connection, envelope: Envelope) -> StatementItem | None:
    """A statement that is here already."""
    row = connection.execute(select(statement).where(statement.c.sha256 == envelope.hash)).one_or_none()
    return None if row is None else _item(row)


def take(
    connection: Connection, envelope: Envelope, said: Statement, operators: Iterable[OperatorKey], now_us: int
) -> StatementItem:
    """Store a statement and append its leaf; in a write transaction. The same one twice is one.

    The lock of the verifier's log, which any transaction takes last, is the only one here: what is enrolled or said by
    then is seen, and nobody says anything meanwhile.

    :raises Refusal: ``bad_signature``, or ``statement_refused``: it contradicts what was said before.
    """
    head = translog.lock(connection)
    there = known(connection, envelope)
    if there is not None:
        return there
    time_us = max(now_us, head.time_us)
    check_signers(envelope, operators, time_us)
    item = StatementItem(index=head.size, time_us=time_us, kind=envelope.kind, sha256=envelope.hash.hex())
    if isinstance(said, Replacement):
        enrolled = connection.execute(select(log.c.id).where(log.c.node_id == said.old).limit(1)).first() is not None
        try:
            links(connection).admit(said, enrolled=enrolled)
        except ProtocolError as error:
            raise Refusal(ProblemCode.STATEMENT_REFUSED, str(error)) from None
    connection.execute(
        insert(statement).values(
            leaf=item.index, sha256=envelope.hash, kind=envelope.kind, envelope=envelope.to_bytes(), time_us=time_us
        )
    )
    if isinstance(said, Replacement):
        values = {"leaf": item.index, "old": said.old, "new": said.new, "reason": said.reason}
        connection.execute(insert(node_replacement).values(**values))
    translog.append(connection, [StatementBody(kind=item.kind, sha256=item.sha256)], time_us)
    return item


def statements(connection: Connection, after: int, limit: int) -> list[StatementItem]:
    """Statements in the order of their leaves."""
    query = select(statement).where(statement.c.leaf > after).order_by(statement.c.leaf).limit(limit)
    return [_item(row) for row in connection.execute(query)]


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
            Received(_time_s(logs[0].receipt), max(row.receipt_s for row in logs)),
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


def _time_s(receipt: bytes) -> int:
    """The time of a receipt of ours."""
    return parse_cosignature(parse_receipt(receipt).signature, SignatureType.COSIGNATURE_ED25519).time_s


def _item(row: Any) -> StatementItem:
    return StatementItem(index=row.leaf, time_us=row.time_us, kind=row.kind, sha256=row.sha256.hex())
