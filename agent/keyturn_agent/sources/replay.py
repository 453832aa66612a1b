"""A :class:`~keyturn_agent.ports.GpuSource` that plays a recording, once or over and over.

No sample is skipped: a replay that runs late catches up. Where a recording starts again, counters go on from
where they were and the first sample is left out, as it stands at the same moment as the last one before it.
"""

from collections.abc import Callable, Collection

import msgspec

from keyturn_agent.errors import RefusedError, UsageError
from keyturn_agent.ports import COUNTERS, Declared, Reading, Sample
from keyturn_agent.recording import Recording
from keyturn_protocol.entry_inventory import Chip, InventoryBody
from keyturn_protocol.entry_log import Source
from keyturn_protocol.errors import ProtocolError

ENDED = "recording_ended"
"""Cause of the gap after a recording's end, for an agent that isn't told to end with it."""
_IDLE_MW = 60_000
"""What a chip takes that waits for work, about as an H100 does."""


class ReplaySource:
    """A recording as a source.

    :param start_mono_us: CLOCK_BOOTTIME of the recording's first sample.
    :param loops: how often to play it.
    :param duration_us: stop after this much recorded time, however many loops are left; None plays all.
    :param label: put before each chip's uuid with a hyphen, so that hosts on one recording have chips of their own.
    :param until_end: end with the recording. Otherwise its chips can't be read any more from there on.
    :param plays: asked before each sample: while it says no, the recording stands still and its chips are idle, so
        that the recorded work stands for that of a command which is started beside it.
    """

    def __init__(
        self,
        recording: Recording,
        start_mono_us: int,
        *,
        loops: int = 1,
        duration_us: int | None = None,
        label: str | None = None,
        until_end: bool = True,
        period_us: int = 1_000_000,
        plays: Callable[[], bool] = lambda: True,
    ) -> None:
        if loops < 1:
            raise UsageError("bad_flag", f"--loop: must be at least 1 (got {loops})")
        self._recording = recording
        self._start_us = start_mono_us
        self._end_us = recording.length_us * loops
        if duration_us is not None:
            self._end_us = min(self._end_us, duration_us)
        self._until_end = until_end
        self._period_us = period_us
        self._inventory = recording.header.inventory(_labelled(recording.header.chips, label))
        self._declared = {w.id: Declared(w.declared_dtype, tuple(w.chips)) for w in recording.header.workloads}
        self._growth = [_growth(recording, chip) for chip in range(len(recording.header.chips))]
        self._loop = self._index = 0
        self._last_us = start_mono_us
        self._plays = plays
        self._idle = False
        self._idle_mj = 0

    @property
    def kind(self) -> Source:
        return "replay"

    @property
    def blind(self) -> None:
        return None

    def inventory(self) -> InventoryBody:
        return self._inventory

    @property
    def inventory_changed(self) -> bool:
        return False

    def close(self) -> None:
        """A recording holds no driver."""

    def forget(self, uuids: Collection[str]) -> None:
        raise RefusedError(
            "not_live", f"a replay goes on showing {', '.join(sorted(uuids))}", hint="retire chips once it has ended"
        )

    def reopen(self) -> None:
        """Nor does it need one."""

    def stop(self) -> None:
        """Nothing is open."""

    def declared(self, workload: str) -> Declared | None:
        return self._declared.get(workload)

    def due_us(self, now_us: int) -> int | None:
        if not self._plays():
            self._idle = True
            # Where the recording begins is what its chips stand at.
            self._index = max(self._index, 1)
            return max(self._last_us + self._period_us, now_us)
        if self._idle:
            self._idle = False
            self._start_us = now_us - self._before_us()
        offset = self._offset_us()
        if offset <= self._end_us:
            return self._start_us + offset
        return None if self._until_end else max(self._last_us + self._period_us, now_us)

    def read(self, now_us: int) -> Sample:
        if self._idle:
            return self._stand(now_us)
        offset = self._offset_us()
        if offset > self._end_us:
            self._last_us = now_us
            return Sample(now_us, (None,) * len(self._growth), ENDED, ())
        recorded = self._recording.samples[self._index]
        chips = tuple(
            None if reading is None else self._shifted(reading, chip) for chip, reading in enumerate(recorded.chips)
        )
        self._last_us = self._start_us + offset
        self._index += 1
        if self._index == len(self._recording.samples):
            # The seam: the last sample of one round is the first of the next.
            self._loop, self._index = self._loop + 1, 1
        return Sample(self._last_us, chips, recorded.error, tuple(recorded.shares))

    def _stand(self, now_us: int) -> Sample:
        """A sample of chips that wait for work: counters stand, but for a little energy."""
        self._idle_mj += _IDLE_MW * max(0, now_us - self._last_us) // 1_000_000
        self._last_us = now_us
        before = self._recording.samples[self._index - 1]
        chips = tuple(
            None if reading is None else _resting(self._shifted(reading, chip))
            for chip, reading in enumerate(before.chips)
        )
        return Sample(now_us, chips, before.error, ())

    def _before_us(self) -> int:
        """The recorded moment of the sample before the next one."""
        return self._recording.length_us * self._loop + self._recording.samples[self._index - 1].t_us

    def _offset_us(self) -> int:
        return self._recording.length_us * self._loop + self._recording.samples[self._index].t_us

    def _shifted(self, reading: Reading, chip: int) -> Reading:
        if not self._loop and not self._idle_mj:
            return reading
        changes = {
            name: value + self._growth[chip][name] * self._loop
            for name in COUNTERS
            if (value := getattr(reading, name)) is not None
        }
        if reading.energy_mj is not None:
            changes["energy_mj"] += self._idle_mj
        return msgspec.structs.replace(reading, **changes)


def _resting(reading: Reading) -> Reading:
    """The same chip with nothing to do."""
    changes = {
        name: 0 for name in Reading.__struct_fields__ if name.endswith("_ppm") and getattr(reading, name) is not None
    }
    if reading.power_mw is not None:
        changes["power_mw"] = _IDLE_MW
    return msgspec.structs.replace(reading, **changes)


def _growth(recording: Recording, chip: int) -> dict[str, int]:
    """How much each counter of a chip grows from the recording's first value to its last."""
    growth = {}
    for name in COUNTERS:
        values = [
            value
            for sample in recording.samples
            if (reading := sample.chips[chip]) is not None and (value := getattr(reading, name)) is not None
        ]
        growth[name] = values[-1] - values[0] if values else 0
    return growth


def _labelled(chips: list[Chip], label: str | None) -> list[Chip]:
    if label is None:
        return chips
    if not label:
        raise UsageError("bad_flag", "--label: must not be empty (got '')")
    try:
        return [
            msgspec.convert(
                msgspec.to_builtins(chip)
                | {
                    "uuid": f"{label}-{chip.uuid}",
                    "parent": None if chip.parent is None else f"{label}-{chip.parent}",
                },
                Chip,
            )
            for chip in chips
        ]
    except (msgspec.ValidationError, ProtocolError) as error:
        raise UsageError("bad_flag", f"--label: does not make a chip's uuid (got {label!r}): {error}") from error
