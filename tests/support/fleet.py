"""The inference fleet of the shared traces as recordings: what is measured, derived, chosen and missing.

    t_s,pod,gpu_util_percent,memory_used_bytes        every 57 s, for the pods that were seen then

measured   the duty cycle; the memory in use
derived    ``busy_ppm`` of a sample is its duty cycle, taken for the 57 s before it: the trace doesn't say for which
           time it was averaged. ``memory_mib`` is rounded down.
chosen     when it was (the trace's clock is shifted), the uuids of pods and chips (the trace numbers its pods), and
           one chip and one host for each pod (the trace names neither)
missing    energy, clocks, pipes, links and all else: null, and the inventory says why. A moment without a row is a
           chip that could not be read, from the window's begin to its end: a pod that starts late or stops early is
           a gap, and not an idle chip. An empty cell is null.

A host of several pods puts them on one chip, which the trace doesn't have: their duty cycles and memory are added up,
and the chip's time is split by duty cycle. Where one of them has no row it isn't there.
"""

import csv
import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Final

from keyturn_agent.ports import Reading
from keyturn_agent.recording import Header, RecordedSample, Workload, format_recording
from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.entry_usage import FIELDS, Share

TRACE: Final = Path("inference_fleet") / "samples.csv.gz"
PERIOD_S: Final = 57
END_S: Final = 82_080
"""The last moment of the trace: 22.8 h after its first."""
START: Final = "2026-02-02T00:00:00Z"
"""Where the trace's shifted clock is put."""
NO_ROW: Final = "no_row_in_the_trace"
_MEASURED: Final = {"busy_us": "duty_cycle", "memory_mib_max": "memory_used"}
_WHOLE: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Row:
    """What the trace says of one pod at one moment. ``memory``: bytes, None for an empty cell."""

    busy_ppm: int
    memory: int | None


Pods = dict[int, dict[int, Row]]
"""Pod → seconds → row."""


@cache
def read_trace(path: Path) -> Pods:
    """The whole trace; refuses what would have to be rounded."""
    pods: Pods = {}
    with gzip.open(path, "rt", newline="") as file:
        for line in csv.DictReader(file):
            ppm = Decimal(line["gpu_util_percent"]) * 10_000
            second, memory = int(line["t_s"]), line["memory_used_bytes"]
            if ppm != int(ppm) or second % PERIOD_S:
                raise ValueError(f"not on the grid of the trace: {line}")
            pods.setdefault(int(line["pod"]), {})[second] = Row(int(ppm), int(memory) if memory else None)
    return pods


def workload_of(pod: int, *, shared: bool = False) -> str:
    """A pod's workload id; its uuid is visibly made up, and another one where it is put on a shared chip."""
    return f"k8s:00000000-0000-4000-{9000 if shared else 8000}-{pod:012x}"


def chip_of(pods: Sequence[int]) -> str:
    """The uuid of the chip that these pods are put on, as visibly made up."""
    return "GPU-trace-" + "-".join(f"{pod:03d}" for pod in pods)


@dataclass(frozen=True, slots=True)
class Host:
    """One host of one chip, on which these pods run, in a window of the trace, both ends included.

    :param pods: in order.
    """

    pods: tuple[int, ...]
    from_s: int = 0
    to_s: int = END_S

    @property
    def name(self) -> str:
        return "pods-" + "-".join(map(str, self.pods))

    def recording(self, trace: Pods) -> bytes:
        """The bytes of its recording."""
        header = Header(
            v=1,
            type="recording",
            about="derived from cluster-trace-v2026-GenAI, 57 s between samples; tests/support/fleet.py says how",
            chips=[_chip(chip_of(self.pods))],
            driver_version=None,
            nvml_version=None,
            cuda_version=None,
            workloads=[
                Workload(id=share.id, class_=share.class_, declared_dtype=None, chips=[0])
                for share in _shares(dict.fromkeys(self.pods, Row(0, None)), shared=len(self.pods) > 1)
            ],
        )
        return format_recording(header, self._samples(trace))

    def _samples(self, trace: Pods) -> Iterator[RecordedSample]:
        for second in range(self.from_s, self.to_s + 1, PERIOD_S):
            rows = {pod: row for pod in self.pods if (row := trace[pod].get(second)) is not None}
            yield RecordedSample(
                t_us=(second - self.from_s) * 1_000_000,
                chips=[_reading(list(rows.values())) if rows else None],
                error=None if rows else NO_ROW,
                shares=_shares(rows, shared=len(self.pods) > 1),
            )


def _chip(uuid: str) -> Chip:
    return Chip(
        uuid=uuid,
        name="not named in the trace",
        role="gpu",
        parent=None,
        sms=None,
        memory_mib=None,
        clock_max_mhz=None,
        power_limit_mw=None,
        pci_bus_id=None,
        nvlink_links=None,
        fabric=None,
        measured_by=_MEASURED,
        not_measured={field: "not in the trace" for field in FIELDS if field not in _MEASURED},
    )


def _reading(rows: Sequence[Row]) -> Reading:
    fields: dict[str, int | None] = dict.fromkeys(Reading.__struct_fields__)
    fields["busy_ppm"] = min(_WHOLE, sum(row.busy_ppm for row in rows))
    memory = [row.memory for row in rows if row.memory is not None]
    fields["memory_mib"] = sum(memory) // 2**20 if len(memory) == len(rows) else None
    return Reading(**fields)


def _shares(rows: dict[int, Row], *, shared: bool) -> list[Share]:
    """By duty cycle, evenly where all are idle; rounded down, so that a rest stays unattributed."""
    total = sum(row.busy_ppm for row in rows.values())
    return [
        Share(
            chip=0,
            id=workload_of(pod, shared=shared),
            class_="shared" if shared else "exclusive",
            share_ppm=row.busy_ppm * _WHOLE // total if total else _WHOLE // len(rows),
        )
        for pod, row in sorted(rows.items())
    ]
