"""NVML from one opening to its closing: all chips of the host, and the ones that don't answer.

Lives in the worker's thread, as every call may hang.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from keyturn_agent.ports import Reading
from keyturn_agent.sources import nvml
from keyturn_agent.sources.nvml_causes import NvmlFailure, Reach
from keyturn_agent.sources.nvml_chip import ChipReader
from keyturn_agent.sources.nvml_gpm import ELAPSED, MIN_SPACING_US
from keyturn_agent.sources.nvml_inventory import discover, mig_uuids, optional
from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.values import Slug

T = TypeVar("T")

logger = logging.getLogger(__name__)

LOOK_AGAIN_US: Final = 10_000_000
"""How often MIG devices are counted again: they come and go without a word."""
_PROBES: Final = 3
"""GPM samples at the start: two for a first value of the elapsed cycles, one more for how they grow."""
_SLACK_US: Final = 10_000


class Backoff:
    """When to try again: 1 s after the first failure, then 2, 4, 8, 10, 10 …"""

    FIRST_US: Final = 1_000_000
    MOST_US: Final = 10_000_000

    def __init__(self) -> None:
        self._wait_us = self.FIRST_US
        self._next_us = 0

    def due(self, now_us: int) -> bool:
        return now_us >= self._next_us

    def failed(self, now_us: int) -> None:
        self._next_us = now_us + self._wait_us
        self._wait_us = min(2 * self._wait_us, self.MOST_US)


@dataclass(frozen=True, slots=True)
class Versions:
    """Each None where the driver doesn't say."""

    driver: str | None
    nvml: str | None
    cuda: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What one chip said: a reading, or why not."""

    reading: Reading | None
    cause: Slug | None


@dataclass(slots=True)
class _Lost:
    """A chip that failed: it is left alone for a while, as calls to a lost GPU may hang."""

    failure: NvmlFailure
    backoff: Backoff


class Session:
    """The library is open.

    :param now_us: CLOCK_BOOTTIME.
    :param wait: returns after that many µs; only used to take the samples apart that GPM needs at the start.
    :raises NvmlFailure: with reach SESSION when the library can't be opened; it is closed then.
    """

    def __init__(self, now_us: Callable[[], int], wait: Callable[[int], None]) -> None:
        self._now_us = now_us
        self._wait = wait
        self._readers: dict[str, ChipReader] = {}
        self._lost: dict[str, _Lost] = {}
        self._left_out = 0
        self._look_us = now_us() + LOOK_AGAIN_US
        nvml.open_library()
        try:
            self.versions = Versions(
                optional(nvml.driver_version), optional(nvml.nvml_version), optional(nvml.cuda_version)
            )
            self._adopt()
        except NvmlFailure:
            self.close()
            raise

    @property
    def chips(self) -> list[Chip]:
        """In the order of the driver, with what is measured on each."""
        return [reader.chip for reader in self._readers.values()]

    def read(self, now_us: int) -> dict[str, Answer]:
        """The chips by uuid.

        :raises NvmlFailure: with reach SESSION, or when no chip is left; the session is over then.
        """
        answers = {uuid: self._read(uuid, reader, now_us) for uuid, reader in self._readers.items()}
        if self._lost and len(self._lost) == len(answers):
            # Nothing to lose any more, and a GPU that was reset shows itself only to a new session.
            raise next(iter(self._lost.values())).failure
        return answers

    def accounting(self) -> tuple[int, int]:
        """On how many GPUs the driver keeps records of processes that end, and how many GPUs there are."""
        gpus = [r for uuid, r in self._readers.items() if not r.identity.is_mig and uuid not in self._lost]
        return sum(_unless_lost(partial(_accounts, reader)) is True for reader in gpus), len(gpus)

    def processes(self, now_us: int) -> dict[str, tuple[nvml.GpuProcess, ...] | None]:
        """Who computes on each chip, by uuid; None where the driver doesn't say.

        :raises NvmlFailure: with reach SESSION.
        """
        return {
            uuid: None if uuid in self._lost else _unless_lost(partial(reader.processes, now_us))
            for uuid, reader in self._readers.items()
        }

    def look_again(self, now_us: int) -> None:
        """Every :data:`LOOK_AGAIN_US`: take up the MIG devices that came and GPUs that answer now or were divided,
        drop MIG devices that went.

        :raises NvmlFailure: with reach SESSION.
        """
        if now_us < self._look_us:
            return
        self._look_us = now_us + LOOK_AGAIN_US
        if self._left_out or any(self._divided_anew(uuid) for uuid in self._readers):
            self._adopt()

    def _divided_anew(self, uuid: str) -> bool:
        identity = self._readers[uuid].identity
        if identity.is_mig or uuid in self._lost:
            return False
        # Since Hopper a GPU is divided, and made whole again, without being reset.
        divided = _unless_lost(partial(nvml.mig_enabled, identity.handle))
        if not divided or identity.chip.role == "gpu":
            return divided is (identity.chip.role == "gpu")
        known = {u for u, reader in self._readers.items() if reader.identity.chip.parent == uuid}
        return _unless_lost(partial(mig_uuids, identity.handle)) not in (known, None)

    def close(self) -> None:
        """Close the library, whatever it answers."""
        for reader in self._readers.values():
            reader.close()
        try:
            nvml.close_library()
        except NvmlFailure as failure:
            logger.info("closing NVML: %s", failure)

    def _adopt(self) -> None:
        """Read the chips that are there now; those that are read already go on, without a break in their counters."""
        identities, left_out = discover()
        if left_out > self._left_out:
            logger.warning("%d of the GPUs that NVML lists do not answer", left_out)
        self._left_out = left_out
        shown = {identity.chip.uuid: identity for identity in identities}
        readers: dict[str, ChipReader] = {}
        new: list[ChipReader] = []
        for uuid, identity in shown.items():
            known = self._readers.get(uuid)
            if known is not None and known.identity.chip.role != identity.chip.role:
                known.close()
                known = None
            if known is None:
                known = ChipReader(identity)
                new.append(known)
            readers[uuid] = known
        for uuid, reader in self._readers.items():
            if uuid not in shown:
                chip = reader.identity.chip
                if chip.parent is None or chip.parent not in shown:
                    # Not gone, only silent.
                    readers[uuid] = reader
                else:
                    reader.close()
                    self._lost.pop(uuid, None)
        self._readers = readers
        self._probe(new)

    def _probe(self, readers: list[ChipReader]) -> None:
        """Find out what can be measured, before the first reading counts; see :func:`.nvml_gpm.divisor`."""
        seen: dict[str, tuple[int, float]] = {}
        for probe in range(_PROBES):
            if probe:
                self._wait(MIN_SPACING_US + _SLACK_US)
            for reader in readers:
                uuid, gpm = reader.identity.chip.uuid, reader.gpm
                if gpm is None or uuid in self._lost:
                    continue
                now_us = self._now_us()
                try:
                    cycles = gpm.metrics(now_us)[0].get(ELAPSED)
                    if cycles is not None and uuid in seen:
                        before_us, before = seen[uuid]
                        by = reader.counter_divisor(cycles - before, now_us - before_us)
                        if by is not None or not reader.idle:
                            gpm.use_counters(by)
                    elif cycles is not None:
                        seen[uuid] = now_us, cycles
                except NvmlFailure as failure:
                    if failure.cause.reach is Reach.SESSION:
                        raise
                    # The reading below meets it again, and says so.
                    continue
        self._wait(MIN_SPACING_US + _SLACK_US)
        for reader in readers:
            if reader.gpm is not None and not reader.gpm.decided and reader.identity.chip.uuid not in seen:
                # The driver has none; else it is decided once the chip is busy.
                reader.gpm.use_counters(None)
            self._read(reader.identity.chip.uuid, reader, self._now_us())

    def _read(self, uuid: str, reader: ChipReader, now_us: int) -> Answer:
        lost = self._lost.get(uuid)
        if lost is not None and not lost.backoff.due(now_us):
            return Answer(None, lost.failure.cause.slug)
        try:
            reading = reader.read(now_us)
        except NvmlFailure as failure:
            if failure.cause.reach is Reach.SESSION:
                raise
            if failure.cause.reach is Reach.CHIP:
                backoff = Backoff() if lost is None else lost.backoff
                backoff.failed(now_us)
                self._lost[uuid] = _Lost(failure, backoff)
            return Answer(None, failure.cause.slug)
        self._lost.pop(uuid, None)
        return Answer(reading, None)


def _unless_lost(ask: Callable[[], T]) -> T | None:
    """The answer, or None where this chip doesn't give it; the next reading finds out more."""
    try:
        return ask()
    except NvmlFailure as failure:
        if failure.cause.reach is Reach.SESSION:
            raise
        return None


def _accounts(reader: ChipReader) -> bool:
    return reader.accounting
