"""A database that was restored, or failed over, to an older state: what nodes show of what it lost.

A node that is asked for less than was receipted sends the segments again, each with the receipt that it holds for
it. A receipt is our own signature, so it can't be made up. It is stored again as it is: nothing is signed a second
time at or below a size that was shown, and the old receipts stay the only ones.
"""

import base64
import binascii
import logging
from dataclasses import dataclass

from sqlalchemy import Connection, select

from keyturn_protocol.cosignature import parse_receipt, verify_cosignature
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.findings import Finding, FindingCode, finding
from keyturn_protocol.keys import VerifierKey
from keyturn_protocol.limits import NOTE_BYTES
from keyturn_protocol.segment import Segment
from keyturn_verifier.db.tables import finding as finding_table

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shown:
    """A receipt of ours for a segment that we don't have."""

    receipt: bytes
    time_s: int


def shown_receipt(header: bytes | None, segment: Segment, key: VerifierKey) -> Shown | None:
    """The receipt that came with a segment, if it is ours for exactly this checkpoint. Anything else is ignored."""
    if header is None or len(header) > NOTE_BYTES:
        return None
    try:
        receipt = base64.b64decode(header, validate=True)
        return Shown(receipt, verify_cosignature(segment.note.text, parse_receipt(receipt), key))
    except (ProtocolError, binascii.Error, ValueError) as error:
        log.warning("%s: the receipt that was shown for size %d is not ours: %s", segment.origin, segment.end, error)
        return None


def lost(connection: Connection, log_id: int, segment: Segment, shown: Shown, now_us: int) -> list[Finding]:
    """The finding about a loss, once for all that was lost with it: receipts from before it was discovered."""
    known = select(finding_table.c.id).where(
        finding_table.c.log_id == log_id,
        finding_table.c.code == FindingCode.VERIFIER_ROLLBACK,
        finding_table.c.to_us >= shown.time_s * 1_000_000,
    )
    if connection.execute(known.limit(1)).first() is not None:
        return []
    detail = f"the verifier had receipted {segment.end} entries and then knew {segment.start}: its database went back"
    from_us = min(shown.time_s * 1_000_000, now_us)
    code = FindingCode.VERIFIER_ROLLBACK
    return [finding(code, segment.origin, detail, seq=segment.start, from_us=from_us, to_us=now_us)]
