"""Work on chips that nobody leased: what a gate that enforces would refuse, and what outlives its lease. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from keyturn_agent.ports import Sample
from keyturn_protocol.entry_inventory import Chip

WOULD_REFUSE = "would_refuse"
SURVIVORS = "survivors"
NOBODY = "nobody who is seen"
BUSY_PPM = 50_000
"""So busy is a chip by more than being asked how it is."""
_SAMPLES = 2
"""A sample tells of the time before it, so that the first ones after a lease tell of the lease's own."""


@dataclass(slots=True)
class Strangers:
    """Who computes on which chip without a lease; each is said once, until it is seen no more."""

    _said: set[tuple[str, str]] = field(default_factory=set)
    _under: dict[str, set[str]] = field(default_factory=dict)
    """Workloads that were seen on a chip under its last lease."""
    _since: dict[str, int] = field(default_factory=dict)
    """Samples of a chip since its lease ended."""

    def see(self, chips: Sequence[Chip], leased: Collection[str], sample: Sample) -> list[tuple[str, str]]:
        """What is new in this sample: cause and detail."""
        found: list[tuple[str, str]] = []
        for chip in chips:
            if chip.uuid in leased:
                if self._since.get(chip.uuid, 1):
                    self._under[chip.uuid] = set()
                self._since[chip.uuid] = 0
            else:
                self._since[chip.uuid] = self._since.get(chip.uuid, _SAMPLES) + 1
        now = set()
        for share in sample.shares:
            uuid = chips[share.chip].uuid
            if uuid in leased:
                self._under[uuid].add(share.id)
            elif share.share_ppm and self._since[uuid] > _SAMPLES:
                now.add((uuid, share.id))
        for chip, reading in zip(chips, sample.chips, strict=True):
            # Processes that can't be seen compute all the same (another pid namespace, hidepid, MIG).
            if (
                reading is None
                or chip.role == "mig_parent"
                or chip.uuid in leased
                or self._since[chip.uuid] <= _SAMPLES
            ):
                continue
            if (reading.busy_ppm or 0) > BUSY_PPM and not any(uuid == chip.uuid for uuid, _ in now):
                now.add((chip.uuid, NOBODY))
        for uuid, workload in sorted(now - self._said):
            survives = workload in self._under.get(uuid, ())
            what = "goes on after its lease" if survives else "computes without a lease"
            found.append((SURVIVORS if survives else WOULD_REFUSE, f"{workload} {what}, on {uuid}"))
        self._said = now
        return found
