"""What NVML shows: chips, MIG instances, processes, and the PCI bus beside it."""

from pathlib import Path

from keyturn_agent.sources import nvml
from keyturn_agent.sources.nvml import GpuProcess
from keyturn_protocol.entry_inventory import PciDevice
from keyturn_protocol.entry_usage import FIELDS
from tests.agent.conftest import Sources
from tests.agent.nvml_stub.stories import SECOND_US, body_of, read, read_seconds, steady_gpu, to_start, two_gpus
from tests.agent.nvml_stub.stub import START_US, Script, Stub


def test_inventory_of_a_gpu(stub: Stub, make: Sources) -> None:
    cluster = "000102030405060708090a0b0c0d0e0f"
    source = make(stub, steady_gpu(links=18, fabric=cluster, clique=7))
    inventory = source.inventory()
    (chip,) = inventory.chips
    assert (chip.uuid, chip.name, chip.role) == ("GPU-00000000-0000-4000-8000-000000000000", "NVIDIA H100 PCIe", "gpu")
    assert (chip.sms, chip.memory_mib, chip.clock_max_mhz, chip.power_limit_mw) == (114, 81559, 1755, 350_000)
    assert (chip.pci_bus_id, chip.nvlink_links) == ("0000:3b:00.0", 18)
    assert chip.fabric == "00010203-0405-0607-0809-0a0b0c0d0e0f/7"
    assert (inventory.driver_version, inventory.nvml_version, inventory.cuda_version) == (
        "580.126.20", "13.580.126.20", "13.0",
    )  # fmt: skip
    assert inventory.pci is None
    body_of(inventory)


def test_each_field_is_measured_by_a_method_or_not_measured_for_a_reason(stub: Stub, make: Sources) -> None:
    (chip,) = make(stub, steady_gpu()).inventory().chips
    assert chip.measured_by.keys() | chip.not_measured.keys() == set(FIELDS)
    assert chip.not_measured == {}
    assert chip.measured_by["energy_mj"] == "total_energy"
    assert chip.measured_by["tensor_mcycles"] == "ratio_x_sm_clock"
    assert chip.measured_by["elapsed_mcycles"] == "sm_clock_x_time"


def test_the_pci_bus_shows_a_chip_that_the_driver_does_not(stub: Stub, make: Sources, tmp_path: Path) -> None:
    devices = tmp_path / "sys" / "bus" / "pci" / "devices"
    for bus_id, kind, vendor, device, driver in (
        ("0000:3b:00.0", "0x030200", "0x10de", "0x2331", "nvidia"),
        ("0000:3c:00.0", "0x030200", "0x10de", "0x2331", "vfio-pci"),
        ("0000:3d:00.0", "0x120000", "0x1002", "0x74a1", None),
        ("0000:00:1f.0", "0x060100", "0x8086", "0x1234", "lpc"),
    ):
        folder = devices / bus_id
        folder.mkdir(parents=True)
        for name, text in (("class", kind), ("vendor", vendor), ("device", device)):
            (folder / name).write_text(text + "\n")
        if driver is not None:
            (folder / "driver").symlink_to(tmp_path / "sys" / "bus" / "pci" / "drivers" / driver)
    inventory = make(stub, steady_gpu(), sysfs=tmp_path / "sys").inventory()
    assert inventory.pci == [
        PciDevice(bus_id="0000:3b:00.0", vendor=0x10DE, device=0x2331, driver="nvidia"),
        PciDevice(bus_id="0000:3c:00.0", vendor=0x10DE, device=0x2331, driver="vfio-pci"),
        PciDevice(bus_id="0000:3d:00.0", vendor=0x1002, device=0x74A1, driver=None),
    ]
    assert [chip.pci_bus_id for chip in inventory.chips] == ["0000:3b:00.0"]


def mig_script() -> Script:
    script = steady_gpu(mig=1)
    for index, (instance, gpu_slices, compute_slices) in enumerate(((1, 3, 3), (2, 3, 1), (2, 3, 2))):
        unit = f"0.{index}"
        script.unit(
            unit,
            uuid=f"MIG-{index:08d}-0000-4000-8000-000000000000",
            name="NVIDIA H100 PCIe MIG 3g.40gb",
            gpu_instance=instance,
            sms=46,
            memory_mib_total=40192,
            gpu_slices=gpu_slices,
            compute_slices=compute_slices,
        )
        script.at(0, unit, memory_mib=500 + index)
        for t_us in range(0, 60 * SECOND_US, SECOND_US):
            script.at(t_us, unit, g2=50 + index, g5=20 + index)
    # In MIG mode a GPU has no utilization.
    return script.fail("nvmlDeviceGetUtilizationRates", 3)


def test_mig_instances_are_chips_beside_their_parent(stub: Stub, make: Sources) -> None:
    inventory = make(stub, mig_script()).inventory()
    parent, *instances = inventory.chips
    assert parent.role == "mig_parent"
    assert [(i.role, i.parent, i.sms, i.memory_mib) for i in instances] == 3 * [
        ("mig_instance", parent.uuid, 46, 40192)
    ]
    body_of(inventory)


def test_a_mig_instance_has_a_gpm_call_of_its_own_and_no_utilization(stub: Stub, make: Sources) -> None:
    source = make(stub, mig_script())
    (_, instance, *_) = to_start(stub, source).chips
    parent, reading, *_ = read_seconds(stub, source, 1)[1].chips
    assert parent is not None
    assert reading is not None
    assert (reading.sm_active_ppm, reading.tensor_ppm, reading.memory_mib) == (500_000, 200_000, 500)
    assert (reading.sm_clock_mhz, parent.sm_clock_mhz) == (1500, 1500)
    assert (reading.energy_mj, reading.power_mw, reading.busy_ppm) == (None, None, None)
    assert (parent.busy_ppm, parent.power_mw) == (None, 300_000)
    assert instance.not_measured["energy_mj"].startswith("counted_with_the_parent")
    assert instance.not_measured["busy_us"].startswith("counted_with_the_parent")


def test_a_part_of_a_gpu_instance_has_no_counters(stub: Stub, make: Sources) -> None:
    """GPM reads GPU instances: two compute instances in one would both be given the work of both."""
    source = make(stub, mig_script())
    _, alone, *parts = to_start(stub, source).chips
    assert "tensor_mcycles" in alone.measured_by
    for part in parts:
        assert part.not_measured["tensor_mcycles"] == "part_of_a_gpu_instance: nvmlGpmSampleGet"
    assert [r and r.tensor_ppm for r in read_seconds(stub, source, 1)[1].chips] == [400_000, 200_000, None, None]


def test_a_new_mig_instance_is_read_after_the_next_inventory(stub: Stub, make: Sources) -> None:
    script = mig_script()
    script.add("unit", "0.1", "from", START_US + 5 * SECOND_US)
    source = make(stub, script)
    assert len(to_start(stub, source).chips) == 3
    read_seconds(stub, source, 15)
    assert source.inventory_changed
    assert len(source.inventory().chips) == 4
    assert not source.inventory_changed
    assert None not in read(stub, source, START_US + 16 * SECOND_US).chips


def test_mig_instances_come_and_go_without_a_break_for_the_others(stub: Stub, make: Sources) -> None:
    script = mig_script()
    script.add("unit", "0.2", "to", START_US + 15 * SECOND_US)
    source = make(stub, script)
    to_start(stub, source)
    samples = read_seconds(stub, source, 25)
    assert samples[10].chips[3] is not None
    # Its handle is refused at once; the next look finds that it isn't listed any more.
    assert [s.chips[3] is None for s in samples[14:17]] == [False, True, True]
    assert (samples[15].error, samples[25].error) == ("invalid_argument", "not_found")
    assert all(sample.chips[1] is not None for sample in samples)
    assert source.inventory_changed
    assert [chip.uuid[:12] for chip in source.inventory().chips] == ["GPU-00000000", "MIG-00000000", "MIG-00000001"]
    assert len(read(stub, source, START_US + 26 * SECOND_US).chips) == 3


def test_a_gpu_is_divided_and_made_whole_again_in_mid_run(stub: Stub, make: Sources) -> None:
    """Since Hopper that needs no reset, so that nothing else tells."""
    source = make(stub, steady_gpu(mig=0))
    to_start(stub, source)
    read_seconds(stub, source, 2)
    divided = mig_script()
    stub.control.set("reload", 1)
    stub.play(divided)
    read_seconds(stub, source, 15, START_US + 3 * SECOND_US)
    assert source.inventory_changed
    assert [chip.role for chip in source.inventory().chips] == ["mig_parent", *["mig_instance"] * 3]
    assert None not in read(stub, source, START_US + 20 * SECOND_US).chips
    stub.play(steady_gpu(mig=0))
    stub.control.set("reload", 1)
    read_seconds(stub, source, 15, START_US + 21 * SECOND_US)
    assert [chip.role for chip in source.inventory().chips] == ["gpu"]
    assert None not in read(stub, source, START_US + 40 * SECOND_US).chips
    assert stub.control.get("openings") == 1


def plug(sysfs: Path, bus_id: str, driver: str | None) -> None:
    folder = sysfs / "bus" / "pci" / "devices" / bus_id
    folder.mkdir(parents=True)
    for name, text in (("class", "0x030200"), ("vendor", "0x10de"), ("device", "0x2331")):
        (folder / name).write_text(text + "\n")
    if driver is not None:
        (folder / "driver").symlink_to(sysfs / "bus" / "pci" / "drivers" / driver)


def test_a_gpu_that_is_plugged_in_is_taken_up(stub: Stub, make: Sources, tmp_path: Path) -> None:
    """The library counts GPUs when it is opened, and only then."""
    sysfs = tmp_path / "sys"
    plug(sysfs, "0000:3b:00.0", "nvidia")
    source = make(stub, Script().gpu(0).steady("0", 240), sysfs=sysfs)
    to_start(stub, source)
    read_seconds(stub, source, 70)
    assert (source.inventory_changed, stub.control.get("openings")) == (False, 1)
    plug(sysfs, "0000:3c:00.0", "nvidia")
    stub.play(Script().gpu(0).gpu(1).steady("0", 240).steady("1", 240))
    samples = read_seconds(stub, source, 60, START_US + 71 * SECOND_US)
    assert [sample.error for sample in samples].count("reopened") == 1
    assert stub.control.get("openings") == 2
    inventory = source.inventory()
    assert len(inventory.chips) == len(inventory.pci or ()) == 2
    # One that NVML doesn't show all the same is no reason to open it again and again.
    plug(sysfs, "0000:3d:00.0", "nvidia")
    read_seconds(stub, source, 100, START_US + 135 * SECOND_US)
    assert stub.control.get("openings") == 3
    assert source.inventory_changed, "the bus says that there is one more"
    assert len(source.inventory().pci or ()) == 3


def test_a_gpu_that_is_given_to_a_guest_is_only_noted(stub: Stub, make: Sources, tmp_path: Path) -> None:
    sysfs = tmp_path / "sys"
    plug(sysfs, "0000:3b:00.0", "nvidia")
    source = make(stub, Script().gpu(0).steady("0", 150), sysfs=sysfs)
    to_start(stub, source)
    plug(sysfs, "0000:3c:00.0", "vfio-pci")
    read_seconds(stub, source, 70)
    assert source.inventory_changed
    assert len(source.inventory().pci or ()) == 2
    assert stub.control.get("openings") == 1


def test_processes_of_a_chip(stub: Stub, make: Sources) -> None:
    script = two_gpus().add("process", "0", 300, 1024, 25).add("process", "0", 200, "-", "-")
    source = make(stub, script)
    assert source.processes() == ()
    to_start(stub, source)
    assert source.processes() == ((GpuProcess(200, None, None), GpuProcess(300, 1024, 250_000)), ())


def test_processes_that_may_not_be_listed_are_unknown_and_not_none(stub: Stub, make: Sources) -> None:
    script = two_gpus().fail("nvmlDeviceGetComputeRunningProcesses_v3", 4, unit="1")
    source = make(stub, script)
    to_start(stub, source)
    assert source.processes() == ((), None)


def test_a_process_shorter_than_a_sample_had_its_part(stub: Stub, make: Sources) -> None:
    script = Script().gpu(0).steady("0").add("process", 0, 200, 512, 40).add("process", 0, 300, "ended", 10)
    source = make(stub, script)
    to_start(stub, source)
    # The driver's first answer goes back to before anybody looked.
    assert source.processes() == ((GpuProcess(200, 512, 400_000),),)
    read(stub, source, START_US + SECOND_US)
    assert source.processes() == ((GpuProcess(200, 512, 400_000), GpuProcess(300, None, 100_000)),)


def test_a_process_shorter_than_a_sample_has_a_record_where_accounting_is_on(stub: Stub, make: Sources) -> None:
    """Without utilization by process nothing else tells of it."""
    script = Script().gpu(0, accounting=1).gpu(1, accounting=0).steady("0").steady("1")
    for unit in (0, 1):
        script.add("process", unit, 200, 512, "-")
        # One from before, one that lived for 300 ms of the second before 12 s.
        script.add("account", unit, 100, START_US, 5000, 90).add("account", unit, 300, START_US + 1_900_000, 300, 50)
    source = make(stub, script.fail("nvmlDeviceGetProcessUtilization", 3))
    to_start(stub, source)
    seen = []
    for second in range(4):
        read(stub, source, START_US + second * SECOND_US)
        seen.append(source.processes())
    alone = (GpuProcess(200, 512, None),)
    assert [found[0] for found in seen] == [alone, alone, (*alone, GpuProcess(300, None, None, 300_000)), alone]
    assert [found[1] for found in seen] == [alone] * 4
    assert source.accounting() == (1, 2)


def test_a_record_has_its_part_beside_utilization_by_process(stub: Stub, make: Sources) -> None:
    script = Script().gpu(0, accounting=1).steady("0").add("process", 0, 200, 512, 40)
    script.add("account", 0, 300, START_US + 1_900_000, 500, 50)
    source = make(stub, script)
    to_start(stub, source)
    for second in range(2):
        read(stub, source, START_US + second * SECOND_US)
        source.processes()
    read(stub, source, START_US + 2 * SECOND_US)
    assert source.processes() == ((GpuProcess(200, 512, 400_000), GpuProcess(300, None, 250_000, 500_000)),)


def test_accounting_is_never_switched(stub: Stub, make: Sources) -> None:
    source = make(stub, two_gpus())
    to_start(stub, source)
    read_seconds(stub, source, 2)
    assert source.accounting() == (0, 2)
    package = Path(nvml.__file__).parent.parent
    assert not [path for path in package.rglob("*.py") if "nvmlDeviceSet" in path.read_text()]
