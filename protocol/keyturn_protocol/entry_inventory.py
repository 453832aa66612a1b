"""What a host has: its chips, their MIG instances, and the PCI bus."""

from typing import Annotated, Literal

import msgspec

from keyturn_protocol.canonical import Record, Text, UInt
from keyturn_protocol.entry_usage import FIELDS
from keyturn_protocol.errors import bad_entry
from keyturn_protocol.limits import CHIPS_PER_HOST
from keyturn_protocol.values import ChipUuid, Slug


class Chip(Record, frozen=True, kw_only=True):
    """One metered unit: a GPU, or one MIG instance of a GPU, which is then a unit beside its parent.

    ``name`` is the product name as the driver prints it; which row of the chip table it means is decided by
    whoever reads. ``sms`` and ``memory_mib`` of a MIG instance are its own. ``measured_by`` and
    ``not_measured`` say for each usage field by which method it comes, or why it doesn't.
    """

    uuid: ChipUuid
    name: Text
    role: Literal["gpu", "mig_parent", "mig_instance"]
    parent: Text | None
    sms: UInt | None
    memory_mib: UInt | None
    clock_max_mhz: UInt | None
    power_limit_mw: UInt | None
    pci_bus_id: Text | None
    nvlink_links: UInt | None
    fabric: Text | None
    measured_by: dict[Slug, Slug]
    not_measured: dict[Slug, Text]


class PciDevice(Record, frozen=True, kw_only=True):
    """A GPU-class function on the PCI bus, whether or not the driver shows it."""

    bus_id: Text
    vendor: UInt
    device: UInt
    driver: Text | None


class InventoryBody(Record, frozen=True, kw_only=True):
    """The host's chips; written at each start and change. ``pci`` is null where the bus could not be read."""

    chips: Annotated[list[Chip], msgspec.Meta(max_length=CHIPS_PER_HOST)]
    driver_version: Text | None
    nvml_version: Text | None
    cuda_version: Text | None
    gate: Literal["none", "observe", "compute_mode"]
    pci: list[PciDevice] | None


def check_inventory(body: InventoryBody) -> None:
    uuids = {chip.uuid for chip in body.chips}
    if len(uuids) != len(body.chips):
        raise bad_entry("one chip is listed twice")
    divided = {chip.uuid for chip in body.chips if chip.role == "mig_parent"}
    # A parent's own work is counted in its instances: one without any would count for nothing.
    if childless := divided - {chip.parent for chip in body.chips}:
        raise bad_entry("a MIG parent without instances is a whole GPU", got=min(childless))
    for chip in body.chips:
        if (chip.role == "mig_instance") != (chip.parent is not None):
            raise bad_entry("a MIG instance, and nothing else, has a parent", got=chip.role)
        if chip.parent is not None and chip.parent not in divided:
            raise bad_entry(
                "the parent of a MIG instance is listed beside it", expected="a mig_parent", got=chip.parent
            )
        if chip.sms == 0:
            raise bad_entry("a chip without SMs computes nothing and is none", got=chip.uuid)
        for field in (*chip.measured_by, *chip.not_measured):
            if field not in FIELDS:
                raise bad_entry("not a usage field", expected="a column of usage", got=field)
        if both := chip.measured_by.keys() & chip.not_measured.keys():
            raise bad_entry("a field is either measured or not", got=", ".join(sorted(both)))
