"""What the ledger of leases lets pass, and what it makes of reports. Sums under random hosts: test_leases_machine."""

from keyturn_protocol.leases import slice_tflop
from tests.support.leasing import RUN, SECOND, TTL, Books, boot, log
from tests.support.parties import BEGIN, scope

A, B, C = log("a"), log("b"), log("c")
OTHER = "42" * 32
SILENT_S = 300


class TestCaps:
    def test_what_a_host_may_still_use_counts_as_used(self) -> None:
        books = Books()
        books.grant(A, 40)
        books.grant(B, 40)
        assert books.why(C, 21) == "exhausted"
        assert books.why(C, 20) is None

    def test_a_cap_counts_what_was_charged_before(self) -> None:
        books = Books()
        lease = books.grant(A, 40)
        books.report(A, lease, 30, "adopted")
        assert books.why(A, 101) == "exhausted"
        assert books.why(A, 100) is None

    def test_a_renewal_takes_up_what_the_lease_before_left(self) -> None:
        books = Books()
        first = books.grant(A, 60)
        books.report(A, first, 5, "adopted")
        second = books.grant(A, 60)
        assert books.ledger.committed_tflop(RUN) == 60
        books.report(A, second, 10, "adopted")
        assert (books.ledger.charged_tflop(RUN), books.ledger.committed_tflop(RUN)) == (10, 60)

    def test_a_lower_cap_frees_nothing_until_the_host_speaks_of_it(self) -> None:
        """The note may never arrive, and then the host goes on under the higher one."""
        books = Books()
        first = books.grant(A, 90)
        books.report(A, first, 10, "adopted")
        second = books.grant(A, 20)
        assert books.why(B, 11) == "exhausted"
        books.report(A, first, 15)
        assert books.why(B, 11) == "exhausted", "it speaks of the older one"
        books.report(A, second, 15, "adopted")
        assert books.why(B, 80) is None
        assert books.why(B, 81) == "exhausted"

    def test_the_last_word_frees_what_was_not_used(self) -> None:
        books = Books()
        lease = books.grant(A, 90)
        books.report(A, lease, 12, "final")
        assert books.why(B, 88) is None
        assert books.why(B, 89) == "exhausted"

    def test_a_host_that_never_reports_has_used_it_all(self) -> None:
        books = Books()
        books.grant(A, 90)
        assert books.why(B, 11, at_s=10**6) == "exhausted"

    def test_a_report_is_rounded_up_to_a_tflop(self) -> None:
        books = Books()
        books.report(A, books.grant(A, 90), 12.000001, "final")
        assert books.ledger.charged_tflop(RUN) == 13

    def test_runs_have_accounts_of_their_own(self) -> None:
        books = Books()
        books.grant(A, 90)
        assert books.why(B, 100, subject=OTHER) is None


class TestReports:
    def test_less_than_before_is_a_restored_state_and_the_higher_counts(self) -> None:
        books = Books()
        lease = books.grant(A, 90)
        books.report(A, lease, 50, "adopted")
        assert books.report(A, lease, 20) == ["lease_rollback"]
        assert books.ledger.charged_tflop(RUN) == 50

    def test_more_than_the_cap_is_an_overrun_and_counts(self) -> None:
        books = Books()
        lease = books.grant(A, 90)
        assert books.report(A, lease, 90, "adopted") == []
        assert books.report(A, lease, 90.5, at_s=1) == ["lease_overrun"]
        assert books.ledger.committed_tflop(RUN) == 91

    def test_a_renewal_that_caps_lower_than_what_was_charged_meanwhile_is_no_overrun(self) -> None:
        books = Books()
        books.report(A, books.grant(A, 90), 10, "adopted")
        second = books.grant(A, 40)
        assert books.report(A, second, 70, "adopted") == []
        assert books.report(A, second, 70) == []
        assert books.report(A, second, 71) == ["lease_overrun"]

    def test_the_same_report_again_changes_nothing(self) -> None:
        books = Books()
        lease = books.grant(A, 90)
        assert books.report(A, lease, 5, "adopted") == []
        assert books.report(A, lease, 5, "adopted") == []
        assert books.ledger.committed_tflop(RUN) == 90

    def test_a_lease_of_another_log_or_of_nobody(self) -> None:
        books = Books()
        lease = books.grant(A, 40)
        assert books.report(B, lease, 5) == ["lease_unknown"]
        assert books.report(A, "00" * 32, 5) == ["lease_unknown"]
        assert books.ledger.charged_tflop(RUN) == 0

    def test_an_older_lease_than_the_one_that_the_host_is_on(self) -> None:
        books = Books()
        first = books.grant(A, 40)
        books.report(A, first, 1, "adopted")
        second = books.grant(A, 60)
        books.report(A, second, 2, "adopted")
        assert books.report(A, first, 3) == ["lease_unknown"]


class TestOrder:
    def test_sequences_have_no_holes_and_none_twice(self) -> None:
        books = Books()
        assert books.why(A, 10, sequence=1) == "stale"
        books.grant(A, 10)
        assert books.why(A, 10, sequence=0) == "stale"

    def test_a_lease_says_what_was_charged_so_far(self) -> None:
        books = Books()
        books.report(A, books.grant(A, 90), 50, "adopted")
        assert books.why(A, 90, charged_tflop=49) == "stale"
        assert books.why(A, 90, charged_tflop=50) is None

    def test_an_entry_gets_one_lease(self) -> None:
        books = Books()
        books.grant(A, 10, seq=5)
        assert books.why(A, 10, seq=5) == "stale"
        assert books.why(A, 10, seq=4) == "stale"

    def test_an_entry_from_before_the_last_word_gets_none(self) -> None:
        books = Books()
        books.report(A, books.grant(A, 10, seq=5), 1, "final", seq=8)
        assert books.why(A, 10, seq=7) == "stale"
        assert books.why(A, 10, seq=9) is None

    def test_a_lease_that_was_never_spoken_of_is_given_up_by_asking_again(self) -> None:
        """The host takes only what its newest entry asked for, so the older lease binds nothing."""
        books = Books()
        lost = books.grant(A, 90)
        books.grant(A, 50)
        assert books.ledger.committed_tflop(RUN) == 50
        assert books.report(A, lost, 1, "adopted") == ["lease_unknown"]

    def test_another_boot_takes_the_last_word_on_the_one_before(self) -> None:
        books = Books()
        lease = books.grant(A, 90)
        books.report(A, lease, 1, "adopted")
        assert books.why(A, 90, boot_id=boot(2)) == "owes_report"
        books.report(A, lease, 3, "final")
        assert books.why(A, 90, boot_id=boot(2)) is None

    def test_a_lease_of_another_boot_that_was_never_spoken_of_is_void(self) -> None:
        books = Books()
        books.grant(A, 90)
        assert books.why(A, 90, boot_id=boot(2)) is None

    def test_a_later_log_of_the_node_writes_the_earlier_one_off(self) -> None:
        books = Books()
        lease = books.grant(A, 60)
        books.report(A, lease, 5, "adopted")
        later = log("a", 2)
        assert books.why(later, 41) == "exhausted"
        books.grant(later, 40)
        assert (books.ledger.charged_tflop(RUN), books.ledger.committed_tflop(RUN)) == (60, 100)
        books.report(A, lease, 6, "final")
        assert books.ledger.committed_tflop(RUN) == 46, "the last word on it was on its way"


class TestChips:
    def test_no_more_at_once_than_allowed(self) -> None:
        books = Books(scope(budget_tflop=100, chips=3))
        books.grant(A, 10, chips=["a0", "a1"])
        assert books.why(B, 10, chips=["b0", "b1"]) == "too_many_chips"
        assert books.why(B, 10, chips=["b0"]) is None

    def test_a_renewal_counts_its_own_chips_once(self) -> None:
        books = Books(scope(budget_tflop=100, chips=2))
        books.report(A, books.grant(A, 10, chips=["a0", "a1"]), 1, "adopted")
        assert books.why(A, 10, chips=["a0", "a1"]) is None

    def test_a_silent_host_gives_its_chips_up_but_not_its_slice(self) -> None:
        books = Books(scope(budget_tflop=100, chips=1))
        books.grant(A, 40)
        assert books.why(B, 40, at_s=SILENT_S - 1) == "too_many_chips"
        assert books.why(B, 60, at_s=SILENT_S) is None
        assert books.why(B, 61, at_s=SILENT_S) == "exhausted"

    def test_a_host_that_is_heard_of_keeps_them_until_its_lease_is_over(self) -> None:
        books = Books(scope(budget_tflop=100, chips=1))
        lease = books.grant(A, 40)
        for at_s in range(200, TTL, 200):
            books.report(A, lease, 1, at_s=at_s)
        assert books.why(B, 10, at_s=TTL - 1) == "too_many_chips"
        assert books.why(B, 10, at_s=TTL) is None

    def test_a_host_that_comes_back_gets_its_chips_only_where_there_is_room(self) -> None:
        books = Books(scope(budget_tflop=100, chips=1))
        away = books.grant(A, 40)
        spare = books.grant(B, 40, at_s=SILENT_S)
        books.report(A, away, 7, at_s=SILENT_S + 1)
        assert books.ledger.charged_tflop(RUN) == 7
        assert books.ledger.chips_held(RUN, BEGIN + (SILENT_S + 1) * SECOND) == 1
        books.report(B, spare, 1, "final", at_s=SILENT_S + 2)
        books.report(A, away, 8, at_s=SILENT_S + 3)
        assert books.why(B, 10, at_s=SILENT_S + 4) == "too_many_chips"

    def test_a_chip_is_under_one_lease(self) -> None:
        books = Books()
        lease = books.grant(A, 10, chips=["GPU-x"])
        assert books.why(B, 10, chips=["GPU-x"]) == "chip_taken"
        assert books.why(A, 10, chips=["GPU-x"], subject=OTHER) == "chip_taken"
        assert books.why(B, 10, chips=["GPU-x"], subject=OTHER) == "chip_taken"
        books.report(A, lease, 1, "final")
        assert books.why(B, 10, chips=["GPU-x"], subject=OTHER) is None

    def test_a_chip_of_a_host_that_is_gone_comes_free_when_its_lease_is_over(self) -> None:
        books = Books()
        books.grant(A, 10, chips=["GPU-x"])
        assert books.why(B, 10, chips=["GPU-x"], at_s=TTL - 1) == "chip_taken"
        assert books.why(B, 10, chips=["GPU-x"], at_s=TTL) is None

    def test_a_chip_goes_to_the_later_log_of_its_own_node(self) -> None:
        books = Books()
        books.grant(A, 10)
        assert books.why(log("a", 2), 10) is None


class TestSlices:
    def slice(self, books: Books, host: str, *, rate: int = 10**6, hosts: int = 1, ttl: int = TTL) -> int:
        lease = books.lease(log(host), 1, ttl_s=ttl)
        return slice_tflop(
            books.ledger, lease, log(host), books.limits, rate_tflop_s=rate, hosts=hosts, at_us=BEGIN
        )  # fmt: skip

    def test_no_more_than_the_chips_can_do_in_the_lease_s_time(self) -> None:
        assert self.slice(Books(), "a", rate=2, ttl=7) == 14

    def test_hosts_that_start_together_get_the_same(self) -> None:
        books = Books()
        given = []
        for host in "abcd":
            given.append(self.slice(books, host, hosts=4))
            books.grant(log(host), given[-1])
        assert given == [25, 25, 25, 25]

    def test_who_is_ahead_gets_less_at_its_next_renewal_and_the_others_more(self) -> None:
        books = Books()
        first = {host: books.grant(log(host), 50) for host in "ab"}
        books.report(A, first["a"], 40, "adopted")
        books.report(B, first["b"], 0, "adopted")
        ahead = 40 + self.slice(books, "a", hosts=2)
        assert ahead == 50, "what the other may use stays the other's"
        second = books.grant(B, self.slice(books, "b", hosts=2))
        assert books.leases[second].upto_tflop == 30
        books.report(B, second, 0, "adopted")
        assert 40 + self.slice(books, "a", hosts=2) == 70

    def test_none_of_an_exhausted_budget(self) -> None:
        books = Books()
        books.report(A, books.grant(A, 100), 100, "final")
        assert self.slice(books, "b") == 0


def test_nothing_costs_more_for_how_many_leases_there_were() -> None:
    """The ledger keeps nothing of a lease that is over."""
    books = Books(scope(budget_tflop=10**9, chips=8))
    for number in range(500):
        books.report(A, books.grant(A, number + 10, at_s=number), number, "adopted", at_s=number)
    ledger = books.ledger
    assert len(ledger.account(RUN, A).open) == 1
    kept = [len(vars(ledger)[name]) for name in ("subjects", "_open", "_chips", "_holds", "_logs")]
    assert kept == [1, 1, 1, 1, 1]
    holds = ledger._holds[RUN]
    assert len(holds._ends) < 2 * SILENT_S + 10
