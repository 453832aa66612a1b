"""What this host charges: the fold of :mod:`keyturn_protocol.charging` over its own log, kept as far as it has come.

charge.json          the log, up to which entry it is folded, the fold's state, and the energy at its points
leases/<sha256>      the signed lease of each word in the log

A crash loses nothing: what the file is behind is folded again out of the log. Numbers begin anew with each log.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Final, Literal

import msgspec

from keyturn_agent import files
from keyturn_agent.errors import LOST, StoreError
from keyturn_agent.ports import Sample, Stamp
from keyturn_agent.store import Store
from keyturn_protocol.canonical import Record, UInt, decode, encode
from keyturn_protocol.charging import EMPTY, Charge, ChargeState
from keyturn_protocol.chips import chip_table
from keyturn_protocol.entries import Inventory, Usage, parse_entry
from keyturn_protocol.entries import Lease as LeaseEntry
from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.entry_switch import LeaseBody, LeaseGap
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.flop import peak_rate
from keyturn_protocol.lease import Lease, SignedLease, parse_lease
from keyturn_protocol.values import BootId, ChipUuid, Micros, OriginText

logger = logging.getLogger(__name__)

_NAME: Final = "charge.json"
_FOLDER: Final = "leases"
_BYTES: Final = 16 * 1024 * 1024
_EVERY: Final = 256
"""Entries after which the state is kept also while nothing is leased."""


class Energy(Record, frozen=True, kw_only=True):
    """A chip's energy counter at a moment of CLOCK_BOOTTIME."""

    boot_id: BootId
    mono_us: Micros
    energy_mj: UInt


class Charged(Record, frozen=True, kw_only=True):
    """The file ``charge.json``: ``size`` entries of the log ``origin`` are folded."""

    v: Literal[1]
    origin: OriginText
    size: UInt
    state: ChargeState
    energy: dict[ChipUuid, Energy]


class Notes(Mapping[str, Lease]):
    """The leases that this host adopted, by hash; each is on disk before the log speaks of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / _FOLDER
        self._known: dict[str, Lease] = {}

    def add(self, signed: SignedLease) -> None:
        """Keep a lease; after this it survives."""
        with files.doing(f"writing {self._folder}"):
            self._folder.mkdir(mode=files.PRIVATE_FOLDER, exist_ok=True)
            files.replace(self._folder / signed.hash.hex(), signed.to_bytes())
            files.fsync_folder(self._folder.parent)
        self._known[signed.hash.hex()] = signed.lease

    def __getitem__(self, digest: str) -> Lease:
        if digest not in self._known:
            try:
                self._known[digest] = parse_lease((self._folder / digest).read_bytes()).lease
            except (OSError, ProtocolError):
                raise KeyError(digest) from None
        return self._known[digest]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


class Metering:
    """The charge of the log that is written now. Used by the daemon's thread alone."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.notes = Notes(store.folder)
        self._table = chip_table()
        kept = self._load(store)
        self._energy = {} if kept is None else dict(kept.energy)
        self._saved = 0
        self._last: Sample | None = None
        self._origin = ""
        self._size = 0
        self.charge = Charge(self._table, self.notes)
        if kept is not None and kept.origin == store.log.name.origin and kept.size <= store.log.size:
            self._origin, self._size = kept.origin, kept.size
            self.charge = Charge(self._table, self.notes, kept.state)
        self.wrote()

    # -- for the writer

    def finish(self, body: LeaseBody, stamp: Stamp) -> LeaseBody:
        """The same word on a lease with what is charged at these clocks."""
        flop = self.charge.to_say(body, stamp.boots, stamp.mono_us, stamp.time_us)
        return msgspec.structs.replace(body, charged_flop=str(flop))

    def wrote(self) -> None:
        """Fold what the log has more than before."""
        log = self._store.log
        if log.name.origin != self._origin:
            self._origin, self._size = log.name.origin, 0
            self.charge = Charge(self._table, self.notes, EMPTY)
        words = False
        for line in log.lines(self._size):
            entry = parse_entry(line)
            self.charge.entry(entry)
            words = words or isinstance(entry, LeaseEntry | Inventory)
            if isinstance(entry, Usage):
                self._remember(entry)
                words = words or bool(self.charge.on)
        self._size = log.size
        if words or self._size - self._saved >= _EVERY:
            self.keep()

    # -- what is left

    def charged_flop(self, subject: str) -> int:
        return self.charge.charged_flop(subject)

    def point_us(self, subject: str) -> int | None:
        """Up to when (CLOCK_BOOTTIME) all of a subject's chips are charged; None without a lease."""
        on = self.charge.on.get(subject)
        return None if on is None else min((point.mono_us for point in on.points.values()), default=on.since_mono_us)

    def has_last_word(self, subject: str, lease: str) -> bool:
        """Whether the log has the last word on a lease that was adopted; looks for it from the end of the log on."""
        if subject in self.charge.on:
            return False
        log = self._store.log
        sealed = (log.spool.lines(begin, end) or () for begin, end in reversed(list(log.spool.after(0))))
        return any(_is_last_word(line, lease) for lines in chain([log.lines(log.sealed)], sealed) for line in lines)

    def rate(self, chips: Sequence[str]) -> int:
        """FLOP in a µs at the peak of all of them, at least one."""
        listed = {chip.uuid: chip for chip in self.charge.inventory}
        rates = [peak_rate(listed[uuid], frozenset(), self._table) for uuid in chips if uuid in listed]
        return max(1, sum(rate for rate in rates if rate is not None))

    def chips(self) -> list[Chip]:
        """Those of the last inventory."""
        return self.charge.inventory

    # -- energy

    def sampled(self, sample: Sample, boot_id: str) -> list[LeaseGap]:
        """What the energy counters say of a hole that ends with this sample, for chips that are leased.

        A hole is the time since the last usage entry in which no chip was read: while the agent was down, the driver
        closed or gone. Counters that begin anew say nothing.
        """
        last, self._last = self._last, sample
        if last is not None and any(reading is not None for reading in last.chips):
            return []
        gaps = []
        for chip, reading in zip(self.charge.inventory, sample.chips, strict=False):
            known = self._energy.get(chip.uuid)
            point = next((on.points[chip.uuid] for on in self.charge.on.values() if chip.uuid in on.points), None)
            if reading is None or reading.energy_mj is None or known is None or point is None:
                continue
            same = known.boot_id == boot_id and known.mono_us == point.mono_us < sample.mono_us
            if same and reading.energy_mj >= known.energy_mj:
                energy_mj = reading.energy_mj - known.energy_mj
                gaps.append(
                    LeaseGap(chip=chip.uuid, mono_from_us=point.mono_us, mono_to_us=sample.mono_us, energy_mj=energy_mj)
                )
        return sorted(gaps, key=lambda gap: gap.chip)

    def _remember(self, entry: Usage) -> None:
        """The energy counters where a usage entry ends, if that is the last sample."""
        body, sample = entry.body, self._last
        end_us = body.mono_from_us + body.to_us - body.from_us
        if sample is None or sample.mono_us != end_us:
            return
        for chip, reading in zip(self.charge.inventory, sample.chips, strict=False):
            if reading is not None and reading.energy_mj is not None:
                self._energy[chip.uuid] = Energy(boot_id=entry.boot_id, mono_us=end_us, energy_mj=reading.energy_mj)

    # -- on disk

    def keep(self) -> None:
        """After this the fold survives up to here."""
        self._saved = self._size
        listed = {chip.uuid for chip in self.charge.inventory}
        kept = Charged(
            v=1,
            origin=self._origin,
            size=self._size,
            state=self.charge.state(),
            energy={uuid: energy for uuid, energy in self._energy.items() if uuid in listed},
        )
        with files.doing(f"writing {self._store.folder}/{_NAME}"):
            files.replace(self._store.folder / _NAME, encode(kept))

    def _load(self, store: Store) -> Charged | None:
        path = store.folder / _NAME
        try:
            kept: Charged = decode(path.read_bytes(), Charged, limit=_BYTES)
        except FileNotFoundError:
            return None
        except (OSError, ProtocolError) as error:
            if store.log.spool.first == 0:
                # All of it is in the log, which is still whole.
                logger.error("%s was damaged, and is made again out of the log: %s", path, error)
                return None
            raise StoreError("bad_state", f"reading {path}: {error}", hint=LOST) from error
        return kept


def _is_last_word(line: bytes, lease: str) -> bool:
    if lease.encode() not in line:
        return False
    entry = parse_entry(line)
    return isinstance(entry, LeaseEntry) and entry.body.lease == lease and entry.body.event == "final"
