"""Look-ups in what is stored of a log, for segments at or below its known size."""

from typing import Final

from sqlalchemy import Connection, bindparam, select

from keyturn_protocol.ids import Hash
from keyturn_protocol.merkle import Frontier
from keyturn_protocol.receive import History, StoredSegment
from keyturn_protocol.segment import parse_segment
from keyturn_verifier.db.tables import segment, segment_body
from keyturn_verifier.errors import stored as damage
from keyturn_verifier.upload import decompress

_LOG: Final = segment.c.log_id == bindparam("log")
_STORED: Final = select(segment.c.sha256, segment.c.receipt).where(
    _LOG, segment.c.start == bindparam("start"), segment.c.end == bindparam("end")
)
"""Made once: every impatient host asks this, and putting it together takes longer than running it."""


def history(connection: Connection, log_id: int | None) -> History:
    """The history of one log; of a log that is not there yet there is none, and nobody asks."""

    @damage
    def stored(start: int, end: int) -> StoredSegment | None:
        row = connection.execute(_STORED, {"log": log_id, "start": start, "end": end}).one_or_none()
        return None if row is None else StoredSegment(row.sha256, row.receipt)

    @damage
    def root_at(size: int) -> Hash:
        # The segment that holds entry `size - 1`, and the frontier before it.
        rows = connection.execute(
            select(segment.c.start, segment.c.end, segment.c.frontier)
            .where(segment.c.log_id == log_id, segment.c.start < size)
            .order_by(segment.c.start.desc())
            .limit(2)
        ).all()
        at = rows[0]
        if at.end == size:
            return Frontier.from_bytes(at.end, at.frontier).root()
        before = Frontier.from_bytes(rows[1].end, rows[1].frontier) if len(rows) == 2 else Frontier()
        body = connection.execute(
            select(segment_body.c.body).where(segment_body.c.log_id == log_id, segment_body.c.start == at.start)
        ).scalar_one()
        hashes = parse_segment(decompress(body)).leaf_hashes()
        return before.extend(hashes[: size - at.start]).root()

    return History(stored, root_at)
