"""A verifier under the start switch for fault injection, in a process of its own, with people and the way to it; and
the programs of its hosts (:mod:`tests.faults.leased_host`), imported once.
"""

import time
from pathlib import Path
from threading import Lock
from typing import Final

from keyturn_protocol.policy import Above, Stop
from keyturn_protocol.statements import Statement
from tests.faults.proxy import Cut, Exchange, Fault, Proxy
from tests.faults.warm import Warm
from tests.support.office import Office
from tests.support.parties import tier
from tests.support.verifier import Served, Verifier

PRELOAD: Final = ("keyturn_agent.sources.replay", "keyturn_agent.switch.exec")
GATE_PRELOAD: Final = ("keyturn_gate.compute_mode",)
BUDGET: Final = 3 * 10**7
"""TFLOP of each run: the first lease of one that isn't renewed takes all of it."""
SHORT_S: Final = 12
"""A lease that is renewed while the test waits, after a third of it."""


class Link(Proxy):
    """The way to the verifier, which may be cut."""

    down = False

    def pick(self, exchange: Exchange) -> Fault | None:
        return _cut if self.down else None


def _cut(exchange: Exchange) -> None:
    raise Cut


class Written(Office):
    """People, with the hash of all that was answered."""

    def __init__(self, verifier: Verifier) -> None:
        super().__init__(verifier)
        self.said: list[str] = []

    def ok(self, statement: Statement, *signers: str) -> str:
        digest = super().ok(statement, *signers)
        self.said.append(digest)
        return digest


class Site:
    """A verifier with its people, and the programs of hosts, imported once. Use it as a context."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.folder = folder
        # This one doesn't serve: it has the keys and the database of the one that does.
        self.verifier = Verifier(folder / "verifier")
        self.served = Served(self.verifier.state)
        self.verifier.client = self.served.start()
        self.office = Written.opened(
            self.verifier,
            tiers=[
                tier(name="long", above=Above(budget_tflop=0, chips=None, lineage_tflop=None), grace_s=1),
                tier(
                    name="short",
                    above=Above(budget_tflop=BUDGET, chips=None, lineage_tflop=None),
                    grace_s=1,
                    lease_s=SHORT_S,
                ),
            ],
            stop=Stop(notice_s=1800, alone_s=3600, kill_s=2),
        )
        self.token = self.verifier.join_token(1_000_000)
        self.reader = self.verifier.reader_token("approver")
        self.agent = Warm("keyturn_agent.cli:main", PRELOAD)
        self.gate = Warm("keyturn_gate.cli:main", GATE_PRELOAD, LD_LIBRARY_PATH=str(library.parent))
        self._hosts = 0
        self._lock = Lock()
        """People speak one at a time."""

    def __enter__(self) -> "Site":
        return self

    def __exit__(self, *_: object) -> None:
        for warm in (self.agent, self.gate):
            warm.__exit__()
        self.served.kill()
        self.verifier.engine.dispose()

    def next_host(self) -> int:
        """Its number; from 1."""
        with self._lock:
            self._hosts += 1
            return self._hosts

    def approved(self, *, renewed: bool) -> str:
        """A run that the quorum allowed; its leases are renewed at once, or live for long."""
        with self._lock:
            return self.office.approved(scope=self.office.scope(budget_tflop=BUDGET + renewed, chips=1))

    def suspend(self, run: str, in_s: float) -> int:
        """Two organisations stop a run soon; returns when, in UTC."""
        at_us = time.time_ns() // 1000 + int(in_s * 1_000_000)
        with self._lock:
            for who in ("office/ivy", "operator-b/eve"):
                self.office.suspend(run, who, stop_at_us=at_us)
        return at_us

    def committed_tflop(self, run: str) -> int:
        with self._lock:
            return self.office.view(run).committed_tflop
