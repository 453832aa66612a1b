"""The chip table: what is known about each chip, with the source of every figure.

    [[chip]]
    sku = "h100-pcie"
    die = "gh100"
    nvml_names = ["NVIDIA H100 PCIe"]
    sms = { value = 114, source = "h100-whitepaper: H100 specifications, PCIe" }
    memory_gb_per_s = { low = 2_000, high = 2_039, source = "h100-datasheet: 2 TB/s; …" }

``chips.toml`` is data: integers with the unit in the name, a source for each, a range where sources disagree.
A chip that isn't in it is unknown and stays unknown: it is never taken for a similar one.
"""

import hashlib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Annotated, Final, Literal

import msgspec

from keyturn_protocol.canonical import Positive, Record
from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.errors import Code, ProtocolError

Pipe = Literal["hmma", "dmma", "imma"]
PIPE_OF: Final[Mapping[str, Pipe]] = MappingProxyType(
    {"tf32": "hmma", "bf16": "hmma", "fp16": "hmma", "fp8": "hmma", "fp64_tensor": "dmma", "int8": "imma"}
)
"""The tensor data types and the pipe counter that each shows in."""
VECTOR_DTYPES: Final = ("fp64", "fp32", "fp16")
"""The vector pipes that have a counter."""
SAME_MEMORY: Final = 8
"""A chip's memory may differ from the table's by one part in this many: ECC and drivers take some of it."""

_PPM: Final = 1_000_000
_Name = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9][a-z0-9_-]{0,63}\Z")]
_Line = Annotated[str, msgspec.Meta(min_length=1, max_length=300)]


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its source. ``low`` and ``high`` differ where sources disagree."""

    low: int
    high: int
    source: str

    @property
    def middle(self) -> int:
        return (self.low + self.high) // 2


Figures = Mapping[str, Figure]
"""Data type → figure."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Which part of the tensor-active cycles ran at full rate, in ppm: the floor, and what is most likely.

    Empirical: it comes from recordings on ``measured_on`` and is used for every product of the same die.
    """

    floor_ppm: int
    best_ppm: int
    measured_on: str | None
    source: str


_FOUND: Final = 4_096
UNCALIBRATED: Final = Calibration(0, _PPM, None, "no recordings of this die")
"""Without recordings nothing is known about the low end (0), and ``best`` takes every active cycle as full."""


@dataclass(frozen=True, slots=True)
class ChipSpec:
    """One product in one form factor. Rates are per SM and clock, bandwidths in GB/s, peaks in GFLOPS."""

    sku: str
    vendor: str
    arch: str
    die: str
    form_factor: str
    nvml_names: tuple[str, ...]
    """As NVML prints them, compared without regard to case."""
    sms: Figure
    k_tensor: Figures
    """Dense FLOP (``int8``: operations) per SM and clock at full rate."""
    k_vector: Figures
    vector_issue: Figure
    """The most FLOP per SM and clock of all vector pipes together: issue slots x FLOP of the densest instruction."""
    clock_nominal_mhz: Figure
    """On which the published tensor peaks rest, ``fp64_tensor`` excepted."""
    clock_max_mhz: Figure
    """The highest SM clock; the peaks of ``fp64_tensor`` and of the vector pipes rest on it."""
    peak_tensor_gflops: Figures
    peak_vector_gflops: Figures
    memory_mib: Figure
    memory_gb_per_s: Figure
    tdp_w: Figure
    nvlink_gb_per_s: Figure
    flop_per_joule: Figure
    """More than this die is assumed to do with one joule, in its fastest data type. Not a law of nature."""
    calibration: Calibration
    derived: dict[object, object] = field(default_factory=dict, compare=False, repr=False)
    """What :mod:`keyturn_protocol.flop` made of this row before; a few entries, one for each data type."""


@dataclass(frozen=True, slots=True)
class ChipTable:
    """A version of the table. Reports cite ``version``; ``sha256`` is that of the file's bytes, in hex."""

    version: str
    sha256: str
    chips: tuple[ChipSpec, ...]
    utilisation_ppm: Figure
    """The part of busy time taken as work where no tensor counter is read. Only ever used for ``best``."""
    _found: dict[tuple[str, str, int | None], ChipSpec | None] = field(default_factory=dict, compare=False, repr=False)

    def lookup(self, chip: Chip) -> ChipSpec | None:
        """The product that ``chip`` is, or None if that isn't certain.

        The name must be one of the table's, without regard to case; a MIG instance goes by its GPU's name, which
        ends before `` MIG ``. A whole GPU must also have about the memory of the product: one name has been sold
        with different memory, and a different product must not pass as a known one.
        """
        key = (chip.name, chip.role, chip.memory_mib)
        try:
            return self._found[key]
        except KeyError:
            if len(self._found) >= _FOUND:  # names come from hosts
                self._found.clear()
            self._found[key] = found = self._lookup(chip)
            return found

    def _lookup(self, chip: Chip) -> ChipSpec | None:
        name = chip.name.casefold()
        if chip.role == "mig_instance":
            name = name.partition(" mig ")[0]
        known = [c for c in self.chips if any(name == n.casefold() for n in c.nvml_names)]
        if chip.role != "mig_instance" and chip.memory_mib is not None:
            known = [c for c in known if _near(chip.memory_mib, c.memory_mib)]
        return known[0] if len(known) == 1 else None


def _near(memory_mib: int, known: Figure) -> bool:
    slack = known.high // SAME_MEMORY
    return known.low - slack <= memory_mib <= known.high + slack


@cache
def chip_table() -> ChipTable:
    """The table that this version of Keyturn comes with."""
    return parse_chip_table(_packaged())


def table_sha256() -> str:
    """SHA-256 of the packaged ``chips.toml``, in hex."""
    return chip_table().sha256


def lookup(chip: Chip) -> ChipSpec | None:
    """:meth:`ChipTable.lookup` in the packaged table."""
    return chip_table().lookup(chip)


def _packaged() -> bytes:
    return files("keyturn_protocol").joinpath("chips.toml").read_bytes()


class _Figure(Record, frozen=True, kw_only=True):
    source: _Line
    value: Positive | None = None
    low: Positive | None = None
    high: Positive | None = None


class _Calibration(Record, frozen=True, kw_only=True):
    seen_low_ppm: Positive
    seen_high_ppm: Positive
    floor_ppm: Positive
    best_ppm: Positive
    measured_on: _Line
    source: _Line


class _Die(Record, frozen=True, kw_only=True):
    vendor: _Name
    arch: _Name
    vector_issue: _Figure
    flop_per_joule: _Figure
    k_tensor: dict[str, _Figure]
    k_vector: dict[str, _Figure]
    calibration: _Calibration | None = None


class _Product(Record, frozen=True, kw_only=True):
    sku: _Name
    die: _Name
    form_factor: _Name
    nvml_names: Annotated[list[_Line], msgspec.Meta(min_length=1)]
    sms: _Figure
    clock_nominal_mhz: _Figure
    clock_max_mhz: _Figure
    memory_mib: _Figure
    memory_gb_per_s: _Figure
    tdp_w: _Figure
    nvlink_gb_per_s: _Figure
    peak_tensor_gflops: dict[str, _Figure]
    peak_vector_gflops: dict[str, _Figure]


class _Document(Record, frozen=True, kw_only=True):
    version: _Name
    sources: dict[_Name, _Line]
    utilisation_ppm: _Figure
    die: dict[_Name, _Die]
    chip: list[_Product]


def parse_chip_table(data: bytes) -> ChipTable:
    """Parse and check a chip table.

    :raises ProtocolError: ``bad_chip_table``: not TOML, a figure without a source, an unknown field, data type or
        source, a number that isn't a positive integer, a range upside down, one SKU twice.
    """
    try:
        document = msgspec.convert(tomllib.loads(data.decode()), _Document)
    except (msgspec.ValidationError, tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _bad(str(error)) from None
    build = _Builder(document)
    chips = tuple(build.product(product) for product in document.chip)
    if len({c.sku for c in chips}) != len(chips):
        raise _bad("one SKU is listed twice", got=", ".join(c.sku for c in chips))
    utilisation = build.figure("utilisation_ppm", document.utilisation_ppm)
    if utilisation.high > _PPM:
        raise _bad("utilisation_ppm: more than all", expected=f"<= {_PPM}", got=utilisation.high)
    return ChipTable(document.version, hashlib.sha256(data).hexdigest(), chips, utilisation)


class _Builder:
    """Resolves sources and dies, naming the field in whatever is wrong."""

    def __init__(self, document: _Document) -> None:
        self._sources = document.sources
        self._dies = document.die

    def product(self, p: _Product) -> ChipSpec:
        if (die := self._dies.get(p.die)) is None:
            raise _bad(f"{p.sku}: unknown die", expected=", ".join(self._dies), got=p.die)
        spec = ChipSpec(
            sku=p.sku,
            vendor=die.vendor,
            arch=die.arch,
            die=p.die,
            form_factor=p.form_factor,
            nvml_names=tuple(p.nvml_names),
            k_tensor=self.figures(f"{p.die}.k_tensor", die.k_tensor, PIPE_OF),
            k_vector=self.figures(f"{p.die}.k_vector", die.k_vector, VECTOR_DTYPES),
            peak_tensor_gflops=self.figures(f"{p.sku}.peak_tensor_gflops", p.peak_tensor_gflops, PIPE_OF),
            peak_vector_gflops=self.figures(f"{p.sku}.peak_vector_gflops", p.peak_vector_gflops, VECTOR_DTYPES),
            calibration=self._calibration(p.die, die.calibration),
            vector_issue=self.figure(f"{p.die}.vector_issue", die.vector_issue),
            flop_per_joule=self.figure(f"{p.die}.flop_per_joule", die.flop_per_joule),
            sms=self.figure(f"{p.sku}.sms", p.sms),
            clock_nominal_mhz=self.figure(f"{p.sku}.clock_nominal_mhz", p.clock_nominal_mhz),
            clock_max_mhz=self.figure(f"{p.sku}.clock_max_mhz", p.clock_max_mhz),
            memory_mib=self.figure(f"{p.sku}.memory_mib", p.memory_mib),
            memory_gb_per_s=self.figure(f"{p.sku}.memory_gb_per_s", p.memory_gb_per_s),
            tdp_w=self.figure(f"{p.sku}.tdp_w", p.tdp_w),
            nvlink_gb_per_s=self.figure(f"{p.sku}.nvlink_gb_per_s", p.nvlink_gb_per_s),
        )
        if "hmma" not in {PIPE_OF[dtype] for dtype in spec.k_tensor}:
            raise _bad(f"{p.die}.k_tensor: the estimates rest on one", expected="tf32, bf16, fp16 or fp8")
        if missing := [dtype for dtype in VECTOR_DTYPES if dtype not in spec.k_vector]:
            raise _bad(f"{p.die}.k_vector: the estimates rest on it", expected=", ".join(missing))
        if spec.clock_nominal_mhz.low > spec.clock_max_mhz.high:
            raise _bad(f"{p.sku}: nominal clock above the maximum", got=spec.clock_nominal_mhz.low)
        return spec

    def figures(self, where: str, given: dict[str, _Figure], dtypes: Iterable[str]) -> Figures:
        if unknown := sorted(given.keys() - set(dtypes)):
            raise _bad(f"{where}: unknown data type", expected=", ".join(dtypes), got=unknown[0])
        return MappingProxyType({d: self.figure(f"{where}.{d}", f) for d, f in given.items()})

    def figure(self, where: str, given: _Figure) -> Figure:
        match given:
            case _Figure(value=int(value), low=None, high=None):
                return Figure(value, value, self.source(where, given.source))
            case _Figure(value=None, low=int(low), high=int(high)) if low <= high:
                return Figure(low, high, self.source(where, given.source))
        raise _bad(f"{where}: neither a value nor a range", expected="value, or low <= high", got=given)

    def source(self, where: str, text: str) -> str:
        key, _, detail = text.partition(":")
        if key not in self._sources or not detail.strip():
            raise _bad(f"{where}: unknown source", expected="<key of [sources]>: <where in it>", got=text)
        return f"{self._sources[key]}: {detail.strip()}"

    def _calibration(self, die: str, given: _Calibration | None) -> Calibration:
        if given is None:
            return UNCALIBRATED
        order = (given.floor_ppm, given.seen_low_ppm, given.best_ppm, given.seen_high_ppm, _PPM)
        if list(order) != sorted(order):
            raise _bad(f"{die}.calibration: out of order", expected="floor <= seen_low <= best <= seen_high", got=order)
        source = self.source(f"{die}.calibration", given.source)
        return Calibration(given.floor_ppm, given.best_ppm, given.measured_on, source)


def _bad(message: str, **details: object) -> ProtocolError:
    return ProtocolError(Code.BAD_CHIP_TABLE, message, **details)
