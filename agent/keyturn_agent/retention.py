"""Removes receipted segments once they are old or many, or the disk is full. What has no receipt is never removed.

A verifier that was restored from a backup asks again for what it had receipted; that is what they are kept for.
The newest segment of a log always stays: its state stands on it.
"""

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keyturn_agent import files
from keyturn_agent.errors import StoreError
from keyturn_agent.removed import remember, removed_end
from keyturn_agent.spool import SEGMENT, Spool, ranges, read_segment

logger = logging.getLogger(__name__)

EVERY_S: Final = 3600
_STATUS: Final = "status.json"
_AT_ONCE: Final = 256
"""Segments that are removed between two looks at the disk."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One receipted segment of the log in ``folder``. ``receipted_s``: when its receipt came."""

    folder: Path
    start: int
    end: int
    bytes: int
    receipted_s: int

    @property
    def path(self) -> Path:
        return self.folder / f"{self.start}-{self.end}.segment"


def expired(kept: Sequence[Kept], keep_s: int, keep_bytes: int, now_s: int) -> list[Kept]:
    """Those that go, out of segments in the order in which they were written: a prefix of each log's. Pure."""
    total = sum(each.bytes for each in kept)
    gone: list[Kept] = []
    held: set[Path] = set()
    for each in kept:
        if each.folder in held:
            continue
        if now_s - each.receipted_s >= keep_s or total > keep_bytes:
            total -= each.bytes
            gone.append(each)
        else:
            held.add(each.folder)
    return gone


def oldest(kept: Sequence[Kept], wanted: int) -> list[Kept]:
    """As many of the oldest as give ``wanted`` bytes back, or all. Pure."""
    gone: list[Kept] = []
    size = 0
    for each in kept:
        if size >= wanted:
            break
        size += each.bytes
        gone.append(each)
    return gone


class Retention:
    """The rule, applied now and then to a log and to those before it.

    :param now_s: the host's real time.
    """

    def __init__(self, keep_s: int, keep_bytes: int, now_s: Callable[[], int]) -> None:
        self._keep_s = keep_s
        self._keep_bytes = keep_bytes
        self._now_s = now_s
        self._done_s: int | None = None

    def apply(self, spool: Spool) -> int:
        """Remove what has expired, at most once an hour; returns how many segments that were.

        A disk that fails here is only reported: nothing depends on the removal.
        """
        now_s = self._now_s()
        if self._done_s is not None and 0 <= now_s - self._done_s < EVERY_S:
            return 0
        self._done_s = now_s
        gone = _go(spool, lambda kept: expired(kept, self._keep_s, self._keep_bytes, now_s))
        if gone:
            logger.info("removed %d receipted segments that had been kept long enough", len(gone))
        return len(gone)

    def relieve(self, spool: Spool, wanted: int) -> tuple[int, int]:
        """Remove the oldest before their time, to give ``wanted`` bytes back to a disk that is full.

        :returns: how many segments that were, and their bytes.
        """
        gone = _go(spool, lambda kept: oldest(kept, wanted))
        if not gone:
            # Their heads have to be written down first, and there may be no room even for that: this may be lost.
            with suppress(OSError):
                (spool.folder.parent.parent / _STATUS).unlink(missing_ok=True)
            gone = _go(spool, lambda kept: oldest(kept, wanted))
        size = sum(each.bytes for each in gone)
        if gone:
            logger.warning("the disk is full: %d receipted segments (%d bytes) went before their time", len(gone), size)
        return len(gone), size


def _go(spool: Spool, choose: Callable[[Sequence[Kept]], list[Kept]]) -> list[Kept]:
    """Remove what is chosen; a disk that fails here is only reported: nothing depends on the removal."""
    done: list[Kept] = []
    try:
        with spool.files:
            gone = choose(_kept(spool.folder))
            for folder in dict.fromkeys(each.folder for each in gone):
                segments = [each for each in gone if each.folder == folder]
                for i in range(0, len(segments), _AT_ONCE):
                    some = segments[i : i + _AT_ONCE]
                    _remove(folder, some)
                    done += some
                    if folder == spool.folder:
                        spool.forget(some[-1].end)
    except (OSError, StoreError) as error:
        logger.warning("removing receipted segments: %s", error)
    return done


def _kept(folder: Path) -> list[Kept]:
    """The receipted segments of the log in ``folder`` and of those before it, in order, without each newest."""
    numbers = sorted(int(path.name) for path in folder.parent.iterdir() if path.name.isdigit())
    return [
        each
        for number in numbers
        if number <= int(folder.name if folder.name.isdigit() else 0)
        for each in _receipted(folder.parent / str(number))
    ]


def _receipted(folder: Path) -> Iterator[Kept]:
    known = sorted(ranges(folder), key=lambda found: found[1])
    segments = [(start, end) for start, end, kind in known if kind == SEGMENT]
    receipts = [(end, start) for start, end, kind in known if kind != SEGMENT]
    for start, end in segments[:-1]:
        at = bisect_left(receipts, (end, 0))
        if at < len(receipts):
            receipt = folder / f"{receipts[at][1]}-{receipts[at][0]}.receipt"
            size = (folder / f"{start}-{end}.segment").stat().st_size
            yield Kept(folder, start, end, size, int(receipt.stat().st_mtime))


def _remove(folder: Path, segments: Sequence[Kept]) -> None:
    """The oldest segments of one log, durably."""
    known = removed_end(folder)
    heads = [(each.end, read_segment(each.path).checkpoint.root) for each in segments if each.end > known]
    if heads:
        # After this their roots survive: what follows may be cut short anywhere and is done again.
        remember(folder, heads)
    receipts = sorted((end, start) for start, end, kind in ranges(folder) if kind != SEGMENT)
    for end, start in receipts[:-1]:
        if end <= segments[-1].end:
            (folder / f"{start}-{end}.receipt").unlink(missing_ok=True)
    for each in segments:
        each.path.unlink(missing_ok=True)
    # After this they are gone for good.
    files.fsync_folder(folder)
