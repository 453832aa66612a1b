"""The metrics, read by a parser that takes nothing but the text format 0.0.4."""

import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import urllib3

from keyturn_agent.config import Config
from keyturn_agent.errors import UsageError
from keyturn_agent.metrics import Family, Health, exposition, of_agent, of_chips
from keyturn_agent.metrics_out import CONTENT_TYPE, Outlet
from tests.agent.samples import chip, reading

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
    assert values(samples, "hw_status") == [1, 1, 0]
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
    }


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
    with outlet(metrics_listen="127.0.0.1:0") as served, pytest.raises(UsageError, match=r"^metrics\.listen: "):
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
