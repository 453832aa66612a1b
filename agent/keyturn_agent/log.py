"""One log on disk: a folder that holds one incarnation, from its first entry to its last.

    logs/1/opened                 why and when this incarnation was opened
    logs/1/tail                   entries that no head covers yet, a line each
    logs/1/state                  the head that was intended last, and where the entries under it start
    logs/1/0-1.segment            entries 0 … 0 and the signed head of size 1, a zstd frame
    logs/1/0-1.receipt            what the verifier answered to them

Nothing is signed before the state says what will be signed, and the same key signs the same text with the same
bytes: however often a crash cuts sealing short, there is one head of each size. Opening a log is recovery; there
is no other way to open one.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Final

from keyturn_agent import files
from keyturn_agent.errors import DamagedError, StoreError
from keyturn_agent.log_files import Intended, Opened, contradicts, format_line
from keyturn_agent.ports import Signer, Stamp
from keyturn_agent.spool import Spool
from keyturn_protocol.canonical import decode, encode
from keyturn_protocol.checkpoint import Checkpoint
from keyturn_protocol.entries import Body
from keyturn_protocol.entry_log import GenesisBody, RecoveredBody
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.ids import Hash, LogName
from keyturn_protocol.limits import SEGMENT_ENTRIES
from keyturn_protocol.merkle import EMPTY_ROOT, Frontier, leaf_hash
from keyturn_protocol.note import Note
from keyturn_protocol.segment import ChainState, follow, node_key, start_of

SEAL_BYTES: Final = 3_500_000
"""Entries are sealed before they pass this, so that a segment with its head stays under its cap."""
_STATE_BYTES: Final = 64 * 1024


class NodeLog:
    """One incarnation. Entries are written by one thread; :attr:`spool` may be used by another."""

    def __init__(self, folder: Path, name: LogName, signer: Signer, opened: Opened) -> None:
        self.folder = folder
        self.name = name
        self.opened = opened
        self._signer = signer
        self.key = node_key(name.origin, signer.public_key)
        self._chain = self._sealed_chain = start_of(name.origin)
        self._frontier = self._sealed_frontier = Frontier()
        self._lines: list[bytes] = []
        self._bytes = 0
        self.root: Hash = EMPTY_ROOT
        self.spool = Spool(folder, self.key)
        self._fd = _open_tail(folder)
        self._broken = False
        self._torn = b""

    # -- making and opening

    @classmethod
    def create(
        cls, folder: Path, name: LogName, signer: Signer, opened: Opened, genesis: GenesisBody, stamp: Stamp
    ) -> "NodeLog":
        """Make a log with its first entry, at once or not at all.

        :raises StoreError: also if ``folder`` exists.
        """
        draft = folder.with_name(folder.name + files.TEMPORARY)
        line = format_line(genesis, start_of(name.origin), stamp)
        with files.doing(f"making the log {folder}"):
            if draft.exists():
                for path in draft.iterdir():
                    path.unlink()
                draft.rmdir()
            draft.mkdir(mode=files.PRIVATE_FOLDER)
            files.replace(draft / "opened", encode(opened))
            files.replace(draft / "tail", line + b"\n")
            draft.rename(folder)
            # After this fsync the log survives, with its first entry.
            files.fsync_folder(folder.parent)
        return cls.open(folder, name, signer)

    @classmethod
    def open(cls, folder: Path, name: LogName, signer: Signer) -> "NodeLog":
        """Open a log as it is found, after a crash or not, and finish a seal that was cut short.

        A torn tail is found but not dropped yet: :meth:`settle` does that and must come before the first entry.

        :raises DamagedError: entries under an intended head aren't what they were.
        """
        try:
            opened: Opened = decode(files.read(folder / "opened"), Opened)
        except ProtocolError as error:
            raise DamagedError("damaged", f"{folder}/opened: {error}") from error
        with files.doing(f"opening the log {folder}"):
            log = cls(folder, name, signer, opened)
            try:
                log._recover()
            except BaseException:
                log.close()
                raise
        return log

    def close(self) -> None:
        """Let go of the file. Nothing is written: everything that was appended is on disk already."""
        if self._fd >= 0:
            files.close(self._fd)
            self._fd = -1

    # -- what is known

    @property
    def chain(self) -> ChainState:
        """The state after the last entry."""
        return self._chain

    @property
    def size(self) -> int:
        """Entries, sealed or not."""
        return self._chain.size

    @property
    def sealed(self) -> int:
        """Size of the newest signed head."""
        return self._sealed_chain.size

    def lines(self, start: int) -> list[bytes]:
        """The entries from ``start`` on, sealed or not; fewer, where the first of them were removed.

        :raises StoreError: a segment can't be read.
        """
        found: list[bytes] = []
        for begin, end in self.spool.after(start):
            found += (self.spool.lines(begin, end) or ())[max(0, start - begin) :]
        return found + self._lines[max(0, start - self.sealed) :]

    # -- writing

    def append(self, bodies: Sequence[Body], stamp: Stamp) -> None:
        """Add entries; when this returns they survive. Seals on the way where a segment would get too large.

        :raises StoreError: the disk failed; what is on it is known after the next start.
        :raises ProtocolError: an entry broke the format; nothing of it was written.
        """
        batch: list[bytes] = []
        chain, frontier = self._chain, self._frontier
        size = self._bytes
        for body in bodies:
            line = format_line(body, chain, stamp)
            full = len(self._lines) + len(batch) >= SEGMENT_ENTRIES or size + len(line) + 1 > SEAL_BYTES
            if full and (self._lines or batch):
                self._write(batch, chain, frontier)
                self.seal()
                batch, size = [], 0
            digest = leaf_hash(line)
            chain = follow(self.name, self._signer.public_key, chain, [line], [digest]).state
            frontier = frontier.extend([digest])
            batch.append(line)
            size += len(line) + 1
        self._write(batch, chain, frontier)
        if len(self._lines) >= SEGMENT_ENTRIES:
            self.seal()

    def seal(self) -> bool:
        """Sign a head over everything so far, if there is anything new; when this returns it survives."""
        if not self._lines:
            return False
        self._check_whole()
        root = self._frontier.root()
        intended = Intended(
            v=1,
            origin=self.name.origin,
            start=self._sealed_chain.size,
            frontier=self._sealed_frontier.to_bytes().hex(),
            chain=self._sealed_chain,
            size=self._chain.size,
            root=root.hex(),
        )
        self._broken = True
        with files.doing(f"sealing {self.folder}"):
            # After this the intended head survives: no other head of this size will ever be signed.
            files.replace(self.folder / "state", encode(intended))
            self._finish(root)
        self._broken = False
        return True

    def _write(self, lines: Sequence[bytes], chain: ChainState, frontier: Frontier) -> None:
        if not lines:
            return
        self._check_whole()
        # A write that fails may have left a part of itself: nothing more may follow it.
        self._broken = True
        with files.doing(f"writing {self.folder}/tail"):
            files.write_all(self._fd, b"".join(line + b"\n" for line in lines))
            # After this fdatasync these entries survive.
            os.fdatasync(self._fd)
        self._broken = False
        self._lines += lines
        self._bytes += sum(len(line) + 1 for line in lines)
        self._chain, self._frontier = chain, frontier

    def _check_whole(self) -> None:
        if self._broken or self._torn:
            raise StoreError(
                "broken", f"{self.folder}: an earlier write failed or the log was not settled; nothing can be added"
            )

    def _finish(self, root: Hash) -> None:
        """Sign the intended head, keep the segment, empty the tail. Done again, it does the same."""
        head = Checkpoint(self.name.origin, self._chain.size, root)
        note: Note = head.signed(self.key, self._signer.sign(head.to_text()))
        # After this the segment survives; only now may its entries leave the tail.
        self.spool.add(self._sealed_chain.size, self._lines, note)
        # A crash before this truncation is on disk leaves the entries in both places, which opening expects.
        os.ftruncate(self._fd, 0)
        self._sealed_chain, self._sealed_frontier = self._chain, self._frontier
        self._lines, self._bytes, self.root = [], 0, root

    # -- recovery

    def settle(self, stamp: Stamp) -> None:
        """Drop a torn tail, if there is one, with an entry that says so."""
        if self._torn:
            with files.doing(f"recovering {self.folder}/tail"):
                self._drop(self._torn, stamp)
        if len(self._lines) >= SEGMENT_ENTRIES:
            self.seal()

    def _recover(self) -> None:
        tail = files.read(self.folder / "tail")
        if (intended := self._read_state()) is not None:
            tail = self._recover_head(intended, tail)
        elif self.spool.end:
            raise DamagedError("damaged", f"{self.folder}: signed segments without a state")
        good = start = 0
        before = self._chain, self._frontier
        for match in re.finditer(rb"([^\n]*)\n", tail):
            line = match[1]
            digest = leaf_hash(line)
            try:
                chain = follow(self.name, self._signer.public_key, self._chain, [line], [digest]).state
            except ProtocolError:
                if self._lines and contradicts(line, self._chain):
                    # One of the two was damaged, and nothing tells which: neither enters the log.
                    self._lines.pop()
                    good, (self._chain, self._frontier) = start, before
                break
            before = self._chain, self._frontier
            self._chain, self._frontier = chain, self._frontier.extend([digest])
            self._lines.append(line)
            start, good = match.span()
        self._bytes = good
        if not self._chain.size:
            raise DamagedError("damaged", f"{self.folder}: the first entry is not there any more")
        self._torn = tail[good:]

    def _recover_head(self, intended: Intended, tail: bytes) -> bytes:
        """Stand after the intended head, finishing it if need be; returns what the tail has beyond it."""
        try:
            frontier = Frontier.from_bytes(intended.start, bytes.fromhex(intended.frontier))
        except (ProtocolError, ValueError) as error:
            raise DamagedError("damaged", f"{self.folder}/state: {error}") from error
        count = intended.size - intended.start
        stored = self.spool.lines(intended.start, intended.size)
        lines = tail.split(b"\n")[:count] if stored is None else list(stored)
        hashes = [leaf_hash(line) for line in lines]
        root = frontier.extend(hashes).root()
        if len(lines) != count or root.hex() != intended.root:
            raise DamagedError(
                "damaged",
                f"{self.folder}: entries {intended.start} to {intended.size - 1} are not those of the head "
                f"that was intended for them (expected root {intended.root}, got {root.hex()})",
            )
        try:
            chain = follow(self.name, self._signer.public_key, intended.chain, lines, hashes).state
        except ProtocolError as error:
            raise DamagedError("damaged", f"{self.folder}: {error}") from error
        self._sealed_chain, self._sealed_frontier = intended.chain, frontier
        self._chain, self._frontier = chain, frontier.extend(hashes)
        covered = b"".join(line + b"\n" for line in lines)
        rest = tail.removeprefix(covered)
        if stored is not None and len(rest) == len(tail):
            self._sealed_chain, self._sealed_frontier, self.root = self._chain, self._frontier, root
            return tail
        if rest:
            # Entries are appended after a seal only once the tail is empty.
            raise DamagedError("damaged", f"{self.folder}: entries follow a head that was not finished")
        self._lines = lines
        self._finish(root)
        return b""

    def _drop(self, dropped: bytes, stamp: Stamp) -> None:
        body = RecoveredBody(bytes=len(dropped), sha256=sha256(dropped).hexdigest())
        line = format_line(body, self._chain, stamp)
        digest = leaf_hash(line)
        self._chain = follow(self.name, self._signer.public_key, self._chain, [line], [digest]).state
        self._frontier = self._frontier.extend([digest])
        self._lines.append(line)
        self._bytes += len(line) + 1
        # After this the whole entries and the word about the dropped bytes survive, together.
        files.replace(self.folder / "tail", b"".join(kept + b"\n" for kept in self._lines))
        files.close(self._fd)
        self._fd = _open_tail(self.folder)
        self._torn = b""

    def _read_state(self) -> Intended | None:
        if not (self.folder / "state").exists():
            return None
        data = files.read(self.folder / "state")
        try:
            intended: Intended = decode(data, Intended, limit=_STATE_BYTES)
        except ProtocolError as error:
            raise DamagedError("damaged", f"{self.folder}/state: {error}") from error
        if intended.origin != self.name.origin or intended.chain.size != intended.start:
            raise DamagedError("damaged", f"{self.folder}/state: of another log")
        if self.spool.end not in (intended.start, intended.size) or intended.start >= intended.size:
            raise DamagedError(
                "damaged",
                f"{self.folder}: segments and state don't belong together "
                f"(expected {intended.start} or {intended.size} entries, got {self.spool.end})",
            )
        return intended


@contextmanager
def let_go(log: NodeLog) -> Iterator[None]:
    """Close a log where what is done with it first fails."""
    try:
        yield
    except BaseException:
        log.close()
        raise


def _open_tail(folder: Path) -> int:
    """The tail for appending. It is made with the log: one that is missing was taken away."""
    try:
        return os.open(folder / "tail", os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno not in files.GONE:
            raise
        raise DamagedError("damaged", f"{folder}/tail: {error}") from error
