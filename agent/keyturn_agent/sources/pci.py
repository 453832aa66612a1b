"""GPU-class functions on the PCI bus, from sysfs: what is plugged in, whatever a driver shows.

A chip that its driver doesn't list, or that is bound to another driver (``vfio-pci`` hands it to a virtual
machine), still is in the host.
"""

from pathlib import Path
from typing import Final

from keyturn_protocol.entry_inventory import PciDevice

SYSFS: Final = Path("/sys")
NVIDIA: Final = 0x10DE
DISPLAY: Final = 0x03
ACCELERATOR: Final = 0x12
"""PCI base classes: display controllers (VGA, 3D, other) and processing accelerators."""


def scan(sysfs: Path = SYSFS) -> list[PciDevice] | None:
    """All GPU-class functions in the order of their addresses, or None where the bus can't be read.

    A server's own VGA controller is among them; readers tell it by its vendor.
    """
    try:
        folders = sorted((sysfs / "bus" / "pci" / "devices").iterdir())
    except OSError:
        return None
    devices = []
    for folder in folders:
        try:
            if _number(folder / "class") >> 16 not in (DISPLAY, ACCELERATOR):
                continue
            vendor, device = _number(folder / "vendor"), _number(folder / "device")
        except (OSError, ValueError):
            # Went off the bus between the listing and here.
            continue
        devices.append(PciDevice(bus_id=folder.name, vendor=vendor, device=device, driver=_driver(folder)))
    return devices


def _number(path: Path) -> int:
    return int(path.read_text().strip(), 16)


def _driver(folder: Path) -> str | None:
    try:
        return (folder / "driver").readlink().name
    except OSError:
        return None
