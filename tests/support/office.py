"""Parties who work with a real verifier over HTTP: a root that names its keys, a policy, and what they sign."""

from typing import Any, Self

from keyturn_protocol.api_read import StatementItem
from keyturn_protocol.api_switch import RunView, openings_path
from keyturn_protocol.canonical import decode
from keyturn_protocol.openings import Opening, Openings, commitment, format_openings
from keyturn_protocol.root import Services
from keyturn_protocol.runs import Decision, Request, Resume, Scope, Suspend, Withdraw
from keyturn_protocol.statements import Statement
from keyturn_verifier.switch_state import SwitchState
from keyturn_verifier.taking import Taker, opened
from tests.support.node import Reply
from tests.support.parties import DAY, envelope, policy, root, scope
from tests.support.verifier import DEPLOYMENT, Verifier

BOARD = ("lab-a/ada", "operator-b/eve")
APPROVERS = ("lab-a/bob", "operator-b/eve", "office/ivy")


class Office:
    """People at a verifier. :meth:`opened` puts a root and a policy in force first."""

    def __init__(self, verifier: Verifier) -> None:
        self.verifier = verifier
        self.root: str | None = None
        self.policy = ""
        self._nonces = 0

    openings = Openings(v=1, parts={"argv": Opening(salt="5" * 64, value=["python", "train.py"])})
    """What the runs that are asked for here commit to."""

    @classmethod
    def opened(cls, verifier: Verifier, **changes: Any) -> Self:
        office = cls(verifier)
        office.install()
        office.policy = office.ok(office.make_policy(**changes), "lab-a/ada", "office/ivy")
        return office

    @property
    def services(self) -> Services:
        found = self.verifier.keys.services()
        assert found is not None
        return found

    def make_root(self, **changes: Any) -> Any:
        return root(**{"deployment": DEPLOYMENT, "services": self.services} | changes)

    def make_policy(self, **changes: Any) -> Any:
        assert self.root is not None
        return policy(self.root, **{"deployment": DEPLOYMENT} | changes)

    def install(self) -> None:
        """The first root, as the program on the server's machine does it, at the verifier's time."""
        own = self.verifier
        taker = Taker(own.settings, own.engine, own.keys, SwitchState(DEPLOYMENT), own.clock, first=True)
        sent = envelope(self.make_root(), *BOARD)
        self.root = taker.take(opened(sent.to_bytes(), own.settings)).sha256

    def post(self, data: bytes) -> Reply:
        return self.verifier.client.request("POST", "/v1/statements", data, content_type="application/json")

    def say(self, statement: Statement, *signers: str) -> Reply:
        return self.post(envelope(statement, *signers).to_bytes())

    def ok(self, statement: Statement, *signers: str) -> str:
        """Say what is taken; returns its hash."""
        answer = self.say(statement, *signers)
        assert answer.status == 200, answer
        item: StatementItem = decode(answer.body, StatementItem)
        return item.sha256

    def common(self, **changes: Any) -> dict[str, Any]:
        fields = {"v": 1, "deployment": DEPLOYMENT, "root": self.root, "time_us": self.verifier.clock()}
        return fields | {"policy": self.policy} | changes

    def scope(self, **changes: Any) -> Scope:
        now_us = self.verifier.clock()
        return scope(**{"not_before_us": now_us - DAY, "not_after_us": now_us + 100 * DAY} | changes)

    def make_request(self, requester: str = "lab-a/ada", **changes: Any) -> Request:
        self._nonces += 1
        fields = {
            "requester": requester,
            "label": "aurora-2",
            "purpose": "a language model",
            "lineage": "aurora",
            "spec": {"image": None, "config": None, "data": None}
            | {part: commitment(part, one).hex() for part, one in self.openings.parts.items()},
            "scope": self.scope(),
            "ancestors": [],
            "nonce": f"{self._nonces:064x}",
        }
        return Request(**self.common(**fields | changes))

    def give(self, run: str, openings: Openings) -> Reply:
        data = format_openings(openings)
        return self.verifier.client.request("POST", openings_path(run), data, content_type="application/json")

    def request(self, **changes: Any) -> str:
        return self.ok(self.make_request(**changes), "lab-a/ada")

    def make_decision(self, subject: str, who: str, verdict: str = "approve", **changes: Any) -> Decision:
        reason = "" if verdict == "approve" else "no"
        fields = {"subject": subject, "person": who, "verdict": verdict, "narrowing": None, "reason": reason}
        return Decision(**self.common(**fields | changes))

    def decide(self, subject: str, *people: str, verdict: str = "approve") -> None:
        for who in people:
            self.ok(self.make_decision(subject, who, verdict), who)

    def approved(self, **changes: Any) -> str:
        """A run that the quorum allowed."""
        run = self.request(**changes)
        self.decide(run, *APPROVERS)
        return run

    def make_suspension(self, run: str, who: str = "office/ivy", **changes: Any) -> Suspend:
        return Suspend(**self.common(**{"run": run, "person": who, "stop_at_us": None, "reason": "because"} | changes))

    def suspend(self, run: str, who: str = "office/ivy", **changes: Any) -> str:
        return self.ok(self.make_suspension(run, who, **changes), who)

    def make_proposal(self, kind: type[Any], run: str, who: str = "lab-a/ada", **changes: Any) -> Any:
        fields = {"run": run, "person": who, "after": self.view(run).after, "reason": "because"}
        return kind(**self.common(**fields | changes))

    def resume(self, run: str, *people: str) -> str:
        proposal = self.ok(self.make_proposal(Resume, run), "lab-a/ada")
        self.decide(proposal, *people)
        return proposal

    def make_withdrawal(self, subject: str, who: str) -> Withdraw:
        return Withdraw(**self.common(subject=subject, person=who, reason="done"))

    def view(self, run: str) -> RunView:
        answer = self.verifier.client.get(f"/v1/runs/{run}", self.verifier.reader_token("approver"))
        assert answer.status == 200, answer
        return decode(answer.body, RunView, limit=1 << 24)
