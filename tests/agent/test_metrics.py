"""The metrics, read by a parser that takes nothing but the text format 0.0.4."""

import re
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import urllib3
from msgspec.structs import replace

from keyturn_agent.config import Config
from keyturn_agent.errors import UnavailableError
from keyturn_agent.metrics import Family, Health, exposition, of_agent, of_chips
from keyturn_agent.metrics_out import CONTENT_TYPE, Outlet
from tests.agent.samples import chip, reading
from tests.support.optional import require_program

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"')
NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?")
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parse(text: str) -> tuple[Samples, dict[str, str]]:
    """Samples and types; raises AssertionError on everything that the format doesn't say."""
    assert text == "" or text.endswith("\n")
    samples: Samples = {}
    kinds: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name = line.split(" ")[2]
            assert NAME.fullmatch(name)
            assert name not in kinds, f"{name}: the lines of a metric stand together"
            kinds[name] = ""
        elif line.startswith("# TYPE "):
            _, _, named, kind = line.split(" ")
            assert (named, kind in ("gauge", "counter")) == (name, True)
            assert (kind == "counter") == name.endswith("_total"), f"{name}: a counter, and nothing else, is a _total"
            kinds[name] = kind
        else:
            match = re.fullmatch(r"([^{ ]+)(?:\{(.*)\})? (\S+)", line)
            assert match, line
            assert match[1] == name
            assert kinds[name]
            labels = LABEL.findall(match[2] or "")
            assert ",".join(f'{label}="{value}"' for label, value in labels) == (match[2] or ""), line
            assert len({label for label, _ in labels}) == len(labels)
            assert NUMBER.fullmatch(match[3]), line
            key = (name, tuple((label, value) for label, value in labels))
            assert key not in samples
            samples[key] = float(match[3])
    return samples, kinds


HEALTH: dict[str, Any] = {
    "version": "0.1.0",
    "origin": "test.example.org/node/00/1",
    "incarnation": 1,
    "entries": 9,
    "sealed": 8,
    "receipted": 7,
    "spool_segments": 1,
    "spool_bytes": 400,
    "spool_level": 0,
    "gaps": 2,
    "last_receipt_s": None,
    "running": True,
}


def values(samples: Samples, name: str) -> list[float]:
    return [value for (found, _), value in samples.items() if found == name]


def test_of_the_agent() -> None:
    samples, kinds = parse(exposition(of_agent(Health(**HEALTH))))
    assert values(samples, "keyturn_agent_log_receipted_entries") == [7]
    assert values(samples, "keyturn_agent_gaps_total") == [2]
    assert values(samples, "keyturn_agent_up") == [1]
    assert values(samples, "keyturn_agent_last_receipt_timestamp_seconds") == [], "not known isn't zero"
    assert kinds["keyturn_agent_gaps_total"] == "counter"
    known = Health(**HEALTH | {"last_receipt_s": 1_790_000_000})
    samples, _ = parse(exposition(of_agent(known)))
    assert values(samples, "keyturn_agent_last_receipt_timestamp_seconds") == [1_790_000_000]


def test_of_chips_what_is_not_measured_has_no_line() -> None:
    chips = [chip("GPU-a"), chip("GPU-b"), chip("GPU-c")]
    readings = [
        reading(energy_mj=1_500, busy_ppm=250_000, memory_mib=2, sm_clock_mhz=1755),
        reading(power_mw=300_500),
        None,
    ]
    samples, _ = parse(exposition(of_chips(chips, readings, "host-1")))
    assert values(samples, "hw_energy_joules_total") == [1.5]
    assert values(samples, "hw_power_watts") == [300.5]
    assert values(samples, "hw_gpu_utilization_ratio") == [0.25]
    assert values(samples, "hw_gpu_memory_usage_bytes") == [2 * 1024 * 1024]
    assert values(samples, "hw_gpu_sm_clock_hertz") == [1_755_000_000]
    assert values(samples, "hw_gpu_tensor_active_ratio") == []
    states = {
        (dict(labels)["hw_id"], dict(labels)["hw_state"]): v for (n, labels), v in samples.items() if n == "hw_status"
    }
    assert states == {
        ("GPU-a", "ok"): 1, ("GPU-a", "failed"): 0, ("GPU-b", "ok"): 1, ("GPU-b", "failed"): 0,
        ("GPU-c", "ok"): 0, ("GPU-c", "failed"): 1,
    }  # fmt: skip
    (labels,) = (dict(key[1]) for key in samples if key[0] == "hw_power_watts")
    assert labels == {
        "gpu": "1",
        "UUID": "GPU-b",
        "device": "nvidia1",
        "modelName": "NVIDIA H100 PCIe",
        "Hostname": "host-1",
        "pci_bus_id": "",
        "hw_id": "GPU-b",
        "hw_type": "gpu",
        "hw_name": "nvidia1",
    }


def test_labels_are_those_that_dcgm_exporter_gives() -> None:
    """So that series of both join: the bus as NVIDIA writes it, and a MIG instance under its GPU's number."""
    gpu = replace(chip("GPU-a"), pci_bus_id="0000:3b:00.0", role="mig_parent")
    instance = replace(
        chip("MIG-a"),
        name="NVIDIA H100 PCIe MIG 3g.40gb",
        role="mig_instance",
        parent="GPU-a",
        pci_bus_id="0000:3b:00.0",
    )
    other = replace(chip("GPU-b"), pci_bus_id="0001:c1:00.0")
    every = [gpu, instance, other]
    samples, _ = parse(exposition(of_chips(every, [reading(memory_mib=1)] * 3, "h")))
    found = {dict(key[1])["hw_id"]: dict(key[1]) for key in samples if key[0] == "hw_gpu_memory_usage_bytes"}
    assert (found["GPU-a"]["pci_bus_id"], found["GPU-b"]["pci_bus_id"]) == ("00000000:3B:00.0", "00000001:C1:00.0")
    assert [found[uuid]["gpu"] for uuid in ("GPU-a", "MIG-a", "GPU-b")] == ["0", "0", "1"]
    assert found["MIG-a"]["device"] == "nvidia0"
    assert (found["MIG-a"]["UUID"], found["MIG-a"]["hw_parent"], found["MIG-a"]["GPU_I_PROFILE"]) == (
        "GPU-a", "GPU-a", "3g.40gb",
    )  # fmt: skip
    assert "GPU_I_PROFILE" not in found["GPU-a"]


SEMCONV = {
    # Instrument, unit and kind of the hardware conventions, and what Prometheus makes of them.
    "hw.energy": ("J", "counter", "hw_energy_joules_total"),
    "hw.power": ("W", "gauge", "hw_power_watts"),
    "hw.status": ("1", "updowncounter", "hw_status"),
    "hw.gpu.io": ("By", "counter", "hw_gpu_io_bytes_total"),
    "hw.gpu.memory.limit": ("By", "updowncounter", "hw_gpu_memory_limit_bytes"),
    "hw.gpu.memory.usage": ("By", "updowncounter", "hw_gpu_memory_usage_bytes"),
    "hw.gpu.memory.utilization": ("1", "gauge", "hw_gpu_memory_utilization_ratio"),
    "hw.gpu.utilization": ("1", "gauge", "hw_gpu_utilization_ratio"),
}


@pytest.mark.parametrize("instrument", SEMCONV)
def test_names_are_opentelemetry_s_in_prometheus_form(instrument: str) -> None:
    """Dots become underscores, a unit becomes a suffix (1 becomes ``ratio`` on a gauge), a counter ends in _total."""
    unit, kind, name = SEMCONV[instrument]
    suffix = {"J": "_joules", "W": "_watts", "By": "_bytes", "1": "_ratio" if kind == "gauge" else ""}[unit]
    assert name == instrument.replace(".", "_") + suffix + ("_total" if kind == "counter" else "")
    values_of = reading(energy_mj=1, power_mw=1, busy_ppm=1, memory_mib=1, pcie_tx_kib=3, pcie_rx_kib=5)
    samples, kinds = parse(exposition(of_chips([chip("GPU-a")], [values_of], "h")))
    assert kinds[name] == ("counter" if kind == "counter" else "gauge")
    for (found, labels), _ in samples.items():
        if found == name:
            assert {"hw_id", "hw_type"} <= dict(labels).keys()


def test_traffic_has_its_direction() -> None:
    samples, _ = parse(exposition(of_chips([chip("GPU-a")], [reading(pcie_tx_kib=3, pcie_rx_kib=5)], "h")))
    found = {
        dict(labels)["network_io_direction"]: v for (n, labels), v in samples.items() if n == "hw_gpu_io_bytes_total"
    }
    assert found == {"transmit": 3 * 1024, "receive": 5 * 1024}


def test_promtool_has_nothing_to_say() -> None:
    promtool = require_program("promtool")
    values_of = reading(energy_mj=1, power_mw=1, busy_ppm=1, memory_mib=1, pcie_tx_kib=3, pcie_rx_kib=5, sm_clock_mhz=9)
    text = exposition([*of_agent(Health(**HEALTH)), *of_chips([chip("GPU-a"), chip("GPU-b")], [values_of, None], "h")])
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    # modelName is dcgm-exporter's.
    said = [line for line in (done.stdout + done.stderr).splitlines() if "camelCase" not in line]
    assert said == []


def test_labels_and_help_are_escaped() -> None:
    odd = 'a\\b"c\nd'
    text = exposition([Family("odd", "gauge", odd, (({"label": odd}, 1),))])
    assert text == '# HELP odd a\\\\b"c\\nd\n# TYPE odd gauge\nodd{label="a\\\\b\\"c\\nd"} 1\n'
    parse(text)


@contextmanager
def outlet(**settings: str) -> Iterator[Outlet]:
    made = Outlet(Config(**settings))  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.close()


def test_nothing_is_served_by_default() -> None:
    with outlet() as nowhere:
        assert (nowhere.wanted, nowhere.port) == (False, None)


def test_served_on_an_address_of_this_host() -> None:
    with outlet(metrics_listen="127.0.0.1:0") as served, urllib3.PoolManager() as http:
        served.put(exposition(of_agent(Health(**HEALTH))))
        answer = http.request("GET", f"http://127.0.0.1:{served.port}/metrics", retries=False)
        assert (answer.status, answer.headers["Content-Type"]) == (200, CONTENT_TYPE)
        parse(answer.data.decode())
        assert http.request("GET", f"http://127.0.0.1:{served.port}/other", retries=False).status == 404
        assert http.request("POST", f"http://127.0.0.1:{served.port}/metrics", retries=False).status == 501


def test_an_address_in_use_is_an_error_at_the_start() -> None:
    # Not a wrong setting: who has it now may end, and the service is started again.
    with outlet(metrics_listen="127.0.0.1:0") as served, pytest.raises(UnavailableError, match=r"^metrics\.listen: "):
        Outlet(Config(metrics_listen=f"127.0.0.1:{served.port}"))


def test_a_text_file_is_whole_and_readable_by_its_collector(tmp_path: Path) -> None:
    path = tmp_path / "keyturn.prom"
    with outlet(metrics_file=str(path)) as written:
        written.put("keyturn_agent_up 1\n")
        written.put("keyturn_agent_up 0\n")
    assert path.read_text() == "keyturn_agent_up 0\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with outlet(metrics_file=str(tmp_path / "none" / "keyturn.prom")) as lost:
        lost.put("keyturn_agent_up 1\n")
    assert "writing metrics" in caplog.text
