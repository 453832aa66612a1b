"""NVML from one opening to its closing: all chips of the host, and the ones that don't answer.

Lives in the worker's thread, as every call may hang.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from keyturn_agent.ports import Reading
from keyturn_agent.sources import nvml
from keyturn_agent.sources.nvml_causes import NvmlFailure, Reach
from keyturn_agent.sources.nvml_chip import ChipReader
from keyturn_agent.sources.nvml_gpm import ELAPSED, MIN_SPACING_US, divisor
from keyturn_agent.sources.nvml_inventory import discover, mig_uuids
from keyturn_protocol.entries import Chip, Slug

logger = logging.getLogger(__name__)

LOOK_AGAIN_US: Final = 10_000_000
"""How often MIG devices are counted again: they come and go without a word."""
_PROBES: Final = 3


class Backoff:
    """When to try again: 1 s after the first failure, then 2, 4 … 60."""

    FIRST_US: Final = 1_000_000
    MOST_US: Final = 60_000_000

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

    cause: Slug
    backoff: Backoff


class Session:
    """The library is open.

    :param now_us: CLOCK_BOOTTIME.
    :param wait: returns after that many µs; only used to take the samples apart that GPM needs at the start.
    :raises NvmlFailure: with reach SESSION when the library can't be opened; it is closed then.
    """

    def __init__(self, now_us: Callable[[], int], wait: Callable[[int], None]) -> None:
        nvml.open_library()
        try:
            self.versions = Versions(
                _text(nvml.driver_version), _text(nvml.nvml_version), _text(nvml.cuda_version)
            )
            identities, self.whole = discover()
            self._readers = [ChipReader(identity) for identity in identities]
            self._lost: dict[str, _Lost] = {}
            self._look_us = now_us() + LOOK_AGAIN_US
            self._probe(now_us, wait)
        except NvmlFailure as failure:
            shut(failure)
            raise

    @property
    def chips(self) -> list[Chip]:
        """In the order of the driver, with what is measured on each."""
        return [reader.chip for reader in self._readers]

    def read(self, now_us: int) -> dict[str, Answer]:
        """The chips by uuid.

        :raises NvmlFailure: with reach SESSION; the session is over then.
        """
        answers = {reader.identity.chip.uuid: self._read(reader, now_us) for reader in self._readers}
        if answers and len(self._lost) == len(answers):
            # Nothing to lose any more; a reset GPU comes back only in a new session.
            raise NvmlFailure(self._first_code, "every chip")
        return answers

    def processes(self) -> dict[str, tuple[nvml.GpuProcess, ...] | None]:
        """Who computes on each chip, by uuid."""
        return {
            reader.identity.chip.uuid: self._guard(reader.processes)
            for reader in self._readers
            if reader.identity.chip.uuid not in self._lost
        }

    def changed(self, now_us: int) -> bool:
        """Whether the driver shows other chips than when it was opened; looks only every :data:`LOOK_AGAIN_US`."""
        if now_us < self._look_us:
            return False
        self._look_us = now_us + LOOK_AGAIN_US
        known: dict[str, set[str]] = {}
        for reader in self._readers:
            chip = reader.identity.chip
            if chip.role == "mig_instance" and chip.parent is not None:
                known.setdefault(chip.parent, set()).add(chip.uuid)
        return any(
            self._guard(lambda handle=reader.identity.handle: mig_uuids(handle))  # type: ignore[misc]
            not in (None, known.get(reader.identity.chip.uuid, set()))
            for reader in self._readers
            if reader.identity.chip.role == "mig_parent" and reader.identity.chip.uuid not in self._lost
        )

    def close(self) -> None:
        """Close the library, whatever it answers."""
        for reader in self._readers:
            reader.close()
        shut(None)
