"""What the agent shows of itself while it runs, out of its last two samples. Pure."""

from collections.abc import Sequence

from keyturn_agent.ports import Reading, Sample
from keyturn_protocol.canonical import Ppm, Record, UInt
from keyturn_protocol.entry_inventory import Chip


class LiveChip(Record, frozen=True, kw_only=True):
    """One chip now; null is *not measured*. ``workloads`` with their parts in ppm."""

    uuid: str
    name: str
    readable: bool
    busy_ppm: Ppm | None
    tensor_ppm: Ppm | None
    power_mw: UInt | None
    clock_mhz: UInt | None
    memory_mib: UInt | None
    workloads: dict[str, UInt]


def live_chips(chips: Sequence[Chip], before: Sample | None, now: Sample) -> list[LiveChip]:
    """A row a chip; ``before`` is the sample before, for what is only counted."""
    old: Sequence[Reading | None] = () if before is None else before.chips
    rows = []
    for i, (chip, reading) in enumerate(zip(chips, now.chips, strict=True)):
        last = old[i] if len(old) == len(now.chips) else None
        rows.append(
            LiveChip(
                uuid=chip.uuid,
                name=chip.name,
                readable=reading is not None,
                busy_ppm=None if reading is None else reading.busy_ppm,
                tensor_ppm=None if reading is None else _tensor(last, reading),
                power_mw=None if reading is None else reading.power_mw,
                clock_mhz=None if reading is None else reading.sm_clock_mhz,
                memory_mib=None if reading is None else reading.memory_mib,
                workloads={share.id: share.share_ppm for share in now.shares if share.chip == i},
            )
        )
    return rows


def _tensor(last: Reading | None, now: Reading) -> int | None:
    """How much of the time the tensor pipe was active: as told, else by what was counted."""
    if now.tensor_ppm is not None:
        return now.tensor_ppm
    if last is None or None in (last.tensor_kcycles, now.tensor_kcycles, last.elapsed_kcycles, now.elapsed_kcycles):
        return None
    active = (now.tensor_kcycles or 0) - (last.tensor_kcycles or 0)
    elapsed = (now.elapsed_kcycles or 0) - (last.elapsed_kcycles or 0)
    return min(1_000_000, active * 1_000_000 // elapsed) if elapsed > 0 and active >= 0 else None
