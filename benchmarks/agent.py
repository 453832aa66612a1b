"""The agent on 8 GPUs of the tests' NVML stub: CPU and memory, beside what else could run there.

The agent samples once a second, writes an entry every 10 s (fdatasync), seals and sends every 60 s (by default every
300 s) to a verifier of its own. At the same time on the same host, over the same seconds:

bare    the same NVML calls in a loop of Python. Bar of the agent: less than 0.5 % of a core, less than 60 MiB.
nvitop  its ``ResourceMetricCollector``, once a second. Bar: the agent takes less CPU.

    python benchmarks/agent.py --seconds 600
"""

import argparse
import contextlib
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _nvml import CHIPS, Host, Program, usage_of
from _report import report, report_below

from tests.support.verifier import Verifier

HERE = Path(__file__).resolve().parent
WARM_S = 15
"""Past opening the library, and the first entry."""


@dataclass(frozen=True)
class Mark:
    """What a program has taken up to a moment."""

    at_s: float
    cpu_s: float
    calls: int

    @classmethod
    def of(cls, program: Program) -> "Mark":
        assert program.process.poll() is None, f"{program.process.args!r} ended"
        return cls(time.monotonic(), _cpu_s(program.process.pid), program.control.get("calls"))


def _cpu_s(pid: int) -> float:
    """Of all threads, in ns where the kernel tells."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except OSError:
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)


def _memory(program: Program) -> dict[str, float]:
    found = psutil.Process(program.process.pid).memory_full_info()
    return {"rss_mib": round(found.rss / 2**20, 1), "pss_mib": round(found.pss / 2**20, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, metavar="N", help="that are measured, after the start")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        host, verifier = Host(Path(name)), Verifier(Path(name))
        stack.enter_context(host)
        stack.enter_context(verifier)
        host.enroll(verifier)
        programs = {
            "agent": host.run_agent(),
            "bare": host.start("bare", HERE / "_agent_bare.py"),
            "nvitop": host.start("nvitop", HERE / "_agent_peer.py"),
        }
        for program in programs.values():
            stack.callback(program.end)
        time.sleep(WARM_S)
        before = {name: Mark.of(program) for name, program in programs.items()}
        time.sleep(seconds)
        after = {name: Mark.of(program) for name, program in programs.items()}
        memory = {name: _memory(program) for name, program in programs.items()}
        programs["agent"].end()
        # It did what it was measured at.
        usage = usage_of(verifier, Path(name) / "bundle")
        assert len(usage) >= seconds // 10, usage
        assert all(None not in entry.body.tensor_mcycles and entry.body.workloads for entry in usage), usage[0]
    cpu, calls = {}, {}
    for name, mark in after.items():
        passed_s = mark.at_s - before[name].at_s
        cpu[name] = (mark.cpu_s - before[name].cpu_s) / passed_s
        calls[name] = round((mark.calls - before[name].calls) / passed_s)
    facts = {"chips": CHIPS, "over_s": seconds, "durability": "fdatasync of every entry"}
    report_below(
        "agent, CPU", cpu["agent"] * 100, "% of a core", bar=0.5, bare_loop_percent=round(cpu["bare"] * 100, 3),
        nvml_calls_a_s=calls["agent"], bare_loop_calls_a_s=calls["bare"], **facts,
    )  # fmt: skip
    report_below(
        "agent, memory", memory["agent"]["rss_mib"], "MiB resident", bar=60, pss_mib=memory["agent"]["pss_mib"],
        bare_loop_rss_mib=memory["bare"]["rss_mib"], nvitop_rss_mib=memory["nvitop"]["rss_mib"], **facts,
    )  # fmt: skip
    report(
        "agent, CPU of nvitop's collector against it", seconds=cpu["agent"], limit_s=cpu["nvitop"], bar=1,
        nvitop_percent=round(cpu["nvitop"] * 100, 3), nvitop_calls_a_s=calls["nvitop"], **facts,
    )  # fmt: skip


if __name__ == "__main__":
    main()
