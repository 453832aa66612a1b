"""Whose work it was: shares weighted by time, and workloads that come and go. Pure."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from keyturn_agent.ports import Declared, Sample
from keyturn_protocol.entry_usage import Share, ShareClass
from keyturn_protocol.entry_workloads import WorkloadEndedBody, WorkloadStartedBody

GONE_MEANWHILE: Final = "gone while the agent was down"


def parties(shares: Sequence[Share]) -> tuple[tuple[int, str, str], ...]:
    """Who has which chip, and how, without the sizes of the shares."""
    return tuple((share.chip, share.id, share.class_) for share in shares)


class Weights:
    """Shares of one interval, weighted by time; the parties are the same throughout."""

    def __init__(self) -> None:
        self._time_us = 0
        self._ppm_us: dict[tuple[int, str], int] = {}
        self._class: dict[tuple[int, str], ShareClass] = {}

    def add(self, shares: Sequence[Share], dt_us: int) -> None:
        """These shares held for ``dt_us``."""
        self._time_us += dt_us
        for share in shares:
            key = (share.chip, share.id)
            self._ppm_us[key] = self._ppm_us.get(key, 0) + share.share_ppm * dt_us
            self._class[key] = share.class_

    def shares(self, samples: Sequence[int]) -> list[Share]:
        """The mean shares of the chips with samples, sorted.

        Rounded as a running sum over each chip, so that they never exceed the whole, and are the whole where
        they were all along.
        """
        result: list[Share] = []
        chip, running = -1, 0
        for key in sorted(self._ppm_us):
            if key[0] != chip:
                chip, running = key[0], 0
            upto = running + self._ppm_us[key]
            if samples[chip]:
                ppm = upto // self._time_us - running // self._time_us
                result.append(Share(chip=chip, id=key[1], class_=self._class[key], share_ppm=ppm))
            running = upto
        return result


class Workloads:
    """Which workloads are there, from the shares of one sample to the next.

    :param declared: what the operator says about a workload.
    """

    def __init__(self, declared: Callable[[str], Declared | None]) -> None:
        self._declared = declared
        self._chips: dict[str, set[int]] = {}
        self._started: dict[str, WorkloadStartedBody] = {}
        self._before: set[str] = set()

    def expect(self, workloads: Iterable[str]) -> None:
        """These were there when the agent ran last: what isn't any more has ended."""
        self._before = set(workloads)

    def see(self, sample: Sample) -> list[WorkloadEndedBody | WorkloadStartedBody]:
        """What changed with this sample. A workload on a chip that can't be read hasn't ended by that."""
        now: dict[str, list[Share]] = {}
        for share in sample.shares:
            now.setdefault(share.id, []).append(share)
        bodies: list[WorkloadEndedBody | WorkloadStartedBody] = []
        if self._before and sample.chips and None not in sample.chips:
            bodies += (_ended(workload, GONE_MEANWHILE) for workload in sorted(self._before - now.keys()))
            self._before = set()
        for workload in sorted(self._chips.keys() - now.keys()):
            if all(sample.chips[chip] is not None for chip in self._chips[workload]):
                bodies.append(_ended(workload, "not seen any more"))
                del self._chips[workload], self._started[workload]
        for workload in sorted(now):
            self._chips[workload] = {share.chip for share in now[workload]}
            if workload not in self._started:
                self._started[workload] = self._body(workload, now[workload])
                bodies.append(self._started[workload])
        return bodies

    def relist(self, origin: Sequence[int | None]) -> list[WorkloadEndedBody]:
        """The chips have other numbers from here on; workloads that had only chips that are gone have ended.

        :param origin: for each chip its number so far, or None if it is new.
        """
        place = {before: chip for chip, before in enumerate(origin) if before is not None}
        bodies = []
        for workload in sorted(self._chips):
            self._chips[workload] = {place[chip] for chip in self._chips[workload] if chip in place}
            if not self._chips[workload]:
                bodies.append(_ended(workload, "its chips are gone"))
                del self._chips[workload], self._started[workload]
                continue
            started = self._started[workload]
            chips = sorted(place[chip] for chip in started.chips if chip in place)
            self._started[workload] = msgspec.structs.replace(started, chips=chips)
        return bodies

    def end(self, reason: str) -> list[WorkloadEndedBody]:
        """The source has ended, and with it all that it showed."""
        bodies = [_ended(workload, reason) for workload in sorted(self._chips)]
        self._chips.clear()
        self._started.clear()
        return bodies

    def present(self) -> list[WorkloadStartedBody]:
        """The workloads that are there, as they were announced; for the start of a new log."""
        return [self._started[workload] for workload in sorted(self._started)]

    def _body(self, workload: str, shares: Sequence[Share]) -> WorkloadStartedBody:
        classes: set[ShareClass] = {share.class_ for share in shares}
        chips = {share.chip for share in shares}
        # Over several chips the weakest word counts.
        ranked: tuple[ShareClass, ...] = ("shared", "mig", "exclusive")
        declared = self._declared(workload)
        return WorkloadStartedBody(
            id=workload,
            class_=next(c for c in ranked if c in classes),
            chips=sorted(chips if declared is None else chips | set(declared.chips)),
            declared_dtype=None if declared is None else declared.declared_dtype,
            name_commitment=None,
            parents=[],
        )


def _ended(workload: str, reason: str) -> WorkloadEndedBody:
    return WorkloadEndedBody(id=workload, output_sha256=None, reason=reason)
