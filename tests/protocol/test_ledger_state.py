"""A ledger that is kept and gone on from, at any moment, answers as the one that never was."""

import random
from hashlib import sha256
from itertools import count
from typing import Any

from hypothesis import settings
from hypothesis.stateful import rule
from msgspec import structs

from keyturn_protocol.authority import Refused
from keyturn_protocol.canonical import encode_record, parse
from keyturn_protocol.entry_switch import LeaseBody
from keyturn_protocol.ids import Origin
from keyturn_protocol.lease import AllowanceName, Lease, lease_hash, lease_subject
from keyturn_protocol.lease_accounts import TERA
from keyturn_protocol.leases import Asked, Ledger
from keyturn_protocol.ledger_state import RULES, LedgerState, ledger_of, ledger_state
from keyturn_protocol.policy import Allowance
from keyturn_protocol.runs import Scope
from tests.faults.table import LONG
from tests.protocol.test_allowance import allowance
from tests.protocol.test_leases_machine import Leasing
from tests.support.leasing import RUN, SECOND, Books, boot, log
from tests.support.parties import BEGIN, scope

OTHER_RUN = "42" * 32
SUBJECTS: tuple[str | AllowanceName, ...] = (
    *(RUN, OTHER_RUN),
    AllowanceName(kind="allowance", organisation="Ümlaut & Söhne", lineage="aurora"),
    AllowanceName(kind="allowance", organisation="acme", lineage="aurora"),
    AllowanceName(kind="diagnostics", organisation="acme", lineage=None),
)
LOGS = [log(node, incarnation) for node in "ab" for incarnation in (1, 2)]


def data_of(ledger: Ledger) -> bytes:
    return encode_record(ledger_state(ledger))


def again(ledger: Ledger) -> Ledger:
    """What comes back from a disk."""
    kept: LedgerState = parse(data_of(ledger), LedgerState)
    return ledger_of(kept)


class Both(Ledger):
    """Two ledgers that are told and asked the same. Only one of them is ever kept."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = Ledger()

    def keep(self) -> None:
        self.kept = again(self.kept)
        assert data_of(self.kept) == data_of(self)
        for name, value in vars(self.kept).items():
            if name not in ("_holds", "free"):  # of which the bytes say all
                assert value == getattr(self, name), name

    def chips_held(self, subject: str, at_us: int, *, but: str = "") -> int:
        held = super().chips_held(subject, at_us, but=but)
        assert self.kept.chips_held(subject, at_us, but=but) == held
        return held

    def available_tflop(self, lease: Lease, origin: Origin, limits: Scope | Allowance, at_us: int) -> int:
        available = super().available_tflop(lease, origin, limits, at_us)
        assert self.kept.available_tflop(lease, origin, limits, at_us) == available
        return available

    def check(self, *asked: Any) -> None:
        expected = said = None
        try:
            self.kept.check(*asked)
        except Refused as refusal:
            said = (refusal.why, str(refusal))
        try:
            super().check(*asked)
        except Refused as refusal:
            expected = (refusal.why, str(refusal))
            raise
        finally:
            assert said == expected

    def grant(self, *leaf: Any) -> None:
        self.kept.grant(*leaf)
        super().grant(*leaf)

    def report(self, *leaf: Any) -> Any:
        found = self.kept.report(*leaf)
        assert found == super().report(*leaf)
        return found


class Keeping(Leasing):
    """The hosts of the other machine, at a verifier that starts again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.books.ledger = self.ledger = self.both = Both()

    @rule()
    def is_kept(self) -> None:
        self.both.keep()

    def teardown(self) -> None:
        assert data_of(self.both.kept) == data_of(self.both)


TestKeeping = Keeping.TestCase
TestKeeping.settings = settings(
    max_examples=500 if LONG else 40, stateful_step_count=80 if LONG else 50, deadline=None
)  # fmt: skip


class Wild:
    """Leases and reports at random, right and wrong ones, of runs and of allowances."""

    def __init__(self, seed: int, ledger: Ledger) -> None:
        self.dice = random.Random(seed)
        self.books = Books()
        self.books.ledger = self.ledger = ledger
        self.leases = ["99" * 32]
        self.said: list[Any] = []
        self.now_us, self.seqs = BEGIN, count()

    def step(self) -> None:
        dice = self.dice
        self.now_us += dice.choice([0, 1, 60, 400, 4_000, 90_000]) * SECOND
        origin = dice.choice(LOGS)
        if dice.random() < 0.5:
            self.grant(origin)
        else:
            event: Any = dice.choice(["adopted", "report", "report", "final"])
            charged = 10**40 if dice.random() < 0.02 else dice.choice([0, 1, 3 * TERA // 2, 10 * TERA, 30 * TERA])
            reason = "done" if event == "final" else None
            lease = dice.choice(self.leases[-4:])
            body = LeaseBody(charged_flop=str(charged), event=event, gaps=[], lease=lease, reason=reason)
            self.said.append(self.ledger.report(origin, next(self.seqs), body, self.now_us))

    def grant(self, origin: Origin) -> None:
        dice, subject = self.dice, self.dice.choice(SUBJECTS)
        limits = scope(budget_tflop=100, chips=4) if isinstance(subject, str) else allowance()
        chips = [f"GPU-{number}" for number in sorted(dice.sample(range(4), dice.randint(1, 3)))]
        changes = {"chips": chips, "boot_id": boot(dice.randint(1, 2)), "time_us": self.now_us}
        lease = self.books.lease(origin, 1, subject=subject, **changes)
        if lease.charged_tflop > TERA:
            return  # no lease has room for more than that
        lease = structs.replace(lease, upto_tflop=lease.charged_tflop + dice.choice([1, 20, 60]))
        asked: Asked = self.books.asked(origin, lease, next(self.seqs))
        try:
            self.ledger.check(lease, asked, limits, self.now_us)
        except Refused as refusal:
            self.said.append(str(refusal))
            if dice.random() < 0.7:
                return  # else it is logged although it may not be
        self.leases.append(lease_hash(lease).hex())
        self.ledger.grant(lease, self.leases[-1], asked, limits, self.now_us)
        self.said.append(self.ledger.available_tflop(lease, origin, limits, self.now_us))
        self.said.append(self.ledger.chips_held(lease_subject(lease), self.now_us, but=origin))


def test_everything_that_can_be_logged_survives_being_kept_at_any_moment() -> None:
    filled: set[str] = set()
    for seed in range(60 if LONG else 12):
        both = Both()
        wild = Wild(seed, both)
        for _ in range(120):
            wild.step()
            if wild.dice.random() < 0.2:
                both.keep()
        both.keep()
        state: LedgerState = parse(data_of(both), LedgerState)
        filled |= {name for name in state.__struct_fields__ if getattr(state, name)}
    assert filled == set(LedgerState.__struct_fields__), "something in every part of it"


def test_what_was_kept_stays_as_it_was_when_the_ledger_goes_on() -> None:
    wild = Wild(1, Ledger())
    for _ in range(60):
        wild.step()
    state = ledger_state(wild.ledger)
    before, copy = encode_record(state), ledger_of(state)
    for _ in range(60):
        wild.step()
    assert encode_record(state) == before == data_of(copy)
    assert data_of(wild.ledger) != before


def test_the_rules_are_those_of_the_version() -> None:
    """What is kept under a version was folded by the same rules. Where this fails because they were changed on
    purpose, RULES has to grow with them."""
    books = Books()
    first = books.grant(LOGS[0], 60)
    said = [books.report(LOGS[0], first, 7, "adopted", at_s=30), books.report(LOGS[0], first, 6, at_s=60)]
    second = books.grant(LOGS[2], 40, at_s=400, chips=["GPU-b"])
    said += [books.report(LOGS[2], second, 45.5, at_s=500), books.report(LOGS[2], first, 1, at_s=500)]
    books.limits = allowance()
    for name, origin in zip(SUBJECTS[2:], LOGS[1:], strict=True):
        digest = books.grant(origin, 9, subject=name, at_s=5_000, chips=[f"GPU-{origin[-12:]}"])
        said.append(books.report(origin, digest, 3.25, "adopted", at_s=9_000))
    said.append(books.report(LOGS[2], second, 46, "final", at_s=9_100))
    assert [code for codes in said for code in codes] == ["lease_rollback", "lease_overrun", "lease_unknown"]
    digest = sha256(data_of(books.ledger)).hexdigest()
    assert (RULES, digest) == (1, "d9576f9d175437633a30d60057d60cd3e8844b0c05f533a00e2c2ccf003bf002")
