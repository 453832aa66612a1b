"""Hosts with very much to say: what doesn't fit into an entry is left out, and metering goes on."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from keyturn_agent.errors import StoreError
from keyturn_protocol.entries import Body, Inventory, Usage
from keyturn_protocol.entry_inventory import Chip, InventoryBody
from keyturn_protocol.entry_log import RetiredBody
from keyturn_protocol.entry_usage import FIELDS, Share, UsageBody
from tests.agent.logs import Recorder, check_log, make_log, stamp
from tests.agent.samples import chip, header, share

MINUTE_US = 60_000_000


def divided(gpus: int, call: str) -> InventoryBody:
    """GPUs with seven instances each, of which nothing but the memory is measured."""
    reasons = {field: f"not_supported: {call}" for field in FIELDS if field != "memory_mib_max"}
    chips: list[Chip] = []
    for gpu in range(gpus):
        parent = msgspec.structs.replace(chip(f"GPU-{gpu:08d}-0000-4000-8000-000000000000"), role="mig_parent")
        chips.append(parent)
        for part in range(7):
            uuid = f"MIG-{gpu:04d}{part:04d}-0000-4000-8000-000000000000"
            instance = msgspec.structs.replace(chip(uuid), role="mig_instance", parent=parent.uuid)
            measured = {"memory_mib_max": "memory_info"}
            chips.append(msgspec.structs.replace(instance, measured_by=measured, not_measured=reasons))
    return header().inventory(chips)


def usage(shares: list[Share]) -> UsageBody:
    columns: dict[str, Any] = {field: [None] for field in FIELDS}
    return UsageBody(from_us=stamp().time_us, to_us=stamp().time_us + 1, mono_from_us=0, samples=[1],
                     workloads=shares, **columns)  # fmt: skip


def written(folder: Path, *bodies: Body) -> list[Inventory | Usage]:
    """The bodies in a log, as readers see it."""
    signer = Recorder()
    log = make_log(folder, signer)
    for body in bodies:
        log.append([body], stamp(MINUTE_US))
    log.seal()
    log.close()
    return [entry for entry in check_log(folder, signer) if isinstance(entry, (Inventory, Usage))]


@pytest.mark.parametrize(
    ("gpus", "call", "reason"),
    [
        (1, "nvmlGpmSampleGet", "not_supported: nvmlGpmSampleGet"),
        (8, "nvmlDeviceGetCurrentClocksEventReasons", "not_supported"),
        (16, "nvmlGpmSampleGet", None),
    ],
)
def test_a_divided_host_lists_all_its_chips(tmp_path: Path, gpus: int, call: str, reason: str | None) -> None:
    body = divided(gpus, call)
    (entry,) = written(tmp_path / "1", body)
    assert isinstance(entry, Inventory)
    assert [chip.uuid for chip in entry.body.chips] == [chip.uuid for chip in body.chips]
    last = entry.body.chips[-1]
    assert last.not_measured.get("busy_us") == reason
    assert last.measured_by == {"memory_mib_max": "memory_info"}


def test_of_a_thousand_workloads_the_smallest_are_unattributed(tmp_path: Path) -> None:
    """Anybody can make a thousand containers, and metering must not end by it."""
    shares = [share(0, f"podman:{number:064x}", 1 + 1_900 * (number % 2), "shared") for number in range(1_000)]
    _, cut = written(tmp_path / "1", header().inventory(), usage(shares))
    assert isinstance(cut, Usage)
    assert 400 < len(cut.body.workloads) < 1_000
    assert [s for s in shares if s.share_ppm == 1_901 and s not in cut.body.workloads] == []
    assert [s for s in shares if s in cut.body.workloads] == cut.body.workloads


def test_what_can_t_be_cut_is_refused(tmp_path: Path) -> None:
    chips = [f"MIG-{number:060d}" for number in range(1_024)]
    with pytest.raises(StoreError, match="a RetiredBody of"):
        written(tmp_path / "1", RetiredBody(chips=chips, reason="gone"))
