"""Auditing what people signed: each statement that the verifier's log names is there, by a key that may sign it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from keyturn_protocol.api import OperatorKey
from keyturn_protocol.audit_log import Contradiction, LogResult, listed
from keyturn_protocol.audit_tree import VerifierLog
from keyturn_protocol.bundle import BundleReader, Manifest, operator_keys, statement_path
from keyturn_protocol.dsse import verify
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import LogName, NodeId, parse_origin
from keyturn_protocol.leaves import Enrolment, NodeCheckpoint, Statement
from keyturn_protocol.links import Link, Links, NodeLogs, Received, named
from keyturn_protocol.statements import Replacement, check_operators, check_place, parse_statement


@dataclass(frozen=True, slots=True)
class Said:
    """What people said, as far as it verifies."""

    links: Links = field(default_factory=Links)
    contradictions: list[Contradiction] = field(default_factory=list)
    unpinned: int = 0
    """Statements by keys that the auditor didn't pin: nobody can say whether those could sign, so nothing follows."""


def said(
    reader: BundleReader, manifest: Manifest, verifier_log: VerifierLog, operators: Sequence[OperatorKey] | None
) -> Said:
    """Check every statement of a bundle, in the order of their leaves.

    :param operators: whose statements count; None if the auditor pinned none.
    """
    links = Links()
    found: list[Contradiction] = []
    unpinned = 0
    enrolled: set[str] = set()
    for leaf in verifier_log.leaves:
        if isinstance(leaf, Enrolment):
            enrolled.add(leaf.body.node_id)
        if not isinstance(leaf, Statement):
            continue
        path = statement_path(leaf.body.sha256)
        try:
            data = listed(reader, manifest, path, found)
            envelope, statement = parse_statement(data)
            if (envelope.hash.hex(), envelope.kind) != (leaf.body.sha256, leaf.body.kind):
                raise ProtocolError(Code.BAD_STATEMENT, "not the statement that the verifier's log names")
            check_place(statement, manifest.deployment, None)
            check_operators(envelope.kind)
            if operators is None:
                unpinned += 1
                continue
            verify(envelope, operator_keys(operators, leaf.time_us))
            if isinstance(statement, Replacement):
                links.admit(statement, enrolled=statement.old in enrolled)
                links.add(_link(statement, leaf))
        except ProtocolError as error:
            found.append(Contradiction(path, f"statement of leaf {leaf.index}: {error}"))
    return Said(links, found, unpinned)


def _link(statement: Replacement, leaf: Statement) -> Link:
    return Link(
        old=NodeId(statement.old),
        new=NodeId(statement.new),
        reason=statement.reason,
        sha256=leaf.body.sha256,
        index=leaf.index,
        time_us=leaf.time_us,
    )


def node_logs(verifier_log: VerifierLog, results: Sequence[LogResult], links: Links) -> dict[NodeId, NodeLogs]:
    """What links need of every node in one, if anything was received of it."""
    wanted = links.by_old.keys() | links.by_new.keys()
    logs: dict[NodeId, list[LogResult]] = {node: [] for node in wanted}
    for result in sorted(results, key=lambda r: parse_origin(r.ref.origin).incarnation):
        if (node := parse_origin(result.ref.origin).node_id) in logs:
            logs[node].append(result)
    times = _received(verifier_log) if wanted else {}
    return {
        node: NodeLogs(times[node], named((r.chain.source, r.listed) for r in of))
        for node, of in logs.items()
        if node in times
    }


def _received(verifier_log: VerifierLog) -> dict[NodeId, Received]:
    """By the leaves, which also cover logs that are left out of the bundle."""
    first: dict[NodeId, int] = {}
    last: dict[str, int] = {}
    for leaf in verifier_log.leaves:
        if isinstance(leaf, NodeCheckpoint):
            first.setdefault(parse_origin(leaf.body.origin).node_id, leaf.body.receipt_s)
            last[leaf.body.origin] = leaf.body.receipt_s
    newest: dict[NodeId, int] = {}
    for origin, time_s in last.items():
        node = parse_origin(origin).node_id
        newest[node] = max(newest.get(node, 0), time_s)
    return {node: Received(time_s, newest[node]) for node, time_s in first.items()}


def newest_logs(verifier_log: VerifierLog) -> Mapping[NodeId, LogName]:
    """Each node's newest enrolled log."""
    found: dict[NodeId, LogName] = {}
    for origin in verifier_log.enrolments():
        name = parse_origin(origin)
        if name.node_id not in found or found[name.node_id].incarnation < name.incarnation:
            found[name.node_id] = name
    return found
