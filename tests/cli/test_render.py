"""What people see: everything at every width, and nothing that isn't known as a number."""

import io
from collections.abc import Iterable

import pytest
from rich.console import Console, RenderableType

from keyturn_cli import render
from keyturn_protocol.api import FlopInterval, NodeLog, WorkloadTotal
from keyturn_protocol.audit_runs import RunTotal
from keyturn_protocol.findings import FindingCode, finding
from keyturn_protocol.lifecycle import State

ORIGIN = "demo.keyturn.example/node/9a4c29e0a3b3a2860b552045a7dd2b05/1"
WIDTHS = (60, 80, 120, 200)


def shown(what: RenderableType, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False, markup=False, emoji=False).print(what)
    return out.getvalue()


def total(workload: str, undeclared: FlopInterval, declared: FlopInterval | None = None) -> WorkloadTotal:
    return WorkloadTotal(
        workload=workload,
        class_="shared",
        declared_dtype=None if declared is None else "bf16",
        logs=1,
        chips=2,
        time_us=240_000_000,
        gap_us=0,
        energy_mj="82500000",
        from_s=0,
        to_s=3600,
        undeclared=undeclared,
        declared=declared,
    )


TRAINING = total(
    "k8s:00000000-0000-4000-8000-00000000000a",
    FlopInterval(low="1100000000000000", high="46900000000000000", best="18700000000000000"),
    FlopInterval(low="17600000000000000", high="27300000000000000", best="18800000000000000"),
)
POOL = total("gap", FlopInterval(low="0", high="526000000000000000", best="0"))


@pytest.mark.parametrize("width", WIDTHS)
class TestEveryWidth:
    def holds(self, text: str, width: int, parts: Iterable[str]) -> None:
        assert all(part in text for part in parts), text
        assert max(map(len, text.splitlines())) <= width

    def test_totals_keep_names_and_both_ends(self, width: int) -> None:
        ends = ("1.10e15 … 4.69e16", "1.87e16", "1.76e16 … 2.73e16", "1.88e16", "bf16", "<= 5.26e17")
        rest = (TRAINING.workload, "[shared]", "gap: silent or not measured", "4.0 min", "82.5 kJ")
        self.holds(shown(render.workloads([TRAINING, POOL]), width), width, (*ends, *rest))

    def test_runs_keep_what_was_charged_and_what_it_comes_to(self, width: int) -> None:
        run = RunTotal(
            hash="ab" * 32,
            label="aurora-2 pre-training",
            state=State.ACTIVE,
            budget_tflop=24 * 10**12,
            charged_tflop=9_900_000_000_001,
            committed_tflop=24 * 10**12,
            recomputed_flop=9_900_000_000_001 * 10**12 + 1,
            epoch=3,
        )
        parts = ("abababababab", "active", "9.91e24", "2.40e25", "3")
        self.holds(shown(render.runs([run]), width), width, parts)

    def test_findings_keep_their_log(self, width: int) -> None:
        found = finding(FindingCode.DEGRADED, ORIGIN, "driver_lost", seq=18)
        parts = ("low", "degraded", "entry 18", "driver_lost", ORIGIN.rpartition("/node/")[2])
        self.holds(shown(render.findings([found]), width), width, parts)

    def test_nodes_keep_their_state(self, width: int) -> None:
        log = NodeLog(
            origin=ORIGIN,
            node_id="9a4c29e0a3b3a2860b552045a7dd2b05",
            incarnation=1,
            organisation="Org",
            site="Site",
            vkey="unused",
            source="replay",
            chips=2,
            size=21,
            last_entry_us=0,
            last_receipt_s=None,
            state="frozen",
            reason="fork",
        )
        self.holds(shown(render.nodes([log]), width), width, (log.node_id, "Org", "never", "frozen: fork"))


class TestNotKnown:
    @pytest.mark.parametrize("width", WIDTHS)
    def test_a_chip_outside_the_table_has_no_best_estimate_of_zero(self, width: int) -> None:
        text = shown(render.workloads([total("slurm:x:1", FlopInterval(low="0", high=None, best="0"))]), width)
        assert "0 … unbounded" in text
        assert "not known" in text

    def test_no_rows_at_all(self) -> None:
        assert "WORKLOAD" in shown(render.workloads([]), 200)
