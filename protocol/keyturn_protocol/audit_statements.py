"""Auditing what people signed: each statement that the verifier's log names is there, and was right to be taken.

Before there is a root, keys of the trust file sign; from the first root's leaf on, the start switch says who may say
what.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from keyturn_protocol.api import OperatorKey, Trust
from keyturn_protocol.audit_leases import Taking
from keyturn_protocol.audit_log import Contradiction, LogResult, listed
from keyturn_protocol.audit_tree import VerifierLog
from keyturn_protocol.authority import Refused
from keyturn_protocol.bundle import VERIFIER_LOG, BundleReader, Manifest, lease_path, operator_keys, statement_path
from keyturn_protocol.dsse import Envelope, verify
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.findings import Finding
from keyturn_protocol.ids import LogName, NodeId, parse_origin
from keyturn_protocol.keys import parse_vkey
from keyturn_protocol.lease import open_lease, parse_lease
from keyturn_protocol.leaves import Enrolment, Lease, NodeCheckpoint, Statement
from keyturn_protocol.links import Link, Links, NodeLogs, Received, named
from keyturn_protocol.root import Root
from keyturn_protocol.statement_base import Statement as Says
from keyturn_protocol.statements import Replacement, check_operators, check_place, parse_statement
from keyturn_protocol.switch import Switch, log_statement


@dataclass(slots=True)
class Said:
    """What people said, as far as it verifies."""

    switch: Switch
    """All that was said from the first root on, folded."""
    links: Links = field(default_factory=Links)
    contradictions: list[Contradiction] = field(default_factory=list)
    unpinned: int = 0
    """Statements by keys that the auditor didn't pin: nobody can say whether those could sign, so nothing follows."""
    under_root: int = 0
    """Statements from the first root on."""
    rooted: bool = False
    """Whether the pinned root is one of those in the verifier's log."""
    findings: list[Finding] = field(default_factory=list)
    """About what nodes said about their leases."""


def said(
    reader: BundleReader,
    manifest: Manifest,
    verifier_log: VerifierLog,
    results: Sequence[LogResult],
    trust: Trust,
    operators: Sequence[OperatorKey] | None,
    root_sha256: str | None,
) -> Said:
    """Check every statement and lease of a bundle, in the order of their leaves.

    :param results: of all logs: what they asked for, and what they charged.
    :param trust: the keys that the verifier's log was checked with; a root has to name the same.
    :param operators: whose statements count before there is a root; None if the auditor pinned none.
    :param root_sha256: the pinned root, in hex.
    """
    statements = {leaf.body.sha256 for leaf in verifier_log.leaves if isinstance(leaf, Statement)}
    fold = Said(Switch(manifest.deployment), rooted=root_sha256 in statements)
    enrolled: set[str] = set()
    logs = {result.ref.origin: result for result in results}
    whole = {origin for origin, result in logs.items() if not result.contradictions}
    enrolments = verifier_log.enrolments()
    taking = Taking(enrolments, logs, enrolments.keys() - whole)
    for leaf in verifier_log.leaves:
        match leaf:
            case Enrolment():
                enrolled.add(leaf.body.node_id)
                taking.enrolment(leaf)
                continue
            case NodeCheckpoint():
                taking.checkpoint(fold.switch, leaf)
                continue
            case Statement():
                path, what = statement_path(leaf.body.sha256), "statement"
            case Lease():
                path, what = lease_path(leaf.body.sha256), "lease"
            case _:
                continue
        try:
            data = listed(reader, manifest, path, fold.contradictions)
            match leaf:
                case Statement():
                    _statement(fold, leaf, data, trust, operators, enrolled)
                case Lease():
                    _lease(fold, leaf, data, taking)
                case _:
                    assert_never(leaf)
        except ProtocolError as error:
            why = f"{error.why}: " if isinstance(error, Refused) else ""
            fold.contradictions.append(Contradiction(path, f"{what} of leaf {leaf.index}: {why}{error}"))
    if root_sha256 is not None and fold.under_root and not fold.rooted:
        fold.contradictions.append(
            Contradiction(VERIFIER_LOG, f"no root in the verifier's log has the pinned hash {root_sha256}")
        )
    fold.findings += [*taking.findings, *taking.listings.findings()]
    return fold


def _statement(
    fold: Said,
    leaf: Statement,
    data: bytes,
    trust: Trust,
    operators: Sequence[OperatorKey] | None,
    enrolled: set[str],
) -> None:
    envelope, statement = parse_statement(data)
    if (envelope.hash.hex(), envelope.kind) != (leaf.body.sha256, leaf.body.kind):
        raise ProtocolError(Code.BAD_STATEMENT, "not the statement that the verifier's log names")
    if fold.switch.standing is None and not isinstance(statement, Root):
        check_place(statement, fold.switch.deployment, None)
        check_operators(envelope.kind)
        if operators is None:
            fold.unpinned += 1
            return
        verify(envelope, operator_keys(operators, leaf.time_us))
    else:
        fold.under_root += 1
        _take(fold.switch, leaf, envelope, statement, trust)
        if not fold.rooted:
            return
    if isinstance(statement, Replacement):
        fold.links.admit(statement, enrolled=statement.old in enrolled)
        fold.links.add(_link(statement, leaf))
        fold.switch.replace(statement)


def _take(switch: Switch, leaf: Statement, envelope: Envelope, statement: Says, trust: Trust) -> None:
    logged = log_statement(envelope, statement, leaf.index, leaf.time_us, switch.authority)
    if isinstance(statement, Root):
        services = statement.services
        if (services.log_vkey, services.receipt_vkey) != (trust.log_vkey, trust.receipt_vkey):
            raise ProtocolError(
                Code.BAD_ROOT, "a root of other services", expected=trust.log_vkey, got=services.log_vkey
            )
    switch.take(logged)


def _lease(fold: Said, leaf: Lease, data: bytes, taking: Taking) -> None:
    """A lease by the verifier."""
    signed = parse_lease(data)
    if signed.hash.hex() != leaf.body.sha256:
        raise ProtocolError(Code.BAD_LEASE, "not the lease that the verifier's log names")
    if fold.switch.standing is None:
        raise ProtocolError(Code.BAD_LEASE, "a lease before there is a root")
    lease = open_lease(data, parse_vkey(fold.switch.standing.root.services.lease_vkey))
    taking.lease(fold.switch, lease, leaf)


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
