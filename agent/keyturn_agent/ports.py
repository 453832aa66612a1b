"""The agent's view of the outside: one Protocol for each thing that isn't computation.

Tests implement these; nothing is patched.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from keyturn_protocol.canonical import Ppm, Record, UInt
from keyturn_protocol.entry_inventory import InventoryBody
from keyturn_protocol.entry_log import Source
from keyturn_protocol.entry_usage import Share
from keyturn_protocol.values import Slug


class Reading(Record, frozen=True, kw_only=True):
    """One chip at one moment, as its driver tells it; None is *the source doesn't have it*.

    ``energy_mj``, the ``_kib`` and the ``_kcycles`` (10^3 SM cycles, mean per SM) are counters that only grow.
    A ``_ppm`` is the average over the time since the sample before. The rest are values of the moment.
    """

    energy_mj: UInt | None
    power_mw: UInt | None
    busy_ppm: Ppm | None
    sm_clock_mhz: UInt | None
    memory_mib: UInt | None
    throttled_ppm: Ppm | None
    sm_active_ppm: Ppm | None
    tensor_ppm: Ppm | None
    hmma_ppm: Ppm | None
    imma_ppm: Ppm | None
    dmma_ppm: Ppm | None
    fp64_ppm: Ppm | None
    fp32_ppm: Ppm | None
    fp16_ppm: Ppm | None
    dram_ppm: Ppm | None
    nvlink_tx_kib: UInt | None
    nvlink_rx_kib: UInt | None
    pcie_tx_kib: UInt | None
    pcie_rx_kib: UInt | None
    elapsed_kcycles: UInt | None
    active_kcycles: UInt | None
    tensor_kcycles: UInt | None
    hmma_kcycles: UInt | None
    imma_kcycles: UInt | None
    dmma_kcycles: UInt | None
    fp64_kcycles: UInt | None
    fp32_kcycles: UInt | None
    fp16_kcycles: UInt | None


COUNTERS = tuple(
    name for name in Reading.__struct_fields__ if name == "energy_mj" or name.endswith(("_kib", "_kcycles"))
)
"""The fields of a reading that only grow."""


@dataclass(frozen=True, slots=True)
class Sample:
    """All chips at one moment, in the order of the inventory.

    ``mono_us`` is on CLOCK_BOOTTIME. A chip that could not be read is None, and ``error`` says why. ``shares``:
    who had the chips since the sample before; the shares of a chip sum to at most 10^6 ppm. ``unattributed``: why
    processes that were seen are nobody's, and how many.
    """

    mono_us: int
    chips: tuple[Reading | None, ...]
    error: Slug | None
    shares: tuple[Share, ...]
    unattributed: Mapping[Slug, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Declared:
    """What the operator says about a workload; no counter checks the data type."""

    declared_dtype: Slug | None
    chips: tuple[int, ...]


class GpuSource(Protocol):
    """Where readings come from. A class per kind of device; the kind is signed into the log's first entry."""

    @property
    def kind(self) -> Source: ...

    def inventory(self) -> InventoryBody:
        """The chips, in the order that every sample keeps."""
        ...

    @property
    def blind(self) -> tuple[Slug, str] | None:
        """Why whole kinds of processes can't be told by their owners on this host: a cause, and in words."""
        ...

    def declared(self, workload: str) -> Declared | None:
        """What is declared about a workload, if anything."""
        ...

    def due_us(self, now_us: int) -> int | None:
        """The moment (CLOCK_BOOTTIME) of the next sample, or None when the source has ended."""
        ...

    def read(self, now_us: int) -> Sample:
        """The sample that is due. A failure to read is a sample with None and a cause, not an exception."""
        ...

    @property
    def inventory_changed(self) -> bool:
        """Whether :meth:`inventory` would say something else than the last time. Until it is called, samples keep
        the old order.
        """
        ...

    def close(self) -> None:
        """Let go of the driver; samples are empty, with the cause ``paused``, until :meth:`reopen`.

        :raises RefusedError: ``nvml_hung``: a call hasn't come back, so the driver is still held.
        """
        ...

    def reopen(self) -> None:
        """Go on after :meth:`close`."""
        ...

    def forget(self, uuids: Collection[str]) -> None:
        """Leave these chips out of the inventory, and with a GPU its instances, until they can be read again.

        :raises RefusedError: ``not_live``: the chips of a recording are what they are.
        """
        ...

    def stop(self) -> None:
        """The end: let go of everything; doesn't fail and doesn't wait for a call that hangs."""
        ...


@dataclass(frozen=True, slots=True)
class Moment:
    """One instant on both clocks: CLOCK_BOOTTIME and UTC, in µs."""

    mono_us: int
    time_us: int


class Stop(Protocol):
    """Whether the process was asked to end."""

    @property
    def requested(self) -> bool: ...

    def wait(self, seconds: float) -> None:
        """Return after ``seconds``, or at once when an end is asked for."""
        ...


class Clock(Protocol):
    """Time as the log uses it."""

    @property
    def boot_id(self) -> str:
        """Of the running kernel; CLOCK_BOOTTIME starts anew with it."""
        ...

    def now(self) -> Moment: ...

    def wait_until(self, mono_us: int, stop: Stop) -> None:
        """Return at ``mono_us``, or earlier when ``stop`` is requested."""
        ...


class Signer(Protocol):
    """One Ed25519 key for one purpose; it never leaves its owner."""

    @property
    def public_key(self) -> bytes:
        """32 bytes."""
        ...

    def sign(self, message: bytes) -> bytes:
        """A deterministic Ed25519 signature (RFC 8032): the same message gives the same 64 bytes."""
        ...


class Random(Protocol):
    """What must differ from run to run, and nothing that must be secret."""

    def uuid4(self) -> str: ...

    def fraction_ppm(self) -> int:
        """0 … 999,999, evenly; for jitter."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer, its body within the cap that was asked for. ``retry_after_s`` as the server said it."""

    status: int
    content_type: str
    retry_after_s: int | None
    body: bytes


class Verifier(Protocol):
    """The verifier's HTTP interface, as far as the agent uses it.

    Every method raises :class:`~keyturn_agent.errors.UnreachableError` when no complete answer came.
    """

    def join(self, request: bytes) -> Answer: ...

    def state(self, statement: bytes) -> Answer:
        """Show a statement that somebody signed, in its envelope."""
        ...

    def send_segment(self, frame: bytes, receipt: bytes | None = None) -> Answer:
        """Send a segment. ``receipt``: the one that we hold for it, from a verifier that has forgotten it."""
        ...

    def head(self, origin: str) -> Answer:
        """The newest checkpoint that the verifier has of a node's log, with its receipt."""
        ...

    def log_checkpoint(self) -> Answer: ...

    def authority(self) -> Answer:
        """Every root and policy, as a permit bundle without a run."""
        ...


class SwitchVerifier(Protocol):
    """The rest of that interface, which the start switch uses. Exceptions as above; ``permit`` may wait for news."""

    def permit(self, run: str | None, after: int | None, wait_s: int) -> Answer:
        """What is said about a run, or of roots and policies alone, once there is anything after leaf ``after``."""
        ...

    def lease(self, origin: str, seq: int) -> Answer:
        """The lease that the ``permit`` entry ``seq`` of a log asked for."""
        ...


@dataclass(frozen=True, slots=True)
class Stamp:
    """The clock fields of an entry."""

    boot_id: str
    boots: int
    mono_us: int
    time_us: int


__all__: Sequence[str] = (
    "COUNTERS",
    "Answer",
    "Clock",
    "Declared",
    "GpuSource",
    "Moment",
    "Random",
    "Reading",
    "Sample",
    "Signer",
    "Stamp",
    "Stop",
    "SwitchVerifier",
    "Verifier",
)
