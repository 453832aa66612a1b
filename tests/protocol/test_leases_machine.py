"""No TFLOP is spent twice: hosts that crash, reboot, restore backups, lose answers and fall silent, at random.

What is held against the budget is what the hosts of the model *really* spent, and what they could still spend under the
leases in their hands, whatever they reported and whatever of it arrived.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from keyturn_protocol.authority import Refused
from keyturn_protocol.ids import Origin
from keyturn_protocol.lease import Lease, lease_hash
from keyturn_protocol.leases import slice_tflop
from tests.faults.table import LONG
from tests.support.leasing import RUN, SECOND, TTL, Books, boot, log
from tests.support.parties import BEGIN, scope

BUDGET = 1000
HOSTS = "ab"
hosts = st.sampled_from(HOSTS)
amounts = st.sampled_from([1, 50, 200, 400, 1000])
EVENTS = ("killed", "comes back", "comes back", "reboot", "backup", "restore", "restore, reboot", "another log")


@dataclass(frozen=True)
class Disk:
    """What a backup of a host holds."""

    incarnation: int = 1
    charged: int = 0
    lease: Lease | None = None
    entries: tuple[tuple[str, Any], ...] = ()
    """``("permit", nonce)`` and ``("lease", (hash, charged, event))``, in the order of the log."""
    asked: str | None = None
    """The nonce of the newest permit entry that waits for its lease."""


@dataclass
class Host:
    """A machine: its disk, what only lives as long as its boot, and what it really did."""

    name: str
    disk: Disk = field(default_factory=Disk)
    boots: int = 1
    newest: int = -1
    """The highest sequence that was adopted in this boot: kept where restoring a disk doesn't reach."""
    newest_log: int = 1
    backup: Disk | None = None
    dead: bool = False
    """The agent was killed; what it started goes on."""
    unseen: int = 0
    """What it did while its agent was dead: what comes back charges the gap at peak, which is no less."""
    spent: dict[int, int] = field(default_factory=dict)
    """Incarnation → TFLOP, the truth."""

    @property
    def origin(self) -> Origin:
        return log(self.name, self.disk.incarnation)

    @property
    def boot_id(self) -> str:
        return boot(self.boots)

    def write(self, kind: str, what: Any, **changes: Any) -> None:
        self.disk = replace(self.disk, entries=(*self.disk.entries, (kind, what)), **changes)

    def on(self) -> Lease | None:
        """The lease under which it may spend now."""
        lease = self.disk.lease
        if lease is None or lease.boot_id != self.boot_id:
            return None
        stale = self.disk.incarnation == self.newest_log and lease.sequence < self.newest
        return None if stale else lease

    def left(self) -> int:
        lease = self.on()
        return 0 if lease is None else max(0, lease.upto_tflop - self.disk.charged - self.unseen)


class Leasing(RuleBasedStateMachine):
    """A verifier that sees prefixes of logs, and hosts that do what they must."""

    gives_up_older_entries: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.books = Books(scope(budget_tflop=BUDGET, chips=64))
        self.ledger = self.books.ledger
        self.hosts = {name: Host(name) for name in HOSTS}
        self.seen: dict[Origin, int] = {}
        """How many entries of each log the verifier has."""
        self.known: dict[Origin, tuple[tuple[str, Any], ...]] = {}
        self.answered: dict[tuple[Origin, int], Lease] = {}
        self.notes: list[tuple[str, int, Lease]] = []
        """Answers on their way: host, incarnation, lease. Any of them may never arrive, or late, or twice."""
        self.nonces: Iterator[int] = count(1)
        self.now_s = 0

    @property
    def now_us(self) -> int:
        return BEGIN + self.now_s * SECOND

    @rule(seconds=st.integers(1, 2 * TTL))
    def time_passes(self, seconds: int) -> None:
        self.now_s += seconds

    # -- a host

    @rule(name=hosts)
    def asks(self, name: str) -> None:
        """Only once it has had the last word on a lease of an earlier boot."""
        host = self.hosts[name]
        if host.dead or (host.disk.lease is not None and host.disk.lease.boot_id != host.boot_id):
            return
        nonce = f"{next(self.nonces):064x}"
        host.write("permit", (nonce, host.boot_id), asked=nonce)

    @rule(index=st.integers(0, 20), lost=st.booleans())
    def gets_an_answer(self, index: int, lost: bool) -> None:
        if not self.notes:
            return
        name, incarnation, lease = self.notes[index % len(self.notes)]
        host = self.hosts[name]
        if lost or host.dead or host.disk.incarnation != incarnation or lease.boot_id != host.boot_id:
            return
        if lease.nonce != host.disk.asked and self.gives_up_older_entries:
            return
        if host.disk.incarnation == host.newest_log and lease.sequence <= host.newest:
            return
        host.newest, host.newest_log = lease.sequence, incarnation
        # A state that came from a backup knows of less than it reported.
        self._charge(host, max(0, lease.charged_tflop - host.disk.charged))
        said = (lease_hash(lease).hex(), host.disk.charged, "adopted")
        host.write("lease", said, lease=lease, asked=None)

    @rule(name=hosts, tflop=amounts)
    def works(self, name: str, tflop: int) -> None:
        """A host stops at its cap; while its agent is dead, the gate stops it when it could have reached it."""
        host = self.hosts[name]
        done = min(tflop, host.left())
        host.spent[host.disk.incarnation] = host.spent.get(host.disk.incarnation, 0) + done
        if host.dead:
            host.unseen += done
        else:
            self._charge(host, done)

    @rule(name=hosts, more=st.integers(0, 30))
    def reports(self, name: str, more: int) -> None:
        """What it charges is no less than what it did, and may be more."""
        host = self.hosts[name]
        if host.dead or host.on() is None:
            return
        self._charge(host, min(more, host.left()))
        host.write("lease", self._said(host, "report"))

    @rule(name=hosts)
    def ends(self, name: str) -> None:
        host = self.hosts[name]
        if not host.dead and host.disk.lease is not None:
            host.write("lease", self._said(host, "final"), lease=None, asked=None)

    def agent_is_killed(self, name: str) -> None:
        self.hosts[name].dead = True

    def agent_comes_back(self, name: str, more: int) -> None:
        host = self.hosts[name]
        if host.dead:
            host.dead = False
            # A gap is charged as what the chips could have done, and the gate stops them before that is the cap.
            self._charge(host, host.unseen + min(more, host.left()))
            host.unseen = 0

    def reboots(self, name: str) -> None:
        host = self.hosts[name]
        host.boots, host.newest, host.dead = host.boots + 1, -1, False
        self._charge(host, host.unseen)
        host.unseen = 0

    def is_backed_up(self, name: str) -> None:
        host = self.hosts[name]
        if not host.dead:
            host.backup = host.disk

    def is_restored(self, name: str, *, in_this_boot: bool) -> None:
        """What was spent since the backup lies in time that the restored log doesn't cover: it is charged as a gap."""
        host = self.hosts[name]
        if host.backup is None or host.backup.incarnation != host.disk.incarnation:
            return
        really = host.spent.get(host.disk.incarnation, 0)
        host.disk, host.dead, host.unseen = host.backup, False, 0
        if host.disk.charged < really:
            self._charge(host, really - host.disk.charged)
        if not in_this_boot:
            host.boots, host.newest = host.boots + 1, -1

    def opens_another_log(self, name: str) -> None:
        """It finds its own signature over a head that it lacks, or its state damaged; what runs is stopped first."""
        host = self.hosts[name]
        host.unseen = 0
        host.disk, host.dead, host.newest = Disk(incarnation=host.disk.incarnation + 1), False, -1
        host.newest_log = host.disk.incarnation

    @rule(name=hosts, what=st.sampled_from(EVENTS), more=st.integers(0, 30))
    def something_happens(self, name: str, what: str, more: int) -> None:
        match what:
            case "killed":
                self.agent_is_killed(name)
            case "comes back":
                self.agent_comes_back(name, more)
            case "reboot":
                self.reboots(name)
            case "backup":
                self.is_backed_up(name)
            case "restore" | "restore, reboot":
                self.is_restored(name, in_this_boot=what == "restore")
            case "another log":
                self.opens_another_log(name)
            case _:
                raise ValueError(what)

    # -- the verifier

    @rule(name=hosts, entries=st.integers(1, 4))
    def receives(self, name: str, entries: int) -> None:
        """The next entries of a log, if they follow what it has: one that was rolled back and went on doesn't."""
        host = self.hosts[name]
        if host.dead:
            return
        have, mine = self.known.get(host.origin, ()), host.disk.entries
        if mine[: len(have)] != have:
            return
        for seq, (kind, what) in list(enumerate(mine))[len(have) : len(have) + entries]:
            if kind == "lease":
                digest, charged, event = what
                assert self.books.report(host.origin, digest, charged, event, at_s=self.now_s, seq=seq) == []
            self.known[host.origin] = mine[: seq + 1]

    @rule(name=hosts, index=st.integers(0, 20))
    def receives_again(self, name: str, index: int) -> None:
        """A report that it had before, out of order."""
        origin = self.hosts[name].origin
        reports = [(seq, what) for seq, (kind, what) in enumerate(self.known.get(origin, ())) if kind == "lease"]
        if reports:
            seq, (digest, charged, event) = reports[index % len(reports)]
            self.books.report(origin, digest, charged, event, at_s=self.now_s, seq=seq)

    @rule(name=hosts, share=st.integers(1, 4), rate=st.sampled_from([1, 10**6]))
    def grants(self, name: str, share: int, rate: int) -> None:
        origin = self.hosts[name].origin
        asks = [(seq, what) for seq, (kind, what) in enumerate(self.known.get(origin, ())) if kind == "permit"]
        if not asks:
            return
        seq, (nonce, boot_id) = asks[-1]
        if (origin, seq) in self.answered:
            self.notes.append((name, self.hosts[name].disk.incarnation, self.answered[origin, seq]))
            return
        fields = {"boot_id": boot_id, "nonce": nonce, "time_us": self.now_us}
        draft = self.books.lease(origin, 1, **fields)
        limits, ledger = self.books.limits, self.ledger
        slice_ = slice_tflop(ledger, draft, origin, limits, rate_tflop_s=rate, hosts=share, at_us=self.now_us)
        account = ledger.account(RUN, origin)
        if not slice_:
            return
        lease = self.books.lease(origin, account.charged_tflop + slice_, **fields)
        asked = self.books.asked(origin, lease, seq)
        try:
            ledger.check(lease, asked, limits, self.now_us)
        except Refused:
            return
        ledger.grant(lease, lease_hash(lease).hex(), asked, limits, self.now_us)
        self.answered[origin, seq] = lease
        self.notes.append((name, self.hosts[name].disk.incarnation, lease))

    @rule(name=hosts, share=st.integers(1, 4), tflop=amounts, adopted=st.booleans())
    def renews_and_works(self, name: str, share: int, tflop: int, adopted: bool) -> None:
        self.renews(name, share, adopted=adopted)
        self.works(name, tflop)

    @rule(name=hosts, share=st.integers(1, 4), adopted=st.booleans())
    def renews(self, name: str, share: int, *, adopted: bool) -> None:
        """All of it in one go, as it nearly always is; the answer may be lost."""
        self.asks(name)
        self.receives(name, 100)
        self.grants(name, share, 10**6)
        if adopted and self.notes:
            self.gets_an_answer(len(self.notes) - 1, False)
            self.receives(name, 100)

    # -- what must be true

    @invariant()
    def nothing_is_spent_twice(self) -> None:
        spent = sum(sum(host.spent.values()) for host in self.hosts.values())
        assert spent + sum(host.left() for host in self.hosts.values()) <= BUDGET

    @invariant()
    def no_more_is_committed_than_there_is(self) -> None:
        assert self.ledger.committed_tflop(RUN) <= BUDGET
        for host in self.hosts.values():
            for incarnation, really in host.spent.items():
                assert really <= self.ledger.account(RUN, log(host.name, incarnation)).committed_tflop

    @invariant()
    def sums_are_those_of_the_accounts(self) -> None:
        subject = self.ledger.subjects.get(RUN)
        if subject is not None:
            accounts = subject.accounts.values()
            assert subject.committed_tflop == sum(account.committed_tflop for account in accounts)
            assert subject.charged_tflop == sum(account.charged_tflop for account in accounts)
        held = sum(
            account.chips
            for account in (subject.accounts.values() if subject else ())
            if self.now_us < min(account.expires_us, account.heard_us + 300 * SECOND)
        )
        assert self.ledger.chips_held(RUN, self.now_us) == held

    def _charge(self, host: Host, tflop: int) -> None:
        host.disk = replace(host.disk, charged=host.disk.charged + tflop)

    def _said(self, host: Host, event: str) -> tuple[str, int, str]:
        assert host.disk.lease is not None
        return (lease_hash(host.disk.lease).hex(), host.disk.charged, event)


TestLeasing = Leasing.TestCase
TestLeasing.settings = settings(
    max_examples=2000 if LONG else 80, stateful_step_count=80 if LONG else 50, deadline=None
)  # fmt: skip
