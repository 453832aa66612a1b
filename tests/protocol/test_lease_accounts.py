"""What one host says can't use a run up: it counts up to what its leases allow and its chips can have done meanwhile.

And not for less than that: a host that computes beyond its lease is charged for all of it, to the run.
"""

import random

import pytest

from keyturn_protocol.chips import chip_table
from keyturn_protocol.lease import AllowanceName, lease_subject
from keyturn_protocol.lease_accounts import CHIP_TFLOP_S
from keyturn_protocol.policy import Allowance
from tests.support.leasing import RUN, TTL, Books, log
from tests.support.parties import scope

A, B = log("a"), log("b")
BUDGET = 10**9
HUGE = 10**60


def books(budget: int = BUDGET) -> Books:
    return Books(scope(budget_tflop=budget, chips=64))


class TestHugeReports:
    def test_one_huge_report_does_not_use_a_run_up(self) -> None:
        made = books()
        lease = made.grant(A, 100)
        assert made.report(A, lease, HUGE, "adopted") == ["lease_overrun"]
        assert made.ledger.charged_tflop(RUN) == made.ledger.committed_tflop(RUN) == 100
        assert made.why(B, BUDGET - 100) is None
        assert made.why(B, BUDGET - 99) == "exhausted"

    def test_nor_does_it_as_a_last_word_or_under_a_renewal(self) -> None:
        made = books()
        made.report(A, made.grant(A, 100), 0, "adopted")
        lease = made.grant(A, 200)
        made.report(A, lease, HUGE, "adopted")
        made.report(A, lease, HUGE, "final")
        assert made.ledger.committed_tflop(RUN) == 200

    def test_the_log_that_says_so_gets_nothing_more(self) -> None:
        made = books()
        made.report(A, made.grant(A, 100), HUGE, "final")
        assert made.why(A, 10**15) == "exhausted"
        assert made.ledger.account(RUN, A).charged_tflop == HUGE

    def test_a_log_that_says_a_little_too_much_gets_no_cap_above_that(self) -> None:
        """Caps are of all that a log charged: the next one would count what it said after all."""
        made = books(1000)
        made.report(A, made.grant(A, 100), 400, "final")
        assert made.ledger.charged_tflop(RUN) == 100
        assert made.why(A, 401) == "exhausted"
        assert made.why(B, 901) == "exhausted"
        assert made.why(B, 900) is None

    def test_the_finding_says_how_much_counts(self) -> None:
        made = books()
        lease = made.grant(A, 100)
        (found,) = made.irregular(A, lease, 500, at_s=0)
        assert found.detail == (
            f"{500 * 10**12} FLOP charged, 100 TFLOP allowed; 100 TFLOP of it count: no chips do more in that time"
        )
        (found,) = made.irregular(A, lease, 600, at_s=1)
        assert found.detail == f"{600 * 10**12} FLOP charged, 500 TFLOP allowed"

    def test_a_node_that_leaves_the_log_has_what_counts_written_off(self) -> None:
        made = books()
        made.report(A, made.grant(A, 100), HUGE, "adopted")
        made.grant(log("a", 2), 100)
        assert made.ledger.committed_tflop(RUN) == 200

    def test_time_before_the_lease_between_leases_and_after_it_is_none_for_its_chips(self) -> None:
        made = books(10**12)
        made.report(A, made.grant(A, 100, at_s=1000), 0, "final", at_s=1001)
        lease = made.grant(A, 100, at_s=5000)
        made.report(A, lease, HUGE, "adopted", at_s=5001)
        assert made.ledger.charged_tflop(RUN) == CHIP_TFLOP_S
        for after_s in (TTL, TTL + 1, 100 * TTL):
            made.report(A, lease, HUGE, at_s=5000 + after_s)
            assert made.ledger.charged_tflop(RUN) == TTL * CHIP_TFLOP_S

    def test_chips_that_two_leases_name_count_once(self) -> None:
        made = books(10**12)
        made.report(A, made.grant(A, 100, chips=["GPU-0", "GPU-1"]), 0, "adopted")
        lease = made.grant(A, 200, chips=["GPU-1", "GPU-2"])
        made.report(A, lease, HUGE, "adopted", at_s=10)
        assert made.ledger.charged_tflop(RUN) == 3 * 10 * CHIP_TFLOP_S

    @pytest.mark.parametrize("kind", ["allowance", "diagnostics"])
    def test_one_huge_report_does_not_use_an_allowance_up(self, kind: str) -> None:
        """Of an organisation, a lineage, or for tests of the hardware: whoever else has it goes on."""
        most = {"organisation_tflop": 1000, "lineage_tflop": 1000, "diagnostics_tflop": 1000}
        made = Books(Allowance(window_s=7 * 86_400, chips=64, lease_s=TTL, **most))
        name = AllowanceName(kind=kind, organisation="acme", lineage="aurora" if kind == "allowance" else None)  # type: ignore[arg-type]
        made.report(A, made.grant(A, 100, subject=name), 5000, "final")
        assert made.why(A, 5001, subject=name) == "exhausted"
        assert made.why(A, 5001, subject=name, at_s=30 * 86_400) == "exhausted"
        if kind == "allowance":
            assert made.why(B, 901, subject=name) == "exhausted"
        assert made.why(B, 900, subject=name) is None
        assert made.ledger.charged_tflop(lease_subject(made.lease(A, 10**9, subject=name))) == 100


class TestBeyondTheLease:
    """The other way round: nobody computes for nothing."""

    def test_what_chips_can_have_done_counts_beyond_the_cap(self) -> None:
        made = books()
        lease = made.grant(A, 100)
        assert made.report(A, lease, 10 * CHIP_TFLOP_S, "adopted", at_s=10) == ["lease_overrun"]
        assert made.ledger.charged_tflop(RUN) == 10 * CHIP_TFLOP_S
        assert made.why(B, BUDGET - 10 * CHIP_TFLOP_S) is None
        assert made.why(B, BUDGET - 10 * CHIP_TFLOP_S + 1) == "exhausted"

    def test_a_run_whose_hosts_go_beyond_their_leases_is_used_up(self) -> None:
        made = books(CHIP_TFLOP_S)
        lease = made.grant(A, 100)
        made.report(A, lease, CHIP_TFLOP_S, "adopted", at_s=1)
        assert made.ledger.charged_tflop(RUN) == CHIP_TFLOP_S
        assert made.why(B, 1) == "exhausted"

    def test_what_was_said_too_early_counts_once_there_was_time_for_it(self) -> None:
        """A clock of the verifier that stood still makes nothing free."""
        made = books()
        lease = made.grant(A, 100)
        made.report(A, lease, 5 * CHIP_TFLOP_S, "adopted", at_s=0)
        assert made.ledger.charged_tflop(RUN) == 100
        for now_s, counts in ((1, 1), (4, 4), (5, 5), (600, 5)):
            made.report(A, lease, 5 * CHIP_TFLOP_S, at_s=now_s)
            assert made.ledger.charged_tflop(RUN) == counts * CHIP_TFLOP_S

    def test_it_counts_also_by_the_next_lease_alone(self) -> None:
        made = books()
        made.report(A, made.grant(A, 100), 5 * CHIP_TFLOP_S, "adopted", at_s=0)
        assert made.why(A, 6 * CHIP_TFLOP_S, at_s=4) == "exhausted"
        made.grant(A, 6 * CHIP_TFLOP_S, at_s=5)
        assert made.ledger.charged_tflop(RUN) == 5 * CHIP_TFLOP_S

    def test_it_counts_also_as_the_node_leaves_the_log(self) -> None:
        made = books()
        made.report(A, made.grant(A, 100), 5 * CHIP_TFLOP_S, "adopted", at_s=0)
        made.grant(log("a", 2), 1, at_s=3)
        assert made.ledger.charged_tflop(RUN) == 3 * CHIP_TFLOP_S

    def test_what_counted_once_stays_under_a_lower_cap(self) -> None:
        made = books()
        made.report(A, made.grant(A, 90), 10, "adopted")
        second = made.grant(A, 40)
        made.report(A, second, 70, "adopted")
        assert made.report(A, second, 71) == ["lease_overrun"]
        assert made.ledger.charged_tflop(RUN) == 70

    def test_no_chip_of_the_table_does_so_much(self) -> None:
        for spec in chip_table().chips:
            figures = [*spec.peak_tensor_gflops.values(), *spec.peak_vector_gflops.values()]
            # All pipes together, at a clock above the one that the peaks are published for.
            assert sum(figure.high for figure in figures) * 2 < CHIP_TFLOP_S * 1000, spec.sku

    @pytest.mark.parametrize("seed", range(20))
    def test_as_a_sum_over_seconds_has_it(self, seed: int) -> None:
        """Against another way to count: second by second, chip by chip, with every report held against that."""
        dice, made = random.Random(seed), books(10**12)
        now_s, said, counts, possible, on = 0, 0, 0, 0, ""
        open_: dict[str, tuple[int, set[str], int]] = {}
        for _ in range(60):
            pause = dice.choice([0, 1, 7, 600, 2 * TTL])
            for second in range(now_s, now_s + pause):
                chips = set().union(*(chips for _, chips, _ in open_.values())) if open_ else set()
                if second < max((ends for _, _, ends in open_.values()), default=0):
                    possible += len(chips) * CHIP_TFLOP_S
            now_s += pause
            match dice.choice(["grant", "report", "report", "report", "final"]):
                case "grant":
                    cap = made.ledger.account(RUN, A).charged_tflop + dice.choice([1, 10**6])
                    if made.why(A, cap, at_s=now_s) is not None:
                        continue
                    counts = max(counts, min(said, possible)) if open_ else counts
                    chips = {f"GPU-{at}" for at in range(dice.randint(1, 3))}
                    possible = possible if open_ else counts
                    digest = made.grant(A, cap, at_s=now_s, chips=sorted(chips))
                    open_ = {key: value for key, value in open_.items() if key == on}
                    open_[digest] = (cap, chips, now_s + TTL)
                case event:
                    if not open_:
                        continue
                    on = dice.choice(list(open_))
                    said = max(said, said + dice.choice([0, 1, 10**5, 10**8]))
                    cap = max(cap for cap, _, _ in open_.values())
                    made.report(A, on, said, "final" if event == "final" else "adopted", at_s=now_s)
                    counts = max(counts, min(said, max(possible, cap)))
                    if event == "final":
                        open_, on = {}, ""
                    else:
                        place = list(open_).index(on)
                        open_ = dict(list(open_.items())[place:])
            assert made.ledger.charged_tflop(RUN) == counts
