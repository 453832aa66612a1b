"""Whose a chip was: processes and their workloads in, shares out. Pure."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.entry_usage import Share, ShareClass
from keyturn_protocol.ids import WorkloadId

WHOLE_PPM = 1_000_000


class OnChip(Protocol):
    """A process with a context on a chip."""

    @property
    def pid(self) -> int: ...

    @property
    def sm_util_ppm(self) -> int | None:
        """Its part of the SMs' time since it was asked for last; None where the driver doesn't tell."""
        ...

    @property
    def present_ppm(self) -> int:
        """The part of the time since then in which it was there."""
        ...


def shares_of(
    chips: Sequence[Chip],
    processes: Sequence[Sequence[OnChip] | None],
    workloads: Mapping[int, WorkloadId | None],
) -> tuple[Share, ...]:
    """Who had which chip, in canonical order; what they leave of a chip is unattributed.

    A chip without processes, or whose processes aren't known, has no shares. A GPU that is divided has none of its
    own: its instances have theirs.
    """
    shares: list[Share] = []
    for number, (chip, found) in enumerate(zip(chips, processes, strict=True)):
        if found and chip.role != "mig_parent":
            shares += _of_chip(number, chip, found, workloads)
    return tuple(shares)


def _of_chip(
    number: int, chip: Chip, processes: Sequence[OnChip], workloads: Mapping[int, WorkloadId | None]
) -> list[Share]:
    """By the SMs' time of each process where any is known to have had some, else by time."""
    measured = sum(process.sm_util_ppm or 0 for process in processes)
    weights: dict[WorkloadId | None, int] = {}
    for process in processes:
        weight = (process.sm_util_ppm or 0) if measured else max(1, process.present_ppm)
        workload = workloads.get(process.pid)
        weights[workload] = weights.get(workload, 0) + weight
    total = sum(weights.values())
    alone = len(weights) == 1
    kind: ShareClass = "shared" if not alone else "mig" if chip.role == "mig_instance" else "exclusive"
    return [
        Share(chip=number, id=workload, class_=kind, share_ppm=weights[workload] * WHOLE_PPM // total)
        for workload in sorted(w for w in weights if w is not None)
    ]
