"""From samples to the bodies of entries, over one inventory after another. Pure.

Columns of entries are chips of the last inventory: where that changes, what is open ends first, under the old
numbers, and what goes on is renumbered. A chip that stays is measured across the change without a break.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from keyturn_agent.attribution import Workloads
from keyturn_agent.losses import Losses
from keyturn_agent.ports import Declared, Sample
from keyturn_agent.sampler import Lost, Sampler
from keyturn_protocol.entries import Body
from keyturn_protocol.entry_inventory import Chip, InventoryBody
from keyturn_protocol.entry_log import GapBody, RetiredBody
from keyturn_protocol.entry_workloads import WorkloadStartedBody
from keyturn_protocol.values import Slug

DESTROYED: Final = "the MIG instance was destroyed"
NO_CHIPS: Final[Slug] = "no_chips"
"""Nothing is wrong with the source, and it shows no chip."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What one sample brought. ``workloads_changed``: one came or went."""

    bodies: list[Body]
    workloads_changed: bool


class Meter:
    """What is being measured.

    :param anchor_us: UTC minus CLOCK_BOOTTIME.
    """

    def __init__(
        self,
        inventory: InventoryBody,
        declared: Callable[[str], Declared | None],
        interval_us: int,
        anchor_us: int,
    ) -> None:
        self.inventory = inventory
        self.anchor_us = anchor_us
        chips = len(inventory.chips)
        self._sampler = Sampler(chips, interval_us, anchor_us)
        # A host that shows no chip is lost as a whole.
        self._losses = Losses(max(1, chips))
        self._workloads = Workloads(declared)
        self._blind: Slug = NO_CHIPS

    def set_interval(self, interval_us: int) -> None:
        """Let usage entries be so long from here on."""
        self._sampler.set_interval(interval_us)

    def take(self, sample: Sample) -> Taken:
        """One sample, later than the one before, with the chips of the inventory."""
        last_us = self._sampler.last_mono_us
        step = self._sampler.add(sample)
        changes = self._workloads.see(sample)
        bodies: list[Body] = [*step.before]
        if last_us is not None:
            if not sample.chips:
                # In the sample that finds chips again nothing is wrong any more, and nothing is measured yet.
                self._blind = sample.error or self._blind
            spans = step.spans if sample.chips else (Lost(self._blind, False),)
            bodies += self._losses.see(last_us + self.anchor_us, sample.mono_us + self.anchor_us, spans)
        return Taken([*bodies, *changes, *step.after], bool(changes))

    def relist(self, inventory: InventoryBody, reason: str = DESTROYED) -> list[Body]:
        """The chips, or how they are measured, changed. A source leaves out only chips that are gone for good.

        :param reason: why those are gone.
        """
        before, self.inventory = self.inventory, inventory
        bodies: list[Body] = [*self._sampler.flush()]
        if (last_us := self._sampler.last_mono_us) is not None:
            bodies += self._losses.so_far(last_us + self.anchor_us)
        place = {chip.uuid: i for i, chip in enumerate(before.chips)}
        origin = [place.get(chip.uuid) for chip in inventory.chips]
        self._sampler.relist(origin)
        self._losses = self._losses.relist(origin if before.chips and origin else [0] * max(1, len(origin)))
        bodies += self._workloads.relist(origin)
        gone = place.keys() - {chip.uuid for chip in inventory.chips}
        if gone:
            bodies.append(RetiredBody(chips=sorted(gone), reason=reason))
        return [*bodies, inventory]

    def step_clock(self, step_us: int) -> list[Body]:
        """The wall clock was set: end what is open, and count UTC anew from here."""
        self.anchor_us += step_us
        self._losses.step_clock(step_us)
        return [*self._sampler.step_clock(self.anchor_us)]

    @property
    def between(self) -> bool:
        """Whether no usage interval is open."""
        return self._sampler.between

    def flush(self) -> list[Body]:
        """End the open interval at the last sample."""
        return [*self._sampler.flush()]

    def end(self, reason: str) -> list[Body]:
        """The source has ended, and with it all that it showed."""
        return [*self.flush(), *self._workloads.end(reason)]

    def missing(self, now_us: int) -> list[GapBody]:
        """The losses that go on, up to a moment on CLOCK_BOOTTIME."""
        return self._losses.so_far(now_us + self.anchor_us)

    def expect(self, workloads: Iterable[str]) -> None:
        """The workloads that were there when the agent ran last."""
        self._workloads.expect(workloads)

    def present(self) -> list[WorkloadStartedBody]:
        """The workloads that are there, as they were announced."""
        return self._workloads.present()


def gone_meanwhile(before: Sequence[Chip], now: Sequence[Chip]) -> list[str]:
    """MIG instances that were destroyed while nobody looked: their GPU is there, and they aren't. Sorted uuids."""
    shown = {chip.uuid for chip in now}
    return sorted(chip.uuid for chip in before if chip.parent in shown and chip.uuid not in shown)
