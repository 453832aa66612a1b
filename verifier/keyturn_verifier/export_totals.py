"""``totals.json`` of an export, written as it is read: a chip's rows are in memory at one time, whatever the fleet.

The bytes are those of :func:`keyturn_protocol.usage.totals_json` over all rows and gaps.
"""

import tempfile
from collections.abc import Iterable, Iterator
from hashlib import sha256
from types import TracebackType
from typing import Final

from sqlalchemy import Connection, select

from keyturn_protocol.canonical import encode_record
from keyturn_protocol.ids import Origin
from keyturn_protocol.limits import BUNDLE_FILE_BYTES
from keyturn_protocol.usage import Gap, UsageRow
from keyturn_verifier import queries
from keyturn_verifier.db.tables import chip_listed, usage_gap, usage_hour
from keyturn_verifier.errors import VerifierError

_IN_MEMORY: Final = 16 * 1024 * 1024
_CHUNK: Final = 256 * 1024


class TotalsFile:
    """The file, on disk where it is large. Use it as a context; ``size`` and ``sha256`` are known at once.

    :raises VerifierError: it would be larger than any auditor reads.
    """

    def __init__(self, snapshot: Connection, most_bytes: int = BUNDLE_FILE_BYTES) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY, prefix="keyturn-totals-")  # noqa: SIM115
        self.size = 0
        digest = sha256()
        try:
            for piece in _joined(_pieces(snapshot)):
                self.size += len(piece)
                if self.size > most_bytes:
                    raise VerifierError(
                        f"totals.json would be larger than {most_bytes} bytes, which no auditor reads",
                        hint="one file of a bundle holds about two million usage rows",
                    )
                digest.update(piece)
                self._file.write(piece)
        except BaseException:
            self._file.close()
            raise
        self.sha256 = digest.hexdigest()

    def __enter__(self) -> "TotalsFile":
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self._file.close()

    def chunks(self) -> Iterator[bytes]:
        """The bytes, from the first on."""
        self._file.seek(0)
        while chunk := self._file.read(_CHUNK):
            yield chunk


def _pieces(snapshot: Connection) -> Iterator[bytes]:
    """Canonical JSON of the record: its fields by name, each list in the order of its keys."""
    logs = sorted(((origin, log_id) for log_id, origin in queries.origins(snapshot).items()))
    yield b'{"gaps":['
    yield from _listed(gap for origin, log_id in logs for gap in _gaps(snapshot, origin, log_id))
    yield b'],"usage_hour":['
    yield from _listed(row for origin, log_id in logs for row in _rows(snapshot, origin, log_id))
    yield b'],"v":1}'


def _gaps(snapshot: Connection, origin: Origin, log_id: int) -> list[Gap]:
    query = select(usage_gap).where(usage_gap.c.log_id == log_id).order_by(usage_gap.c.id)
    gaps = [queries.gap_of(row, origin) for row in snapshot.execute(query)]
    return sorted(gaps, key=lambda g: (g.chip, g.from_us, g.to_us, g.inventory_seq))


def _rows(snapshot: Connection, origin: Origin, log_id: int) -> Iterator[UsageRow]:
    listed = select(chip_listed.c.chip).distinct().where(chip_listed.c.log_id == log_id)
    for chip in sorted(snapshot.execute(listed).scalars()):
        query = select(usage_hour).where(usage_hour.c.log_id == log_id, usage_hour.c.chip == chip)
        rows = [queries.usage_row(row, origin) for row in snapshot.execute(query)]
        yield from sorted(rows, key=lambda r: (r.hour_s, r.workload, r.inventory_seq, r.basis))


def _listed(records: Iterable[Gap | UsageRow]) -> Iterator[bytes]:
    first = True
    for record in records:
        yield encode_record(record) if first else b"," + encode_record(record)
        first = False


def _joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Fewer, larger pieces."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= _CHUNK:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join(held)
