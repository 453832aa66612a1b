"""Builds the stub, writes its scripts and moves its time; README.md has the format of a script."""

import _ctypes
import contextlib
import ctypes
import mmap
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from keyturn_agent.ports import Moment, Reading, Stop
from keyturn_agent.recording import Recording
from keyturn_agent.sources import nvml
from keyturn_agent.sources.nvml_gpm import COUNTERS, RATIOS

HERE: Final = Path(__file__).parent
SONAME: Final = "libnvidia-ml.so.1"
FOREVER: Final = 2**62
START_US: Final = 10_000_000
"""Where a script's story begins: NVML is opened before, and takes its first GPM samples then."""
_BASE_KCYCLES: Final = 10**9
_FIELDS: Final = ("now_us", "release", "sessions", "buffers", "hanging", "openings", "reload", "calls")


def build(compiler: str, folder: Path, *flags: str) -> Path:
    """The stub as a library in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / SONAME
    options = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-fPIC", "-fvisibility=hidden"]
    subprocess.run(
        [
            compiler,
            *options,
            *flags,
            "-shared",
            f"-Wl,-soname,{SONAME}",
            "-o",
            library,
            HERE / "nvml.c",
            HERE / "script.c",
        ],
        check=True,
    )
    return library


class Control:
    """The file through which the stub is told the time, and tells what is open."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(4096))
        self.path = path
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 4096)

    def close(self) -> None:
        self._map.close()

    def get(self, name: str) -> int:
        value: int = struct.unpack_from("<Q", self._map, 8 * _FIELDS.index(name))[0]
        return value

    def set(self, name: str, value: int) -> None:
        struct.pack_into("<Q", self._map, 8 * _FIELDS.index(name), value)

    def mode(self, place: int) -> int | None:
        """The compute mode that somebody set on a unit, by its place in the script; None: as it booted."""
        value: int = struct.unpack_from("<Q", self._map, 8 * (len(_FIELDS) + place))[0]
        return value - 1 if value else None

    def set_mode(self, place: int, mode: int | None) -> None:
        """Set it as root would; None is what a reboot does."""
        struct.pack_into("<Q", self._map, 8 * (len(_FIELDS) + place), 0 if mode is None else mode + 1)


class StubClock:
    """A :class:`~keyturn_agent.ports.Clock` that is the stub's time: it moves by waiting."""

    boot_id = "00000000-0000-4000-8000-000000000000"

    def __init__(self, control: Control) -> None:
        self.control = control

    def now(self) -> Moment:
        now_us = self.control.get("now_us")
        return Moment(now_us, now_us)

    def wait_until(self, mono_us: int, stop: Stop) -> None:
        self.control.set("now_us", max(mono_us, self.control.get("now_us")))


class Script:
    """Statements for the stub."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.host("driver", "580.126.20").host("nvml", "13.580.126.20").host("cuda", 13000)

    def add(self, *words: object) -> "Script":
        self.lines.append(" ".join(map(str, words)))
        return self

    def host(self, key: str, value: object) -> "Script":
        return self.add("host", key, value)

    def unit(self, unit: str, **properties: object) -> "Script":
        for key, value in properties.items():
            self.add("unit", unit, key, value)
        return self

    def gpu(self, index: int = 0, /, **properties: object) -> "Script":
        """A GPU like an H100 PCIe, with these properties beside."""
        usual: dict[str, object] = {
            "uuid": f"GPU-{index:08d}-0000-4000-8000-000000000000",
            "name": "NVIDIA H100 PCIe",
            "bus": f"0:{0x3B + index:x}:0",
            "memory_mib_total": 81559,
            "clock_max_mhz": 1755,
            "power_limit_mw": 350000,
            "cores": 14592,
            "cc_major": 9,
            "cc_minor": 0,
            "gpm": 1,
        }
        return self.unit(str(index), **{k: v for k, v in (usual | properties).items() if v is not None})

    def at(self, t_us: int, unit: str, **values: object) -> "Script":
        """Values from this time on; for a mean, over the time before it."""
        for name, value in values.items():
            self.add("at", t_us, unit, name, value)
        return self

    def fail(
        self, call: str, code: int, *, unit: str = "*", from_us: int = 0, to_us: int = FOREVER, after: int = 0
    ) -> "Script":
        return self.add("fail", call, unit, code, from_us, to_us, after)

    def hang(self, call: str, *, unit: str = "*", from_us: int = 0) -> "Script":
        return self.add("hang", call, unit, from_us)

    def steady(self, unit: str = "0", seconds: int = 60) -> "Script":
        """A GPU at work: 1500 MHz, tensor pipe at 40 %, 300 W, from the beginning on."""
        self.at(0, unit, memory_mib=1024, clock_mhz=1500, reasons=0, busy_percent=100)
        for second in range(seconds + 1):
            t_us = second * 1_000_000
            self.at(t_us, unit, power_mw=300_000, energy_mj=5_000_000 + 300_000 * second)
            self.at(t_us, unit, g2=80, g5=40, g7=40, g8=0, g6=0, g9=0, g10=25, g11=1, g12=5, g13=2)
            self.at(t_us, unit, g20=100, g21=200, g60=300, g61=400)
        return self

    def cycles(self, unit: str = "0", seconds: int = 60, sms: int = 1) -> "Script":
        """GPM counters that go with :meth:`steady`, ten points a second; summed over ``sms``."""
        for tenth in range(10 * seconds + 1):
            elapsed = sms * (10**12 + 150_000_000 * tenth)
            counters = {248: elapsed, 249: elapsed * 8 // 10, 250: elapsed * 4 // 10, 252: elapsed * 4 // 10}
            rest = dict.fromkeys((251, 253, 254, 258, 259, 260), 0)
            for metric, value in (counters | rest).items():
                self.add("at", tenth * 100_000, unit, f"g{metric}", value)
        return self

    def write(self, path: Path) -> None:
        path.write_text("\n".join(self.lines) + "\n")


def script_of(recording: Recording) -> Script:
    """The story of a recording, begun at :data:`START_US`, as a driver would have told it.

    What a chip's recording never has a value for is NOT_SUPPORTED. A chip that couldn't be read is GPU_IS_LOST.
    """
    script = Script()
    for index, chip in enumerate(recording.header.chips):
        unit = str(index)
        script.gpu(
            index,
            uuid=chip.uuid,
            name=chip.name,
            memory_mib_total=chip.memory_mib,
            clock_max_mhz=chip.clock_max_mhz,
            power_limit_mw=chip.power_limit_mw,
            cores=None if chip.sms is None else chip.sms * 128,
        )
        lost_us: int | None = None
        for sample in recording.samples:
            t_us = START_US + sample.t_us
            reading = sample.chips[index]
            if reading is None:
                lost_us = t_us if lost_us is None else lost_us
                continue
            if lost_us is not None:
                script.fail("*", 15, unit=unit, from_us=lost_us, to_us=t_us)
                lost_us = None
            if sample.t_us == 0:
                # A value that the first sample lacks is not for that unsupported.
                _tell(script, 0, unit, next(s.chips[index] for s in recording.samples[1:] if s.chips[index]) or reading)
                _tell(script, 0, unit, reading)
                _count_up(script, unit, reading)
            _tell(script, t_us, unit, reading)
    return script


def _tell(script: Script, t_us: int, unit: str, reading: Reading) -> None:
    moment = {
        "power_mw": reading.power_mw,
        "energy_mj": reading.energy_mj,
        "clock_mhz": reading.sm_clock_mhz,
        "memory_mib": reading.memory_mib,
        "busy_percent": None if reading.busy_ppm is None else reading.busy_ppm // 10_000,
        "reasons": None if reading.throttled_ppm is None else 4 if reading.throttled_ppm else 1,
    }
    for name, value in moment.items():
        if value is not None:
            script.add("at", t_us, unit, name, value)
    for name, metrics in RATIOS.items():
        if (ppm := getattr(reading, name)) is not None:
            script.add("at", t_us, unit, f"g{metrics[0]}", ppm / 10_000)
    for name, metrics in COUNTERS.items():
        if t_us and (kcycles := getattr(reading, name)) is not None:
            script.add("at", t_us, unit, f"g{metrics[0]}", (_BASE_KCYCLES + kcycles) * 1000)


def _count_up(script: Script, unit: str, first: Reading) -> None:
    """Counters before the recording begins: at its first clock, from there backwards."""
    for name, metrics in COUNTERS.items():
        kcycles = getattr(first, name)
        if kcycles is None or first.sm_clock_mhz is None:
            continue
        for t_us in range(0, START_US, 10_000):
            cycles = (_BASE_KCYCLES + kcycles) * 1000 - (START_US - t_us) * first.sm_clock_mhz
            script.add("at", t_us, unit, f"g{metrics[0]}", cycles)


class Stub:
    """The stub in this process, in place of the driver's library."""

    def __init__(self, library: Path, folder: Path) -> None:
        self.library = library
        self.script_path = folder / "script.txt"
        self.control = Control(folder / "control")
        self.clock = StubClock(self.control)

    def play(self, script: Script) -> None:
        """Takes effect when NVML is opened the next time."""
        script.write(self.script_path)

    @contextlib.contextmanager
    def installed(self) -> Iterator["Stub"]:
        """The loader finds the stub under the driver's name: a process has one library of a SONAME, the first."""
        nvml.unload_library()
        names = {"KEYTURN_NVML_STUB": self.script_path, "KEYTURN_NVML_CONTROL": self.control.path}
        os.environ.update({name: str(path) for name, path in names.items()})
        library = ctypes.CDLL(str(self.library))
        try:
            yield self
        finally:
            nvml.unload_library()
            _ctypes.dlclose(library._handle)
            for name in names:
                del os.environ[name]
