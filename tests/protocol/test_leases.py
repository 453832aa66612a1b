"""Nobody spends a TFLOP twice, whoever crashes, restores a backup or falls silent."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from keyturn_protocol.authority import Refused, Why
from keyturn_protocol.leases import SILENT_US, Account, grant, heard, slice_tflop

SECOND = 1_000_000
TTL = 3600


def leased(account: Account, node: str = "a", sequence: int = 0, **changes: Any) -> Account:
    fields: dict[str, Any] = {"chips": [f"{node}-0"], "tflop": 40, "ttl_s": TTL, "at_us": 0} | changes
    return grant(account, f"{node}/{sequence}", node=node, sequence=sequence, **fields)


def refused(why: Why, call: Callable[[], object]) -> None:
    with pytest.raises(Refused) as refusal:
        call()
    assert refusal.value.why is why


def test_what_is_granted_is_taken_from_what_is_left_until_less_is_reported() -> None:
    account = leased(leased(Account(100, 8)), "b")
    assert account.left_tflop == 20
    refused(Why.EXHAUSTED, lambda: leased(account, "c"))
    account = heard(account, "a/0", used_tflop=10, final=False, at_us=1)
    assert account.left_tflop == 20
    account = heard(account, "a/0", used_tflop=15, final=True, at_us=2)
    assert (account.left_tflop, account.used_tflop) == (45, 15)
    assert leased(account, "c").left_tflop == 5


def test_a_host_that_never_reports_has_used_it_all() -> None:
    account = leased(Account(100, 8))
    refused(Why.EXHAUSTED, lambda: leased(account, "b", tflop=61, at_us=10**15))


def test_a_silent_host_gives_its_chips_up_but_not_its_slice() -> None:
    account = leased(Account(100, 1))
    refused(Why.TOO_MANY_CHIPS, lambda: leased(account, "b", at_us=SILENT_US - 1))
    later = leased(account, "b", at_us=SILENT_US)
    assert later.left_tflop == 20


def test_a_host_that_comes_back_gets_its_chips_only_where_there_is_room() -> None:
    account = leased(leased(Account(100, 1)), "b", at_us=SILENT_US)
    back = heard(account, "a/0", used_tflop=7, final=False, at_us=SILENT_US + 1)
    assert (back.chips_held(SILENT_US + 1), back.grants["a/0"].used_tflop) == (1, 7)
    free = heard(account, "b/0", used_tflop=1, final=True, at_us=SILENT_US + 1)
    back = heard(free, "a/0", used_tflop=7, final=False, at_us=SILENT_US + 2)
    refused(Why.TOO_MANY_CHIPS, lambda: leased(back, "b", 1, tflop=1, at_us=SILENT_US + 3))


def test_an_expired_lease_holds_no_chips() -> None:
    account = heard(leased(Account(100, 1)), "a/0", used_tflop=1, final=False, at_us=TTL * SECOND - 1)
    refused(Why.TOO_MANY_CHIPS, lambda: leased(account, "b", at_us=TTL * SECOND - 1))
    leased(account, "b", at_us=TTL * SECOND)


def test_a_renewal_takes_the_report_of_the_lease_before() -> None:
    account = leased(Account(100, 8))
    refused(Why.OWES_REPORT, lambda: leased(account, "a", 1))
    account = heard(account, "a/0", used_tflop=40, final=True, at_us=1)
    leased(account, "a", 1)


@pytest.mark.parametrize("sequence", [0, 2])
def test_a_sequence_is_never_used_twice_or_left_out(sequence: int) -> None:
    account = heard(leased(Account(100, 8)), "a/0", used_tflop=1, final=True, at_us=1)
    refused(Why.STALE, lambda: grant(account, "x", node="a", sequence=sequence, chips=["c"], tflop=1, ttl_s=1, at_us=1))


def test_a_report_from_a_backup_says_less_than_before() -> None:
    account = heard(leased(Account(100, 8)), "a/0", used_tflop=20, final=False, at_us=1)
    refused(Why.STALE, lambda: heard(account, "a/0", used_tflop=19, final=True, at_us=2))


def test_a_last_report_is_taken_once_and_may_come_again() -> None:
    account = heard(leased(Account(100, 8)), "a/0", used_tflop=20, final=True, at_us=1)
    assert heard(account, "a/0", used_tflop=20, final=True, at_us=2) is account
    refused(Why.OVER, lambda: heard(account, "a/0", used_tflop=30, final=True, at_us=2))
    refused(Why.UNKNOWN, lambda: heard(account, "b/0", used_tflop=30, final=True, at_us=2))


def test_a_host_that_spent_more_than_its_slice_takes_what_it_spent() -> None:
    account = heard(leased(Account(100, 8)), "a/0", used_tflop=70, final=False, at_us=1)
    assert account.left_tflop == 30
    account = heard(account, "a/0", used_tflop=130, final=False, at_us=2)
    assert account.left_tflop == 0


@pytest.mark.parametrize(
    ("rate", "ttl", "hosts", "slice_"), [(1, 10, 1, 10), (1, 1000, 1, 100), (1, 1000, 3, 33), (1, 1000, 101, 0)]
)
def test_a_slice_is_what_can_be_spent_or_a_share_of_what_is_left(rate: int, ttl: int, hosts: int, slice_: int) -> None:
    assert slice_tflop(Account(100, 8), rate_tflop_s=rate, ttl_s=ttl, hosts=hosts) == slice_


NODES = ["a", "b", "c"]


class Hosts(RuleBasedStateMachine):
    """Hosts that spend up to their slice, crash, restore their state and fall silent; what they spent is known."""

    def __init__(self) -> None:
        super().__init__()
        self.account = Account(1000, 2)
        self.spent: dict[str, int] = {}
        self.now_us = 0

    @rule(node=st.sampled_from(NODES), hosts=st.integers(1, 4), rate=st.integers(1, 5))
    def lease(self, node: str, hosts: int, rate: int) -> None:
        last = self.account.last_of(node)
        sequence = 0 if last is None else last.sequence + 1
        tflop = slice_tflop(self.account, rate_tflop_s=rate, ttl_s=100, hosts=hosts)
        try:
            self.account = leased(self.account, node, sequence, tflop=tflop, ttl_s=100, at_us=self.now_us)
        except Refused:
            return
        self.spent[f"{node}/{sequence}"] = 0

    @precondition(lambda self: self.spent)
    @rule(data=st.data())
    def spend(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(sorted(self.spent)))
        if not self.account.grants[lease].closed:
            self.spent[lease] = data.draw(st.integers(self.spent[lease], self.account.grants[lease].tflop))

    @precondition(lambda self: self.spent)
    @rule(data=st.data(), final=st.booleans(), forgotten=st.integers(0, 50))
    def report(self, data: st.DataObject, final: bool, forgotten: int) -> None:
        """What was spent; a host that restored a backup says less and is believed only if it never said more."""
        lease = data.draw(st.sampled_from(sorted(self.spent)))
        said = max(0, self.spent[lease] - (0 if final else forgotten))
        try:
            self.account = heard(self.account, lease, used_tflop=said, final=final, at_us=self.now_us)
        except Refused:
            return

    @rule(seconds=st.integers(1, 400))
    def wait(self, seconds: int) -> None:
        self.now_us += seconds * SECOND

    @invariant()
    def no_tflop_is_spent_twice(self) -> None:
        assert sum(self.spent.values()) <= self.account.committed_tflop <= self.account.budget_tflop

    @invariant()
    def chips_at_once_are_bounded(self) -> None:
        assert self.account.chips_held(self.now_us) <= self.account.chips


TestHosts = Hosts.TestCase
TestHosts.settings = settings(deadline=None, max_examples=60, stateful_step_count=30)
