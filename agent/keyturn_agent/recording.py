"""Recordings: what a source read, kept to be replayed. Canonical JSON lines, a header and then samples.

    {"about":"one H100 PCIe, 10 Hz …","chips":[{"clock_max_mhz":1755,…}],"cuda_version":"12.4",
     "driver_version":"580.126.20","nvml_version":null,"type":"recording","v":1,
     "workloads":[{"chips":[0],"class":"exclusive","declared_dtype":"bf16","id":"slurm:lab:7"}]}
    {"chips":[{"active_kcycles":null,…,"tensor_ppm":null}],"error":null,"shares":[],"t_us":0}
    {"chips":[{"active_kcycles":null,…,"tensor_ppm":241000}],"error":null,
     "shares":[{"chip":0,"class":"exclusive","id":"slurm:lab:7","share_ppm":1000000}],"t_us":100000}

``t_us`` starts at 0 and only grows, for 400 days at most. A chip that could not be read is ``null``, and ``error``
says why. ``shares``: who had the chips since the sample before. Readings are those of
:class:`~keyturn_agent.ports.Reading`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from keyturn_agent.errors import UsageError
from keyturn_agent.ports import Reading
from keyturn_protocol.canonical import Record, UInt, decode, encode
from keyturn_protocol.entry_inventory import Chip, InventoryBody, check_inventory
from keyturn_protocol.entry_usage import Share, ShareClass
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.ids import workload_id
from keyturn_protocol.limits import CHIPS_PER_HOST
from keyturn_protocol.values import Slug

LINE_BYTES: Final = 1024 * 1024
RECORDING_BYTES: Final = 1024 * 1024 * 1024
RECORDING_DAYS: Final = 400
"""How long a recording may last: a year and a little. A replay writes an entry for each hour, also where nothing was
sampled: two lines, the second with a large ``t_us``, would make millions of them.
"""
_LENGTH_US: Final = RECORDING_DAYS * 24 * 3_600 * 1_000_000


class Workload(Record, frozen=True, kw_only=True):
    """What the recording declares about one workload."""

    id: str
    class_: ShareClass = msgspec.field(name="class")
    declared_dtype: Slug | None
    chips: list[UInt]


class Header(Record, frozen=True, kw_only=True):
    """The first line: what was recorded, and on what."""

    v: Literal[1]
    type: Literal["recording"]
    about: str
    chips: Annotated[list[Chip], msgspec.Meta(min_length=1, max_length=CHIPS_PER_HOST)]
    driver_version: str | None
    nvml_version: str | None
    cuda_version: str | None
    workloads: list[Workload]

    def inventory(self, chips: list[Chip] | None = None) -> InventoryBody:
        """The inventory entry's body for a host with these chips; the PCI bus was not recorded."""
        return InventoryBody(
            chips=self.chips if chips is None else chips,
            driver_version=self.driver_version,
            nvml_version=self.nvml_version,
            cuda_version=self.cuda_version,
            gate="none",
            pci=None,
        )


class RecordedSample(Record, frozen=True, kw_only=True):
    """One line after the header."""

    t_us: UInt
    chips: list[Reading | None]
    error: Slug | None
    shares: list[Share]


@dataclass(frozen=True, slots=True)
class Recording:
    """A whole recording, checked."""

    header: Header
    samples: tuple[RecordedSample, ...]

    @property
    def length_us(self) -> int:
        return self.samples[-1].t_us


def parse_recording(data: bytes, name: str = "recording") -> Recording:
    """Parse and check a recording; ``format_recording`` of the result gives the same bytes.

    :param name: of the file, for messages.
    :raises UsageError: ``bad_recording``, naming the line, what was expected and what was there.
    """
    if not data.endswith(b"\n"):
        raise UsageError("bad_recording", f"{name}: the last line has no newline: the file is cut off or empty")
    lines = data[:-1].split(b"\n")
    header: Header = _line(name, 1, lines[0], Header)
    _check_header(name, header)
    samples: list[RecordedSample] = []
    before = -1
    for number, line in enumerate(lines[1:], start=2):
        sample: RecordedSample = _line(name, number, line, RecordedSample)
        _check_sample(name, number, sample, len(header.chips), before)
        before = sample.t_us
        samples.append(sample)
    if len(samples) < 2:
        raise UsageError("bad_recording", f"{name}: expected at least two samples, got {len(samples)}")
    return Recording(header, tuple(samples))


def read_recording(path: Path) -> Recording:
    """Parse the recording at ``path``.

    :raises UsageError: also when it can't be read.
    """
    try:
        if path.stat().st_size > RECORDING_BYTES:
            raise UsageError("bad_recording", f"{path}: expected at most {RECORDING_BYTES} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise UsageError("no_recording", f"reading the recording: {error}") from error
    return parse_recording(data, str(path))


def format_recording(header: Header, samples: Iterable[RecordedSample]) -> bytes:
    """The bytes of a recording; refuses what :func:`parse_recording` would refuse."""
    data = b"".join(encode(record) + b"\n" for record in (header, *samples))
    parse_recording(data)
    return data


def _line(name: str, number: int, line: bytes, kind: type[Any]) -> Any:
    try:
        return decode(line, kind, limit=LINE_BYTES)
    except ProtocolError as error:
        raise UsageError("bad_recording", f"{name}: line {number}: {error}") from error


def _bad(name: str, number: int, expected: object, got: object) -> UsageError:
    return UsageError("bad_recording", f"{name}: line {number}: expected {expected} (got {got})")


def _check_header(name: str, header: Header) -> None:
    seen: set[str] = set()
    if len({chip.uuid for chip in header.chips}) != len(header.chips):
        raise _bad(name, 1, "every chip once", ", ".join(chip.uuid for chip in header.chips))
    try:
        # Found here, and not by the log once a host is enrolled and metering has begun.
        check_inventory(header.inventory())
    except ProtocolError as error:
        raise UsageError("bad_recording", f"{name}: line 1: {error}") from error
    for workload in header.workloads:
        _check_workload_id(name, 1, workload.id)
        if workload.id in seen:
            raise _bad(name, 1, "every workload once", f"{workload.id} again")
        seen.add(workload.id)
        if workload.chips != sorted(set(workload.chips)) or any(c >= len(header.chips) for c in workload.chips):
            raise _bad(name, 1, f"distinct chips in order, below {len(header.chips)}", workload.chips)


def _check_sample(name: str, number: int, sample: RecordedSample, chips: int, before: int) -> None:
    if before < 0 and sample.t_us != 0:
        raise _bad(name, number, "t_us 0 in the first sample", sample.t_us)
    if sample.t_us <= before:
        raise _bad(name, number, f"t_us above {before}", sample.t_us)
    if sample.t_us > _LENGTH_US:
        raise _bad(name, number, f"t_us up to {_LENGTH_US}, {RECORDING_DAYS} days", sample.t_us)
    if len(sample.chips) != chips:
        raise _bad(name, number, f"{chips} chips, as in the header", len(sample.chips))
    if sample.error is None and None in sample.chips:
        raise _bad(name, number, "an error that says why a chip is null", "null")
    last, total = (-1, ""), 0
    for share in sample.shares:
        _check_workload_id(name, number, share.id)
        here = (share.chip, share.id)
        if share.chip >= chips:
            raise _bad(name, number, f"a share of a chip below {chips}", share.chip)
        if here <= last:
            raise _bad(name, number, "shares sorted by chip and id, each once", f"{share.chip} {share.id}")
        total = total + share.share_ppm if share.chip == last[0] else share.share_ppm
        if total > 1_000_000:
            raise _bad(name, number, f"shares of chip {share.chip} up to 1000000 ppm", total)
        last = here


def _check_workload_id(name: str, number: int, text: str) -> None:
    try:
        workload_id(text)
    except ProtocolError as error:
        raise UsageError("bad_recording", f"{name}: line {number}: {error}") from error
