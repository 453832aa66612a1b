"""What the work on leased chips costs, from entries as they are written: the high end, by the fastest type allowed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from keyturn_protocol.chips import ChipTable, chip_table
from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.entry_usage import FIELDS, UsageBody
from keyturn_protocol.flop import estimate, gap_rate
from keyturn_protocol.ids import UNATTRIBUTED
from keyturn_protocol.usage import UsageRow


@dataclass(slots=True)
class Meterage:
    """The leased chips of one job: how far each is charged (CLOCK_BOOTTIME), and for which types."""

    subject: str
    dtypes: tuple[str, ...]
    upto_us: dict[str, int]


class Spent:
    """FLOP by subject, over all its leases on this node."""

    def __init__(self, charged: Mapping[str, int], table: ChipTable | None = None) -> None:
        self.flop = dict(charged)
        self._table = chip_table() if table is None else table
        self._jobs: dict[str, Meterage] = {}
        self._chips: list[Chip] = []

    def inventory(self, chips: Sequence[Chip]) -> None:
        self._chips = list(chips)

    def begin(self, job: str, subject: str, dtypes: Sequence[str], chips: Sequence[str], mono_us: int) -> None:
        """From here on the chips are charged to a subject; a job that was there goes on where it is."""
        old = self._jobs.get(job)
        at = {} if old is None else old.upto_us
        self._jobs[job] = Meterage(subject, tuple(dtypes), {chip: at.get(chip, mono_us) for chip in chips})
        self.flop.setdefault(subject, 0)

    def end(self, job: str, mono_us: int) -> None:
        """Charge what isn't covered, at peak, and stop charging."""
        meter = self._jobs.pop(job, None)
        if meter is not None:
            for chip, upto_us in meter.upto_us.items():
                self._add(meter.subject, self._peak(chip, mono_us - upto_us))

    def rate(self, chips: Sequence[str]) -> int:
        """FLOP in a µs at the peak of all of them; at least one."""
        return max(1, sum(self._peak(chip, 1) for chip in chips))

    def usage(self, body: UsageBody) -> None:
        """One entry: what it covers is charged by its counters, what lies before it and nothing covers at peak."""
        begin_us, end_us = body.mono_from_us, body.mono_from_us + body.to_us - body.from_us
        place = {chip.uuid: i for i, chip in enumerate(self._chips)}
        for meter in self._jobs.values():
            for uuid, upto_us in meter.upto_us.items():
                if uuid not in place or end_us <= upto_us:
                    continue
                self._add(meter.subject, self._peak(uuid, max(0, begin_us - upto_us)))
                self._add(meter.subject, self._row(body, place[uuid], meter.dtypes))
                meter.upto_us[uuid] = end_us

    def _row(self, body: UsageBody, at: int, dtypes: Sequence[str]) -> int:
        chip = self._chips[at]
        values = {name: getattr(body, name)[at] for name in FIELDS}
        basis = sum(1 << i for i, name in enumerate(FIELDS) if values[name] is None)
        row = UsageRow(
            log="", chip=chip.uuid, hour_s=0, workload=UNATTRIBUTED, inventory_seq=0, basis=basis,
            time_us=body.to_us - body.from_us, samples=body.samples[at], **values,
        )  # fmt: skip
        highs: list[int | None] = []
        for dtype in dtypes or [None]:  # type: ignore[list-item]
            found = estimate(row, chip, dtype, self._table)
            highs.append((found.declared or found.undeclared).high)
        known = [high for high in highs if high is not None]
        return max(known) if len(known) == len(highs) else self._peak(chip.uuid, body.to_us - body.from_us)

    def _peak(self, uuid: str, time_us: int) -> int:
        chip = next((each for each in self._chips if each.uuid == uuid), None)
        rate = None if chip is None else gap_rate(chip, self._table)
        return 0 if rate is None else rate * max(0, time_us)

    def _add(self, subject: str, flop: int) -> None:
        self.flop[subject] = self.flop.get(subject, 0) + flop
