"""What is free is counted by organisation, lineage, node and window, however many small runs it is cut into."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn_protocol.lease import AllowanceName, lease_subject
from keyturn_protocol.policy import Allowance
from tests.support.leasing import RUN, TTL, Books, log

A, B, C = log("a"), log("b"), log("c")
DAY = 86_400
WINDOW = 7 * DAY


def allowance(**changes: Any) -> Allowance:
    fields: dict[str, Any] = {
        "window_s": WINDOW,
        "organisation_tflop": 100,
        "lineage_tflop": 60,
        "diagnostics_tflop": 10,
        "chips": 4,
        "lease_s": TTL,
    }
    return Allowance(**fields | changes)


def free(organisation: str = "acme", lineage: str = "aurora") -> AllowanceName:
    return AllowanceName(kind="allowance", organisation=organisation, lineage=lineage)


DIAGNOSTICS = AllowanceName(kind="diagnostics", organisation="acme", lineage=None)


class TestSums:
    def test_many_small_runs_of_one_organisation(self) -> None:
        books = Books(allowance())
        books.grant(A, 60, subject=free())
        assert books.why(B, 41, subject=free(lineage="borealis")) == "exhausted"
        assert books.why(B, 40, subject=free(lineage="borealis")) is None

    def test_many_small_runs_of_one_lineage_in_several_organisations(self) -> None:
        books = Books(allowance())
        books.grant(A, 40, subject=free())
        assert books.why(B, 21, subject=free("globex")) == "exhausted"
        assert books.why(B, 20, subject=free("globex")) is None
        assert books.why(B, 60, subject=free("globex", "borealis")) is None

    def test_names_that_would_run_together_are_apart(self) -> None:
        books = Books(allowance())
        books.grant(A, 60, subject=free("acme/x", "y"))
        assert books.why(B, 60, subject=free("acme", "x/y")) is None

    def test_runs_with_a_permit_take_nothing_of_it(self) -> None:
        books = Books(allowance())
        permitted = Books()
        permitted.grant(A, 100, subject=RUN)
        permitted.limits = books.limits
        assert permitted.why(B, 60, subject=free()) is None

    def test_chips_at_once_are_those_of_the_whole_organisation(self) -> None:
        books = Books(allowance())
        books.grant(A, 10, subject=free(), chips=["a0", "a1", "a2"])
        other = free(lineage="borealis")
        assert books.why(B, 10, subject=other, chips=["b0", "b1"]) == "too_many_chips"
        assert books.why(B, 10, subject=other, chips=["b0"]) is None
        assert books.why(B, 10, subject=free("globex"), chips=["b0", "b1"]) is None


class TestWindow:
    def test_what_was_used_comes_free_a_window_later_and_not_before(self) -> None:
        books = Books(allowance())
        books.report(A, books.grant(A, 60, subject=free()), 60, "final", at_s=600)
        assert books.why(B, 60, subject=free(), at_s=WINDOW) == "exhausted"
        assert books.why(B, 60, subject=free(), at_s=WINDOW + 2 * 3600) is None

    def test_what_a_lease_left_comes_free_with_its_last_word(self) -> None:
        books = Books(allowance())
        lease = books.grant(A, 60, subject=free())
        books.report(A, lease, 5, "final", at_s=600)
        assert books.why(B, 55, subject=free(), at_s=601) is None
        assert books.why(B, 56, subject=free(), at_s=601) == "exhausted"

    def test_a_lease_of_a_host_that_fell_silent_counts_until_a_window_after_its_end(self) -> None:
        books = Books(allowance())
        books.grant(A, 60, subject=free())
        assert books.why(B, 60, subject=free(), at_s=TTL + WINDOW - 1) == "exhausted"
        assert books.why(B, 60, subject=free(), at_s=TTL + WINDOW) is None

    def test_a_host_goes_on_under_its_own_account_for_ever(self) -> None:
        """Charges add up over years; only those of the window count."""
        books = Books(allowance())
        weeks = [week * (WINDOW + 2 * 3600) for week in range(20)]
        for charged, at_s in zip(range(60, 21 * 60, 60), weeks, strict=True):
            books.report(A, books.grant(A, charged, subject=free(), at_s=at_s), charged, at_s=at_s)
        assert books.why(A, 20 * 60 + 1, subject=free(), at_s=weeks[-1] + 1) == "exhausted"

    def test_a_log_that_was_left_is_written_off_for_a_window(self) -> None:
        books = Books(allowance())
        books.grant(A, 50, subject=free())
        later = log("a", 2)
        books.grant(later, 10, subject=free())
        assert books.why(B, 1, subject=free(), at_s=TTL + WINDOW - 1) == "exhausted"
        assert books.why(B, 50, subject=free(), at_s=TTL + WINDOW) is None


class TestDiagnostics:
    def test_so_much_a_node_and_day(self) -> None:
        books = Books(allowance())
        lease = books.grant(A, 10, subject=DIAGNOSTICS)
        books.report(A, lease, 10, "final", at_s=1)
        assert books.why(A, 11, subject=DIAGNOSTICS, at_s=DAY) == "exhausted"
        assert books.why(A, 20, subject=DIAGNOSTICS, at_s=DAY + 2 * 3600) is None
        assert books.why(B, 10, subject=DIAGNOSTICS, at_s=2) is None

    def test_they_take_nothing_of_the_allowance_and_all_nodes_may_be_tested_at_once(self) -> None:
        books = Books(allowance())
        for host in "abcdef":
            books.grant(log(host), 10, subject=DIAGNOSTICS)
        assert books.why(C, 60, subject=free(), chips=["c9"]) is None

    def test_another_log_of_the_node_gets_no_second_share(self) -> None:
        books = Books(allowance())
        books.grant(A, 8, subject=DIAGNOSTICS)
        assert books.why(log("a", 2), 3, subject=DIAGNOSTICS) == "exhausted"


steps = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from(["acme", "globex"]),
        st.sampled_from(["aurora", "borealis"]),
        st.integers(1, 80),  # asked for
        st.integers(0, 100),  # used, in percent of what was allowed
        st.sampled_from(["report", "final", "silent"]),
        st.integers(0, 3 * DAY),  # until the next step
    ),
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_no_window_ever_holds_more_than_is_free(steps: list[tuple[Any, ...]]) -> None:
    """What hosts really used, and when, whether or not they said so."""
    books = Books(allowance(chips=64))
    used: list[tuple[int, str, str, int]] = []
    now_s = 0
    charged: dict[tuple[str, str, str], int] = {}
    for host, organisation, lineage, wanted, percent, ends, pause in steps:
        key, origin, subject = (host, organisation, lineage), log(host), free(organisation, lineage)
        chips = [f"{host}-{organisation}-{lineage}"]
        before = charged.get(key, 0)
        account = books.ledger.account(lease_subject(books.lease(origin, 1, subject=subject)), origin)
        upto = account.charged_tflop + wanted
        if books.why(origin, upto, subject=subject, chips=chips, at_s=now_s) is None:
            lease = books.grant(origin, upto, subject=subject, chips=chips, at_s=now_s)
            books.report(origin, lease, before, "adopted", at_s=now_s)
            done = (upto - before) * percent // 100
            charged[key] = before + done
            used.append((now_s + TTL // 2, organisation, lineage, done))
            now_s += TTL // 2
            if ends != "silent":
                books.report(origin, lease, charged[key], ends, at_s=now_s)
        now_s += pause
    for end, *_ in used:
        window = [one for one in used if end - WINDOW < one[0] <= end]
        for organisation in ("acme", "globex"):
            assert sum(done for _, of, _, done in window if of == organisation) <= 100
        for lineage in ("aurora", "borealis"):
            assert sum(done for _, _, of, done in window if of == lineage) <= 60
