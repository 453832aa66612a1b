"""Runs of usage entries, read a few dozen lines at a time.

Nearly every line of a log is a usage entry that follows its neighbour in every way, and a check of one of them costs
several times its decoding. So lines are decoded together, into a type without what is known already, and checked as
columns. That is only ever a shortcut: :func:`read_run` answers None to anything that isn't as usual, and
:func:`~keyturn_protocol.segment.follow` then goes entry by entry, and finds the first one that is refused and why.

Why not all of a segment at once: its numbers wouldn't stay in the processor's cache, which takes half of the time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import add, ge, le, lt, sub
from typing import Any, Final, Literal, cast, get_type_hints

import msgspec

from keyturn_protocol.canonical import Record, decode_lines
from keyturn_protocol.entries import Heartbeat, Usage
from keyturn_protocol.entry_usage import Share, UsageBody, check_shares, columns_of
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.ids import Hash
from keyturn_protocol.limits import ENTRY_BYTES, USAGE_SPAN_US
from keyturn_protocol.segment import ChainState

RUN: Final = 32
"""Lines that are read together."""

Column = Sequence[tuple[int | None, ...]]
"""One field: by chip, then by entry."""


@dataclass(frozen=True, slots=True)
class Run:
    """Usage entries of one boot, one after the other, as columns: each sequence has a value an entry.

    Columns fit the inventory, and intervals don't overlap. ``mono_to_us`` is where an interval ends on
    CLOCK_BOOTTIME. Equal ``workloads`` are one object where they follow each other.
    """

    boots: int
    from_us: Sequence[int]
    to_us: Sequence[int]
    mono_from_us: Sequence[int]
    mono_to_us: Sequence[int]
    workloads: Sequence[list[Share]]
    samples: Column
    columns: Sequence[Column]
    """In the order of :data:`~keyturn_protocol.entries.FIELDS`."""

    def part(self, start: int, end: int) -> "Run":
        """Entries ``start`` … ``end - 1`` of it."""
        return Run(
            boots=self.boots,
            from_us=self.from_us[start:end],
            to_us=self.to_us[start:end],
            mono_from_us=self.mono_from_us[start:end],
            mono_to_us=self.mono_to_us[start:end],
            workloads=self.workloads[start:end],
            samples=[chip[start:end] for chip in self.samples],
            columns=[[chip[start:end] for chip in column] for column in self.columns],
        )

    @classmethod
    def of(cls, entries: Sequence[Usage]) -> "Run":
        """Entries of one boot that have been followed one by one.

        :raises ValueError: not every column has as many chips.
        """
        return cls._of(entries, [entry.body.workloads for entry in entries])

    @classmethod
    def _of(cls, entries: Sequence[Usage], workloads: Sequence[list[Share]]) -> "Run":
        bodies = [entry.body for entry in entries]
        from_us, to_us = [body.from_us for body in bodies], [body.to_us for body in bodies]
        mono_from_us = [body.mono_from_us for body in bodies]
        return cls(
            boots=entries[0].boots,
            from_us=from_us,
            to_us=to_us,
            mono_from_us=mono_from_us,
            mono_to_us=list(map(add, mono_from_us, map(sub, to_us, from_us))),
            workloads=workloads,
            samples=_by_chip([body.samples for body in bodies]),
            columns=[_by_chip(column) for column in zip(*map(columns_of, bodies), strict=True)],
        )


def _by_chip(column: Sequence[Sequence[int | None]]) -> Column:
    """A field's columns, turned around."""
    return list(zip(*column, strict=True))


@dataclass(frozen=True, slots=True)
class Shares:
    """Shares that have passed, and their bytes: the next entry nearly always has the same."""

    raw: bytes
    shares: list[Share]
    chips: int


@dataclass(frozen=True, slots=True)
class Read:
    """What :func:`read_run` made of lines, and the state after them."""

    run: Run | None
    """None where all of the lines are heartbeats."""
    heartbeats: list[Heartbeat]
    state: ChainState
    shares: Shares | None


def read_run(
    state: ChainState, lines: Sequence[bytes], hashes: Sequence[Hash], shares: Shares | None = None
) -> Read | None:
    """Usage entries and heartbeats that follow ``state`` in the same boot; None where anything else is among them.

    :param hashes: the leaf hashes of ``lines``.
    :param shares: of the lines before.
    """
    if state.boot_id is None or state.closed is not None or max(map(len, lines)) > ENTRY_BYTES:
        return None
    is_usage = [line.endswith(_USAGE_END) for line in lines]
    usages = _decode([line for line, yes in zip(lines, is_usage, strict=True) if yes])
    if usages is None:
        return None
    entries: Sequence[Usage | Heartbeat] = usages
    heartbeats: list[Heartbeat] = []
    if len(usages) < len(lines):
        rest = [line for line, yes in zip(lines, is_usage, strict=True) if not yes]
        if not all(line.endswith(_HEARTBEAT_END) for line in rest):
            return None
        found: list[Heartbeat] | None = decode_lines(b"\n".join(rest) + b"\n", Heartbeat)
        if found is None or len(found) != len(rest):
            return None
        heartbeats, one, other = found, iter(usages), iter(found)
        entries = [next(one) if yes else next(other) for yes in is_usage]
    if not _linked(state, entries, hashes):
        return None
    after = msgspec.structs.replace(
        state,
        size=state.size + len(lines),
        prev=hashes[-1].hex(),
        mono_us=entries[-1].mono_us,
        time_us=entries[-1].time_us,
    )
    if not usages:
        return Read(None, heartbeats, after, shares)
    if (workloads := _workloads(usages, shares)) is None:
        return None
    try:
        run = Run._of(usages, workloads[0])
    except ValueError:
        return None
    if not _fits(run, state, [entry.mono_us for entry in usages]):
        return None
    return Read(run, heartbeats, msgspec.structs.replace(after, covered_mono_us=run.mono_to_us[-1]), workloads[1])


def _linked(state: ChainState, entries: Sequence[Usage | Heartbeat], hashes: Sequence[Hash]) -> bool:
    """Whether each entry follows from the one before, in the boot that ``state`` is in."""
    mono_us = [state.mono_us, *[entry.mono_us for entry in entries]]
    return (
        [entry.seq for entry in entries] == list(range(state.size, state.size + len(hashes)))
        and [entry.prev for entry in entries] == [state.prev, *[digest.hex() for digest in hashes[:-1]]]
        and {entry.boot_id for entry in entries} == {state.boot_id}
        and {entry.boots for entry in entries} == {state.boots}
        and all(map(le, mono_us, mono_us[1:]))
    )


def _fits(run: Run, state: ChainState, mono_us: Sequence[int]) -> bool:
    """Whether intervals and columns are as :func:`~keyturn_protocol.entries.check_entry` and the chain have them.

    :param mono_us: of the entries.
    """
    return (
        {len(run.samples), *map(len, run.columns)} == {state.chips}
        and all(map(lt, run.from_us, run.to_us))
        and [us // USAGE_SPAN_US for us in run.from_us] == [(us - 1) // USAGE_SPAN_US for us in run.to_us]
        and all(map(le, run.mono_to_us, mono_us))
        and all(map(ge, run.mono_from_us, [state.covered_mono_us, *run.mono_to_us[:-1]]))
        and all(_unread_is_null(run, chip) for chip, samples in enumerate(run.samples) if 0 in samples)
    )


def _unread_is_null(run: Run, chip: int) -> bool:
    """Whether a chip has no values in the entries in which it has no samples."""
    unread = [at for at, samples in enumerate(run.samples[chip]) if not samples]
    return all(column[chip][at] is None for column in run.columns for at in unread)


def _workloads(entries: Sequence[Usage], known: Shares | None) -> tuple[list[list[Share]], Shares] | None:
    """The shares of each entry, and the last ones; None if they have to be looked at one by one."""
    found = []
    for entry in entries:
        raw, samples = bytes(cast(msgspec.Raw, entry.body.workloads)), entry.body.samples
        if known is None or raw != known.raw or known.chips != len(samples):
            lists: list[list[Share]] | None = decode_lines(raw + b"\n", list[Share])
            if lists is None or len(lists) != 1:
                return None
            known = Shares(raw, lists[0], len(samples))
        elif 0 not in samples:
            found.append(known.shares)
            continue
        try:
            check_shares(known.shares, samples)
        except ProtocolError:
            return None
        found.append(known.shares)
    return None if known is None else (found, known)


# A usage entry as `_decode` reads it: without a union to find its type in, its fields in the order in which they are
# written, without patterns for what is held against the chain anyway, and its shares as bytes.


def _lean(name: str, kinds: dict[str, Any]) -> Any:
    fields = [(key, kinds[key]) for key in sorted(kinds)]
    return msgspec.defstruct(name, fields, bases=(Record,), kw_only=True, frozen=True, forbid_unknown_fields=True)


_Body: Final = _lean("_Body", {**get_type_hints(UsageBody, include_extras=True), "workloads": msgspec.Raw})
_Line: Final = _lean(
    "_Line",
    {
        **get_type_hints(Usage, include_extras=True),
        **{"prev": str, "boot_id": str, "body": _Body, "type": Literal["usage"]},
    },
)
_DECODER: Final = msgspec.json.Decoder(_Line, strict=True)
_ENCODER: Final = msgspec.json.Encoder()
"""In the order of definition, which is the canonical one here."""
_USAGE_END: Final = b'"type":"usage","v":1}'
_HEARTBEAT_END: Final = b'"type":"heartbeat","v":1}'


def _decode(lines: Sequence[bytes]) -> list[Usage] | None:
    """Canonical usage entries but for their shares, which are still bytes; None if there is any other."""
    data = b"\n".join(lines) + b"\n" if lines else b""
    try:
        values: list[Usage] = _DECODER.decode_lines(data)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        return None
    return values if len(values) == len(lines) and _ENCODER.encode_lines(values) == data else None
