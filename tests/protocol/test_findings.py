"""The rules that raise findings, and the page that lists them."""

import re
from collections.abc import Iterable

import pytest
from msgspec import structs

from keyturn_protocol.canonical import decode
from keyturn_protocol.entries import ClockStep, Degraded, Entry, Genesis, Shutdown
from keyturn_protocol.entry_inventory import Chip
from keyturn_protocol.entry_log import ClockStepBody, DegradedBody, GenesisBody, Previous, ShutdownBody
from keyturn_protocol.findings import (
    SEVERITY,
    Before,
    Finding,
    FindingCode,
    Severity,
    at_genesis,
    finding,
    in_entries,
    in_totals,
    ranked,
)
from keyturn_protocol.usage import Gap, UsageRow
from tests.support.paths import REPO
from tests.support.rows import HOUR_US, make_chip, make_row

LOG = "example.org/node/00000000000000000000000000000000/1"
PREVIOUS = Previous(origin=LOG, size=5, root="00" * 32, reason="damaged")


def stamped(seq: int, boots: int, time_us: int) -> dict[str, object]:
    boot_id = "00000000-0000-4000-8000-000000000000"
    return {"v": 1, "seq": seq, "prev": "00" * 32, "boot_id": boot_id, "boots": boots, "mono_us": 0, "time_us": time_us}


def shutdown(seq: int, boots: int, time_us: int) -> Entry:
    return Shutdown(**stamped(seq, boots, time_us), body=ShutdownBody(reason="stopped"))  # type: ignore[arg-type]


def genesis(previous: Previous | None, source: str = "replay", time_us: int = 0) -> Genesis:
    body = GenesisBody(
        agent_version="0",
        agent_sha256="00" * 32,
        source=source,  # type: ignore[arg-type]
        public_key="00" * 32,
        trust_sha256="00" * 32,
        root_sha256=None,
        previous=previous,
    )
    return Genesis(**stamped(0, 1, time_us), body=body)  # type: ignore[arg-type]


def codes(found: Iterable[Finding]) -> list[str]:
    return [one.code for one in found]


class TestEntries:
    def test_the_wall_clock_is_earlier_after_a_reboot(self) -> None:
        entries = [shutdown(4, 1, 9_000), shutdown(5, 2, 8_000)]
        (found,) = in_entries(LOG, None, entries)
        assert (found.code, found.seq, found.from_us, found.to_us) == ("clock_back", 5, 8_000, 9_000)
        assert in_entries(LOG, (1, 9_000), entries[1:]) == [found], "over a segment's end too"

    def test_not_without_a_reboot_and_not_when_it_is_later(self) -> None:
        assert in_entries(LOG, (1, 9_000), [shutdown(5, 1, 8_000)]) == []
        assert in_entries(LOG, (1, 9_000), [shutdown(5, 2, 9_000)]) == []

    def test_a_replay_may_start_before_its_host_was_enrolled(self) -> None:
        assert in_entries(LOG, (0, 9_000), [shutdown(1, 1, 8_000)]) == []

    @pytest.mark.parametrize(("step_us", "found"), [(999_999, 0), (1_000_000, 1), (-999_999, 0), (-1_000_000, 1)])
    def test_small_steps_are_ordinary(self, step_us: int, found: int) -> None:
        body = ClockStepBody(before_us=10**9, after_us=10**9 + step_us, step_us=step_us)
        entry = ClockStep(**stamped(3, 1, 10**9), body=body)  # type: ignore[arg-type]
        assert codes(in_entries(LOG, None, [entry])) == ["clock_step"] * found

    def test_what_the_agent_says_itself(self) -> None:
        body = DegradedBody(cause="driver_lost", interval_us=None, detail="no chip can be read")
        entry = Degraded(**stamped(3, 1, 7), body=body)  # type: ignore[arg-type]
        (found,) = in_entries(LOG, None, [entry])
        assert (found.code, found.detail, found.seq) == ("degraded", "driver_lost", 3)
        for cause in ("would_refuse", "survivors"):
            entry = Degraded(**stamped(3, 1, 7), body=structs.replace(body, cause=cause))  # type: ignore[arg-type]
            (found,) = in_entries(LOG, None, [entry])
            assert (found.code, found.severity, found.detail) == ("unleased", "high", cause)
        assert codes(in_entries(LOG, None, [genesis(PREVIOUS)])) == ["new_incarnation"]
        assert in_entries(LOG, None, [genesis(None)]) == []


class TestGenesis:
    @pytest.mark.parametrize(
        ("incarnation", "known", "want"),
        [
            (1, None, []),
            (2, Before(1, 5, PREVIOUS.root), []),
            (2, Before(1, 5, "ee" * 32), ["lost_head"]),
            (2, Before(1, 5), []),
            (2, Before(1, 4, "ee" * 32), []),
            (2, Before(1, 6, "ee" * 32), ["lost_head"]),
            (2, None, ["incarnation_skipped"]),
            (3, Before(1, 6, "ee" * 32), ["incarnation_skipped", "lost_head"]),
        ],
    )
    def test_what_is_left_behind(self, incarnation: int, known: Before | None, want: list[str]) -> None:
        first = genesis(None if incarnation == 1 else PREVIOUS)
        assert codes(at_genesis(LOG, first, incarnation, known)) == want

    @pytest.mark.parametrize(
        ("known", "source", "want"),
        [
            (Before(1, 5, PREVIOUS.root, 8_999_999), "nvml", []),
            (Before(1, 5, PREVIOUS.root, 9_000_000), "nvml", ["clock_back"]),
            (Before(1, 5, PREVIOUS.root, 7_999_999), "nvml", []),
            (Before(1, 5, PREVIOUS.root, None), "nvml", []),
            (Before(1, 1, PREVIOUS.root, 9_000_000), "nvml", []),  # a genesis alone measured nothing
            (Before(1, 5, PREVIOUS.root, 9_000_000), "replay", []),
            (
                Before(1, 6, PREVIOUS.root, 9_000_000),
                "nvml",
                ["lost_head"],
            ),  # whoever wrote the sixth
        ],
    )
    def test_the_wall_clock_is_earlier_in_the_next_log(self, known: Before, source: str, want: list[str]) -> None:
        first = genesis(PREVIOUS, source, 8_000_000)
        found = at_genesis(LOG, first, 2, known)
        assert codes(found) == want
        if want == ["clock_back"]:
            assert (found[0].seq, found[0].from_us, found[0].to_us) == (0, 8_000_000, 9_000_000)


class TestTotals:
    def found(self, *rows: UsageRow, gaps: Iterable[Gap] = (), chip: Chip | None = None) -> list[Finding]:
        chip = chip or make_chip(clock_max_mhz=1000)
        return in_totals(rows, gaps, {(LOG, 1, chip.uuid): chip}, lambda chip: chip.name != "unknown")

    @pytest.mark.parametrize(
        ("measured", "want"),
        [
            ({"busy_us": HOUR_US}, None),
            ({"busy_us": HOUR_US * 103 // 100}, "busy_us exceeds the time"),
            ({"elapsed_mcycles": 3_600_000}, None),
            ({"elapsed_mcycles": 3_700_000}, "more SM cycles than the maximum clock allows"),
            ({"elapsed_mcycles": 1000, "active_mcycles": 900, "tensor_mcycles": 900}, None),
            ({"elapsed_mcycles": 1000, "active_mcycles": 500, "tensor_mcycles": 600}, "tensor_mcycles exceeds"),
            ({"elapsed_mcycles": 1000, "tensor_mcycles": 1100}, "tensor_mcycles exceeds"),
            ({"elapsed_mcycles": 1000, "fp16_mcycles": 1100}, "fp16_mcycles exceeds the elapsed cycles"),
            ({"fp16_mcycles": 1100}, None),
        ],
    )
    def test_counters_that_can_not_all_be_true(self, measured: dict[str, int], want: str | None) -> None:
        found = self.found(make_row(HOUR_US, "slurm:lab:1", **measured))
        assert codes(found) == ([] if want is None else ["implausible"])
        assert want is None or want in found[0].detail

    @pytest.mark.parametrize(("busy_us", "want"), [(599_999_999, []), (600_000_000, ["unattributed"])])
    def test_a_chip_that_is_busy_for_nobody(self, busy_us: int, want: list[str]) -> None:
        assert codes(self.found(make_row(workload="unattributed", busy_us=busy_us))) == want
        assert self.found(make_row(busy_us=busy_us)) == []

    def test_a_chip_that_can_not_be_read_is_one_finding(self) -> None:
        (found,) = self.found(make_row(2_000_000, "gap"), make_row(3_000_000, "gap"))
        assert (found.code, found.from_us, found.to_us) == ("unmeasured", 0, HOUR_US)
        assert "could not be read for 5.0 s" in found.detail

    def test_chips_that_are_missing_together_are_one_finding(self) -> None:
        times = {"log": LOG, "from_us": 0, "to_us": 1_500_000, "inventory_seq": 1}
        gaps = [Gap(chip=chip, cause=cause, **times) for chip, cause in (("a", "x"), ("b", "x"), ("c", None))]  # type: ignore[arg-type]
        found = self.found(gaps=gaps)
        assert [one.detail for one in found] == [
            "2 chips not measured for 1.5 s (x)",
            "1 chip not measured for 1.5 s (not explained)",
        ]

    def test_a_chip_outside_the_table(self) -> None:
        assert codes(self.found(chip=make_chip("unknown"))) == ["unknown_chip"]


def test_the_gravest_come_first() -> None:
    some = [finding(code, LOG, "") for code in FindingCode]
    order = [one.severity for one in ranked(reversed(some))]
    assert order == sorted(order, key=list(reversed(Severity)).index)
    assert order[0] == "critical"


class TestPage:
    text = (REPO / "protocol" / "spec" / "findings.md").read_text(encoding="utf-8")

    def test_its_table_is_the_codes_with_their_severities(self) -> None:
        rows = re.findall(r"^\| `(\w+)` \| (info|low|medium|high|critical) \|", self.text, flags=re.MULTILINE)
        assert dict(rows) == {str(code): str(severity) for code, severity in SEVERITY.items()}
        assert len(rows) == len(FindingCode)

    def test_its_example_is_a_finding(self) -> None:
        example = re.search(r"<!-- finding -->\n```\n(.*)\n```", self.text)
        assert example is not None
        found: Finding = decode(example[1].encode(), Finding)
        assert found == finding(
            found.code, found.origin, found.detail, seq=found.seq, from_us=found.from_us, to_us=found.to_us
        )
