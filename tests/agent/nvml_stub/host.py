"""A process as the agent is on a host: the loader finds NVML by its name, in LD_LIBRARY_PATH. Run by a test.

python host.py upgrade <link> <new library>    the driver is replaced while NVML is open
python host.py hang                            ends while a call hangs
"""

import json
import sys
import time
from pathlib import Path

from keyturn_agent.clock import SystemClock
from keyturn_agent.sources.nvml_source import NvmlSource


def upgrade(link: Path, new: Path) -> None:
    """The library on disk and the kernel's driver change under a process that has the old library."""
    source = NvmlSource(SystemClock(), period_us=100_000)
    seen = [(len(source.inventory().chips), source.trouble)]
    script = link.parent / "script.txt"
    source.read(SystemClock().now().mono_us)
    link.unlink()
    link.symlink_to(new)
    script.write_text(script.read_text().replace("host kernel 1", "host kernel 2"))
    # What the package manager's restart of the driver does to whoever has it open.
    source.close()
    source.reopen()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        seen.append((len(source.inventory().chips), source.trouble))
        if source.trouble is None:
            break
        time.sleep(0.05)
    print(json.dumps(seen))
    source.stop()


def hang() -> None:
    source = NvmlSource(SystemClock(), open_deadline_s=0.05)
    print(json.dumps([[len(source.inventory().chips), source.trouble]]))


if __name__ == "__main__":
    if sys.argv[1] == "upgrade":
        upgrade(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        hang()
