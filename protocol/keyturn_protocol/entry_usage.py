"""What chips did in one interval, as columns: the body of most entries of a log."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Annotated, Final, Literal

import msgspec

from keyturn_protocol.canonical import Ppm, Record, UInt
from keyturn_protocol.errors import bad_entry
from keyturn_protocol.ids import workload_id
from keyturn_protocol.limits import CHIPS_PER_HOST, USAGE_SPAN_US
from keyturn_protocol.values import Micros

ShareClass = Literal["exclusive", "mig", "shared"]
Column = Annotated[list[UInt | None], msgspec.Meta(max_length=CHIPS_PER_HOST)]
"""One value a chip, in the order of the last inventory; ``null`` is *not measured*."""
SUM_FIELDS: Final = (
    "energy_mj",
    "busy_us",
    "elapsed_mcycles",
    "active_mcycles",
    "tensor_mcycles",
    "hmma_mcycles",
    "imma_mcycles",
    "dmma_mcycles",
    "fp64_mcycles",
    "fp32_mcycles",
    "fp16_mcycles",
    "dram_busy_us",
    "nvlink_tx_kib",
    "nvlink_rx_kib",
    "pcie_tx_kib",
    "pcie_rx_kib",
    "throttled_us",
)
"""Fields that add up over time, in the order of the bits of a usage row's basis."""
MAX_FIELDS: Final = ("memory_mib_max", "clock_mhz_max")
"""Fields that fold by maximum; their bits follow those of :data:`SUM_FIELDS`."""
FIELDS: Final = SUM_FIELDS + MAX_FIELDS


class Share(Record, frozen=True, kw_only=True):
    """The part of one chip's interval that one workload had, in parts per million."""

    chip: UInt
    id: str
    class_: ShareClass = msgspec.field(name="class")
    share_ppm: Ppm


class UsageBody(Record, frozen=True, kw_only=True):
    """Raw integrals of every chip over one interval, as columns.

    The interval starts at ``from_us`` (UTC) and ``mono_from_us`` (CLOCK_BOOTTIME), is ``to_us - from_us`` long
    on CLOCK_BOOTTIME, and lies in one UTC hour. ``samples`` 0 means that a chip wasn't read at all: its other
    columns are null then. Units are in the names; a ``_mcycles`` is 10^6 SM cycles, mean per SM.
    """

    from_us: Micros
    to_us: Micros
    mono_from_us: Micros
    samples: Annotated[list[UInt], msgspec.Meta(max_length=CHIPS_PER_HOST)]
    workloads: list[Share]
    energy_mj: Column
    busy_us: Column
    elapsed_mcycles: Column
    active_mcycles: Column
    tensor_mcycles: Column
    hmma_mcycles: Column
    imma_mcycles: Column
    dmma_mcycles: Column
    fp64_mcycles: Column
    fp32_mcycles: Column
    fp16_mcycles: Column
    dram_busy_us: Column
    nvlink_tx_kib: Column
    nvlink_rx_kib: Column
    pcie_tx_kib: Column
    pcie_rx_kib: Column
    throttled_us: Column
    memory_mib_max: Column
    clock_mhz_max: Column


columns_of: Final[Callable[[UsageBody], tuple[list[int | None], ...]]] = attrgetter(*FIELDS)
"""The columns of a usage body in the order of :data:`FIELDS`."""


def check_usage(body: UsageBody, mono_us: int, like: UsageBody | None) -> None:
    span = body.to_us - body.from_us
    if not 0 < span <= USAGE_SPAN_US or body.from_us // USAGE_SPAN_US != (body.to_us - 1) // USAGE_SPAN_US:
        raise bad_entry("usage interval is not inside one UTC hour", got=f"{body.from_us} … {body.to_us}")
    if body.mono_from_us + span > mono_us:
        raise bad_entry("usage interval ends after its entry", expected=f"<= {mono_us}", got=body.mono_from_us + span)
    chips = len(body.samples)
    columns = columns_of(body)
    if {*map(len, columns)} != {chips}:
        field, column = next((f, c) for f, c in zip(FIELDS, columns, strict=True) if len(c) != chips)
        raise bad_entry(f"{field}: one value a chip", expected=chips, got=len(column))
    if 0 in body.samples:
        for chip, samples in enumerate(body.samples):
            if samples == 0 and any(column[chip] is not None for column in columns):
                raise bad_entry("a chip without samples has no values", got=f"chip {chip}")
    elif like is not None and len(like.samples) == chips and like.workloads == body.workloads:
        return
    check_shares(body.workloads, body.samples)


def check_shares(shares: Sequence[Share], samples: Sequence[int]) -> None:
    """The rules of a usage entry's shares.

    :param samples: of each chip.
    :raises ProtocolError: ``bad_entry`` or ``bad_identifier``.
    """
    last, total = (-1, ""), 0
    for share in shares:
        workload_id(share.id)
        here = (share.chip, share.id)
        if here <= last:
            raise bad_entry("shares are sorted by chip and workload, each once", got=f"{share.chip} {share.id}")
        total = total + share.share_ppm if share.chip == last[0] else share.share_ppm
        if total > 1_000_000:
            raise bad_entry("shares of one chip exceed the whole", expected="<= 1000000 ppm", got=total)
        if share.chip >= len(samples):
            raise bad_entry("share of a chip that isn't there", expected=f"< {len(samples)}", got=share.chip)
        if samples[share.chip] == 0:
            raise bad_entry("share of a chip without samples", got=f"chip {share.chip}")
        last = here
