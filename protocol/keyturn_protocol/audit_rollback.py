"""A verifier's log that went back: what the logs of nodes, and its own leaves, show of another history.

A node's heartbeat quotes the newest checkpoint of the verifier's log that its agent had checked. The verifier signed
it, so its log must have that root at that size for ever. Where it hasn't, a database was restored, or somebody who
holds the verifier's keys wrote its log anew; the bundle alone can't tell which, nor what is missing.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from keyturn_protocol.api import Trust
from keyturn_protocol.audit_log import Quote
from keyturn_protocol.audit_tree import VerifierLog
from keyturn_protocol.bundle import check_trust
from keyturn_protocol.checkpoint import Checkpoint, open_checkpoint, parse_checkpoint
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.findings import Finding, FindingCode, finding
from keyturn_protocol.leaves import NodeCheckpoint
from keyturn_protocol.merkle import Frontier
from keyturn_protocol.note import parse_note

RECEIPT_LAG_US: Final = 300_000_000
"""A leaf is written in the transaction that signs its receipt; no transaction lasts for so long."""


class _Quoted(NamedTuple):
    head: Checkpoint
    origin: str
    quote: Quote


def quoted(log: VerifierLog, quotes: Mapping[str, Sequence[Quote]], trust: Trust) -> tuple[list[Finding], list[str]]:
    """Hold every quoted checkpoint against the log. One finding for each node's log that quotes another history.

    A note that isn't the pinned key's shows nothing about the verifier, and is passed over.

    :param quotes: of each node's log, by its origin.
    :returns: findings, and a line each on why the audit can't pass.
    """
    if not log.whole or log.checkpoint is None:
        return [], []
    found: list[Finding] = []
    reasons: list[str] = []
    blamed: set[str] = set()
    key, _ = check_trust(trust)
    for one in _other(log, _parsed(quotes, key.name)):
        origin = one.origin
        if origin in blamed:
            continue
        try:
            # Only now: nearly all are contained in the log, and need no signature to be.
            open_checkpoint(one.quote.note.encode(), key)
        except ProtocolError:
            continue
        blamed.add(origin)
        detail = (
            f"entry {one.quote.seq} quotes a checkpoint of {one.head.size} leaves, root {one.head.root.hex()}, "
            f"that the verifier signed and that its log of {log.checkpoint.size} leaves doesn't contain"
        )
        at = one.quote.time_us
        found.append(finding(FindingCode.VERIFIER_ROLLBACK, origin, detail, seq=one.quote.seq, from_us=at, to_us=at))
        reasons.append(f"the verifier's log went back or was rewritten: {origin} {detail}")
    return found, reasons


def shown(log: VerifierLog) -> list[Finding]:
    """Receipts that are far older than their leaves: nodes showed them to a verifier that had lost them."""
    found: dict[str, Finding] = {}
    for leaf in log.leaves:
        if isinstance(leaf, NodeCheckpoint) and leaf.time_us - leaf.body.receipt_s * 1_000_000 > RECEIPT_LAG_US:
            head = leaf.body
            detail = (
                f"the verifier had receipted {head.size} entries and then knew {head.start}: its database went back"
            )
            found.setdefault(
                head.origin,
                finding(
                    FindingCode.VERIFIER_ROLLBACK,
                    head.origin,
                    detail,
                    seq=head.start,
                    from_us=head.receipt_s * 1_000_000,
                    to_us=leaf.time_us,
                ),
            )
    return list(found.values())


def _parsed(quotes: Mapping[str, Sequence[Quote]], log_origin: str) -> Iterable[_Quoted]:
    for origin, of_log in quotes.items():
        for quote in of_log:
            try:
                head = parse_checkpoint(parse_note(quote.note.encode()).text)
            except ProtocolError:
                continue
            if head.origin == log_origin:
                yield _Quoted(head, origin, quote)


def _other(log: VerifierLog, heads: Iterable[_Quoted]) -> Iterable[_Quoted]:
    """The heads that the log doesn't contain, the smallest first; one pass over its leaves."""
    frontier = Frontier()
    for one in sorted(heads, key=lambda q: (q.head.size, q.origin, q.quote.seq)):
        size = one.head.size
        if size <= len(log.hashes):
            frontier = frontier.extend(log.hashes[frontier.size : size])
        if size > len(log.hashes) or frontier.root() != one.head.root:
            yield one
