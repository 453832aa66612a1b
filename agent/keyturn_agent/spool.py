"""The sealed segments of one log and their receipts: immutable files, shared by writer and uploader.

The segments on disk are the spool. A file is whole or absent, so another process may read while this one writes.
"""

import re
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keyturn_agent import files
from keyturn_agent.errors import DamagedError
from keyturn_agent.removed import removed_end, removed_root
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.ids import Hash
from keyturn_protocol.keys import VerifierKey
from keyturn_protocol.limits import SEGMENT_BYTES, SEGMENT_ENTRIES, UPLOAD_BYTES
from keyturn_protocol.note import Note
from keyturn_protocol.segment import Segment, format_segment, parse_segment, verify_head

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SEGMENT: Final = "segment"
_NAME: Final = re.compile(r"(0|[1-9][0-9]{0,15})-([1-9][0-9]{0,15})\.(segment|receipt)", re.ASCII)


def ranges(folder: Path) -> Iterator[tuple[int, int, str]]:
    """Start, end and kind (``segment`` or ``receipt``) of the files in a log's folder, in no order."""
    for path in folder.iterdir():
        if (match := _NAME.fullmatch(path.name)) is not None:
            yield int(match[1]), int(match[2]), match[3]


@dataclass(frozen=True, slots=True)
class Upload:
    """Bytes to send: entries ``start`` … ``end - 1`` under the head of size ``end``, whose text is ``text``."""

    start: int
    end: int
    text: bytes
    data: bytes
    receipt: bytes | None = None
    """The receipt that we hold for exactly this: the verifier lost it, and is shown it."""

    def frame(self) -> bytes:
        """The bytes in a zstd frame."""
        return compress(self.data)


class Spool:
    """The segments and receipts in a folder."""

    def __init__(self, folder: Path, key: VerifierKey) -> None:
        self.folder = folder
        self._key = key
        self._lock = threading.Lock()
        self.files = threading.RLock()
        """Held while segments are read to be sent, and while some are removed: two threads do that on a full disk."""
        self._ends: dict[int, int] = {}
        self._starts: dict[int, int] = {}
        self._receipts: dict[int, Path] = {}
        self.receipted = 0
        """Size of the newest head that the verifier has receipted."""
        self.first = 0
        """Where the entries begin that are still here; those before were receipted and removed."""
        with files.doing(f"looking at {folder}"):
            self._look()

    def _look(self) -> None:
        self.first = removed_end(self.folder)
        for start, end, kind in ranges(self.folder):
            if kind != SEGMENT:
                self.receipted = max(self.receipted, end)
                self._receipts[end] = self.folder / f"{start}-{end}.receipt"
            elif end > self.first:
                self._ends[start] = end
                self._starts[end] = start

    @property
    def end(self) -> int:
        """Size of the newest signed head; 0 without one."""
        with self._lock:
            return max(self._starts, default=0)

    def waiting(self) -> tuple[int, int]:
        """Segments and bytes on disk that have no receipt yet."""
        with self._lock:
            missing = [(start, end) for end, start in self._starts.items() if end > self.receipted]
        with files.doing(f"looking at {self.folder}"):
            return len(missing), sum(self._path(start, end).stat().st_size for start, end in missing)

    def waiting_since_s(self) -> int | None:
        """When the oldest segment without a receipt was signed (real time), or None if nothing waits."""
        with self._lock:
            missing = [(start, end) for end, start in self._starts.items() if end > self.receipted]
        with files.doing(f"looking at {self.folder}"):
            return int(self._path(*min(missing)).stat().st_mtime) if missing else None

    def last_receipt_s(self) -> int | None:
        """When the newest receipt was stored (real time), or None without one."""
        with self._lock:
            newest = max(self._receipts, default=None)
            path = None if newest is None else self._receipts[newest]
        with files.doing(f"looking at {self.folder}"):
            return None if path is None else int(path.stat().st_mtime)

    def add(self, start: int, lines: Sequence[bytes], note: Note) -> None:
        """Keep a segment; when this returns it survives. Doing so again changes nothing."""
        data = format_segment(lines, note)
        end = parse_segment(data).end
        files.replace(self._path(start, end), compress(data))
        with self._lock:
            self._ends[start] = end
            self._starts[end] = start

    def add_receipt(self, start: int, end: int, receipt: bytes) -> None:
        """Keep a receipt that was verified; when this returns it survives."""
        with files.doing(f"writing a receipt to {self.folder}"):
            files.replace(self.folder / f"{start}-{end}.receipt", receipt)
        with self._lock:
            self._receipts[end] = self.folder / f"{start}-{end}.receipt"
        self.receipted = max(self.receipted, end)

    def start_of(self, end: int) -> int | None:
        """Where the segment under the head of size ``end`` starts; None without such a head."""
        with self._lock:
            return self._starts.get(end)

    def root_at(self, size: int) -> Hash | None:
        """The root of our signed head of this size, or None if we never signed one."""
        with self.files:
            start = self.start_of(size)
            if start is not None:
                return self._load(start, size).checkpoint.root
        with files.doing(f"reading what was removed from {self.folder}"):
            return removed_root(self.folder, size) if size <= self.first else None

    def forget(self, end: int) -> None:
        """The segments up to ``end`` were removed."""
        with self._lock:
            for size in [size for size in self._starts if size <= end]:
                del self._ends[self._starts.pop(size)]
            self.first = max(self.first, end)

    def lines(self, start: int, end: int) -> tuple[bytes, ...] | None:
        """The entries of one segment as they were stored; None if there is no such segment."""
        with self._lock:
            if self._ends.get(start) != end:
                return None
        return self._load(start, end).lines

    def after(self, start: int) -> list[tuple[int, int]]:
        """Where the segments lie that have entries from ``start`` on."""
        with self._lock:
            return sorted((begin, end) for begin, end in self._ends.items() if end > start)

    def upload(self, start: int) -> Upload | None:
        """What to send to a verifier that knows ``start`` entries: whole segments, as many as one upload may hold.

        :returns: None when nothing that is signed starts there.
        :raises DamagedError: a segment on disk isn't what was written.
        """
        with self.files:
            return self._upload(start)

    def _upload(self, start: int) -> Upload | None:
        lines: list[bytes] = []
        last: Segment | None = None
        size = 0
        # What was receipted before is sent again in the same pieces, so that each can go with its receipt.
        until = self._receipted_after(start)
        while (end := self._next(start + len(lines))) is not None and (until is None or end <= until):
            if last is not None and end - start > SEGMENT_ENTRIES:
                break
            segment = self._load(start + len(lines), end)
            size += sum(len(line) + 1 for line in segment.lines)
            # Room for the head: a note with one Ed25519 signature is well below 4 KiB.
            if last is not None and size > SEGMENT_BYTES - 4096:
                break
            lines += segment.lines
            last = segment
        if last is None:
            return None
        receipt = self._receipt(last.end) if last.end == until else None
        return Upload(start, last.end, last.note.text, format_segment(lines, last.note), receipt)

    def _receipted_after(self, start: int) -> int | None:
        """The next size after ``start`` that we hold a receipt for."""
        with self._lock:
            return min((end for end in self._receipts if end > start), default=None) if start < self.receipted else None

    def _receipt(self, end: int) -> bytes | None:
        with self._lock:
            path = self._receipts[end]
        try:
            return path.read_bytes()
        except OSError:
            return None  # then the verifier signs another

    def _next(self, start: int) -> int | None:
        with self._lock:
            return self._ends.get(start)

    def _path(self, start: int, end: int) -> Path:
        return self.folder / f"{start}-{end}.segment"

    def _load(self, start: int, end: int) -> Segment:
        path = self._path(start, end)
        segment = read_segment(path)
        try:
            verify_head(segment, self._key)
        except ProtocolError as error:
            raise DamagedError("damaged", f"{path}: {error}") from error
        if (segment.start, segment.end) != (start, end):
            raise DamagedError("damaged", f"{path}: holds entries {segment.start} to {segment.end - 1}")
        return segment


def read_segment(path: Path) -> Segment:
    """A segment as it is on disk; its signature isn't checked here.

    :raises DamagedError: it isn't one.
    :raises StoreError: the disk didn't say.
    """
    data = files.read(path)
    try:
        return parse_segment(decompress(data))
    except (ProtocolError, zstd.ZstdError) as error:
        raise DamagedError("damaged", f"{path}: {error}") from error


def compress(data: bytes) -> bytes:
    """A zstd frame with a checksum, so that damage shows without knowing the log."""
    return zstd.compress(
        data, options={zstd.CompressionParameter.compression_level: 3, zstd.CompressionParameter.checksum_flag: 1}
    )


def decompress(frame: bytes) -> bytes:
    """The bytes of one frame that we wrote, within the cap of a segment."""
    if len(frame) > UPLOAD_BYTES:
        raise zstd.ZstdError(f"frame over its cap of {UPLOAD_BYTES} bytes")
    decompressor = zstd.ZstdDecompressor()
    data = decompressor.decompress(frame, max_length=SEGMENT_BYTES + 1)
    if not decompressor.eof or decompressor.unused_data:
        raise zstd.ZstdError("not one whole frame")
    return data
