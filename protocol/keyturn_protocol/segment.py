"""A segment: consecutive entries and the signed head after them. The one unit of disk, network and archive.

    {"body":…,"seq":512,…}
    …                                                   entries start … end-1, a line each
                                                        an empty line
    keyturn.example.org/node/6f…/1                      the checkpoint of size `end`, as C2SP prints it
    768
    base64 root

    — keyturn.example.org/node/6f…/1 base64…

Parsing a segment is cheap and believes nothing; :func:`follow` then checks its entries one by one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from keyturn_protocol.canonical import Hex32, Record, UInt, decode_lines
from keyturn_protocol.checkpoint import Checkpoint, parse_checkpoint
from keyturn_protocol.entries import (
    Entry,
    Gap,
    Genesis,
    Inventory,
    KeyRoll,
    Retired,
    Usage,
    WorkloadStarted,
    check_entry,
    parse_entry,
)
from keyturn_protocol.entry_log import Source, check_genesis, check_key_roll
from keyturn_protocol.entry_usage import UsageBody
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import Hash, LogName, Origin, parse_origin
from keyturn_protocol.keys import SignatureType, VerifierKey
from keyturn_protocol.limits import ENTRY_BYTES, KEY_NAME_BYTES, SEGMENT_BYTES, SEGMENT_ENTRIES
from keyturn_protocol.merkle import leaf_hash
from keyturn_protocol.note import Note, open_note, parse_note
from keyturn_protocol.values import BootId


@dataclass(frozen=True, slots=True)
class Segment:
    """A parsed segment: entries ``start`` … ``end - 1`` as unverified lines, and the signed head after them."""

    name: LogName
    start: int
    lines: tuple[bytes, ...]
    note: Note
    checkpoint: Checkpoint

    @property
    def end(self) -> int:
        return self.checkpoint.size

    @property
    def origin(self) -> Origin:
        return self.name.origin

    def to_bytes(self) -> bytes:
        return format_segment(self.lines, self.note)

    def leaf_hashes(self) -> list[Hash]:
        """The RFC 6962 leaf hash of every line."""
        return [leaf_hash(line) for line in self.lines]


def format_segment(lines: Iterable[bytes], note: Note) -> bytes:
    """Entries, a line each; an empty line; the checkpoint."""
    return b"".join(line + b"\n" for line in lines) + b"\n" + note.to_bytes()


def parse_segment(data: bytes) -> Segment:
    """Take a segment apart, strictly; ``parse_segment(x).to_bytes() == x`` for everything that it accepts.

    The checkpoint carries one signature, the log's, which is *not* verified here, and the lines are not parsed.

    :raises ProtocolError: ``too_large``, ``bad_segment``, ``bad_note``, ``bad_checkpoint`` or ``bad_identifier``.
    """
    if len(data) > SEGMENT_BYTES:
        raise ProtocolError(Code.TOO_LARGE, "segment over its cap", expected=f"<= {SEGMENT_BYTES} bytes", got=len(data))
    at = _before_note(data)
    if at <= 0:
        raise ProtocolError(Code.BAD_SEGMENT, "not a segment", expected="entries, an empty line, a checkpoint")
    # Split no further than the cap: 4 MiB of newlines would become two million objects.
    lines, tail = tuple(data[:at].split(b"\n", SEGMENT_ENTRIES)), data[at + 2 :]
    if len(lines) > SEGMENT_ENTRIES:
        raise ProtocolError(Code.TOO_LARGE, "segment with too many entries", expected=f"<= {SEGMENT_ENTRIES}")
    if (longest := max(map(len, lines))) > ENTRY_BYTES:
        raise ProtocolError(Code.TOO_LARGE, "entry over its cap", expected=f"<= {ENTRY_BYTES} bytes", got=longest)
    if not all(lines):
        raise ProtocolError(Code.BAD_SEGMENT, "empty line among the entries")
    note = parse_note(tail)
    checkpoint = parse_checkpoint(note.text)
    name = parse_origin(checkpoint.origin)
    if len(note.signatures) != 1 or note.signatures[0].name != checkpoint.origin:
        raise ProtocolError(
            Code.BAD_SEGMENT,
            "a segment's checkpoint has one signature, its log's",
            expected=checkpoint.origin,
            got=", ".join(s.name for s in note.signatures),
        )
    if checkpoint.size < len(lines):
        raise ProtocolError(
            Code.BAD_SEGMENT, "more entries than the checkpoint covers", expected=checkpoint.size, got=len(lines)
        )
    return Segment(name, checkpoint.size - len(lines), lines, note, checkpoint)


def claimed_origin(data: bytes) -> str | None:
    """The origin in a segment's checkpoint, found without a look at anything else; None where there can't be one.

    It is what :func:`parse_segment` finds there, for everything that it accepts; believe nothing that rests on it.
    """
    at = _before_note(data)
    if at <= 0:
        return None
    line = data[at + 2 : at + 2 + KEY_NAME_BYTES + 1].partition(b"\n")[0]
    return line.decode() if 0 < len(line) <= KEY_NAME_BYTES and line.isascii() else None


def _before_note(data: bytes) -> int:
    """Where the empty line before the note is: from the end, the one inside the note comes first."""
    return data.rfind(b"\n\n", 0, max(data.rfind(b"\n\n"), 0))


@lru_cache(maxsize=16_384)
def node_key(origin: Origin, public_key: bytes) -> VerifierKey:
    """The key of a node's log, whose name is the log's origin."""
    return VerifierKey(origin, SignatureType.ED25519, public_key)


def verify_head(segment: Segment, key: VerifierKey) -> None:
    """Check the log's signature on a segment's checkpoint, parsed from those bytes; returns nothing or raises."""
    open_note(segment.note, [key])
    if segment.checkpoint.origin != key.name:
        raise ProtocolError(
            Code.BAD_CHECKPOINT, "checkpoint of another log", expected=key.name, got=segment.checkpoint.origin
        )


class ChainState(Record, frozen=True, kw_only=True):
    """What the next entry of a log must follow from. ``boot_id`` null: no entry yet."""

    size: UInt
    prev: Hex32
    boot_id: BootId | None
    boots: UInt
    mono_us: UInt
    time_us: UInt
    source: Source | None
    chips: UInt | None
    """Columns of the last inventory; null before the first."""
    covered_mono_us: UInt
    """End of the last usage interval of this boot."""
    closed: Literal["key_roll", "retired"] | None
    next_key: Hex32 | None
    """After a key roll: the key of the next incarnation."""


def start_of(origin: Origin) -> ChainState:
    """The state before the first entry, whose ``prev`` is the leaf hash of the origin."""
    return ChainState(
        size=0,
        prev=leaf_hash(origin.encode()).hex(),
        boot_id=None,
        boots=0,
        mono_us=0,
        time_us=0,
        source=None,
        chips=None,
        covered_mono_us=0,
        closed=None,
        next_key=None,
    )


@dataclass(frozen=True, slots=True)
class Followed:
    """The entries of a verified run and the state after them."""

    entries: tuple[Entry, ...]
    state: ChainState


class EntryError(ProtocolError):
    """An entry that was refused, with its place in the log."""

    def __init__(self, seq: int, error: ProtocolError) -> None:
        super().__init__(error.code, f"entry {seq}: {error}")
        self.seq = seq
        self.reason = str(error)

    def __reduce__(self) -> tuple[object, ...]:
        return (EntryError, (self.seq, ProtocolError(self.code, self.reason)))


def follow(
    name: LogName, public_key: bytes, state: ChainState, lines: Sequence[bytes], hashes: Sequence[Hash]
) -> Followed:
    """Parse entries and check that each follows from the one before, starting at ``state``.

    :param hashes: the leaf hashes of ``lines``.
    :raises EntryError: names the first entry that is refused, with its reason's code.
    """
    if len(lines) != len(hashes):
        raise ValueError("a hash for each line")  # A short list would pass for a short segment.
    at = _Cursor(name, public_key, state)
    fast: list[Entry] | None = None
    if max(map(len, lines), default=0) <= ENTRY_BYTES:
        fast = decode_lines(b"".join(line + b"\n" for line in lines), Entry)
    # Where something is refused, line by line finds the first such entry and its reason.
    each = iter(fast) if fast is not None and len(fast) == len(lines) else map(parse_entry, lines)
    entries: list[Entry] = []
    like: UsageBody | None = None
    for digest in hashes:
        try:
            entry = next(each)
            check_entry(entry, like)
            at.step(entry, digest)
        except ProtocolError as error:
            raise EntryError(at.size, error) from None
        if isinstance(entry, Usage):
            like = entry.body
        entries.append(entry)
    return Followed(tuple(entries), at.state())


class _Cursor:
    """The mutable form of :class:`ChainState`, for the loop."""

    def __init__(self, name: LogName, public_key: bytes, state: ChainState) -> None:
        self.name, self.public_key = name, public_key
        self.size, self.prev = state.size, state.prev
        self.boot_id, self.boots = state.boot_id, state.boots
        self.mono_us, self.time_us = state.mono_us, state.time_us
        self.source, self.chips = state.source, state.chips
        self.covered_mono_us = state.covered_mono_us
        self.closed, self.next_key = state.closed, state.next_key

    def state(self) -> ChainState:
        return ChainState(
            size=self.size,
            prev=self.prev,
            boot_id=self.boot_id,
            boots=self.boots,
            mono_us=self.mono_us,
            time_us=self.time_us,
            source=self.source,
            chips=self.chips,
            covered_mono_us=self.covered_mono_us,
            closed=self.closed,
            next_key=self.next_key,
        )

    def step(self, entry: Entry, digest: Hash) -> None:
        if self.closed is not None:
            raise _broken(f"entry after the end of the log ({self.closed})")
        if entry.seq != self.size:
            raise _broken("sequence number out of order", expected=self.size, got=entry.seq)
        if entry.prev != self.prev:
            raise _broken("does not link to the entry before it", expected=self.prev, got=entry.prev)
        self._time(entry)
        match entry:
            case Usage():
                self._usage(entry)
            case Genesis():
                if self.size:
                    raise _broken("a second genesis")
                check_genesis(self.name, self.public_key, entry.body)
                self.source = entry.body.source
            case Inventory():
                self.chips = len(entry.body.chips)
            case WorkloadStarted():
                self._chips(entry.body.chips)
            case Gap():
                self._chips(entry.body.chips or [])
            case KeyRoll():
                check_key_roll(self.name.origin, self.public_key, entry.seq, entry.body)
                self.closed, self.next_key = "key_roll", entry.body.next_public_key
            case Retired() if entry.body.chips is None:
                self.closed = "retired"
            case _:
                pass
        if not self.size and not isinstance(entry, Genesis):
            raise _broken("the first entry is not a genesis")
        self.size += 1
        self.prev = digest.hex()

    def _time(self, entry: Entry) -> None:
        if entry.boot_id == self.boot_id:
            if entry.boots != self.boots:
                raise _broken("boot counter changed within one boot", expected=self.boots, got=entry.boots)
            if entry.mono_us < self.mono_us:
                raise _broken("monotonic clock went back", expected=f">= {self.mono_us}", got=entry.mono_us)
        else:
            if self.boot_id is not None and entry.boots <= self.boots:
                raise _broken("boot counter did not grow", expected=f"> {self.boots}", got=entry.boots)
            self.boot_id, self.boots, self.covered_mono_us = entry.boot_id, entry.boots, 0
        self.mono_us, self.time_us = entry.mono_us, entry.time_us

    def _usage(self, entry: Usage) -> None:
        body = entry.body
        if self.chips is None or len(body.samples) != self.chips:
            raise _broken("columns don't fit the last inventory", expected=self.chips, got=len(body.samples))
        if body.mono_from_us < self.covered_mono_us:
            raise _broken(
                "usage interval overlaps the one before", expected=f">= {self.covered_mono_us}", got=body.mono_from_us
            )
        self.covered_mono_us = body.mono_from_us + body.to_us - body.from_us

    def _chips(self, chips: Sequence[int]) -> None:
        if chips and (self.chips is None or chips[-1] >= self.chips):
            raise _broken("names a chip that isn't in the inventory", expected=f"< {self.chips}", got=chips[-1])


def _broken(message: str, **details: object) -> ProtocolError:
    return ProtocolError(Code.BROKEN_CHAIN, message, **details)
