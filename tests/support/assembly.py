"""People who send a switch what they sign for real, and the permit bundles that a verifier makes of it."""

from typing import Any

from keyturn_protocol.dsse import Envelope
from keyturn_protocol.keys import node_id_of, parse_vkey
from keyturn_protocol.lease import Lease, format_lease, lease_text, parse_lease
from keyturn_protocol.lifecycle import State, state
from keyturn_protocol.permit import AUTHORITY, Said, Start, format_permit_bundle
from keyturn_protocol.root import Root
from keyturn_protocol.runs import Amend, Decision, Request, Resume, Revoke, Suspend, Withdraw
from keyturn_protocol.statements import Statement, parse_payload
from keyturn_protocol.switch import Switch, log_statement
from tests.support.hosts import BOOT, Key
from tests.support.parties import BEGIN, NAME, SECOND, envelope, narrowing, policy, root, scope, service

STARTER = "starter"
"""Seed of the host that gets a run's first lease."""


class Assembly:
    """A switch, and people who send it envelopes; a leaf each minute."""

    def __init__(self, of: Root | None = None, **changes: Any) -> None:
        self.begin()
        self.root = self.say(of or root(), "lab-a/ada", "operator-b/eve")
        self.policy = self.say(policy(self.root, **changes), "lab-a/ada", "office/ivy")

    def begin(self) -> None:
        """Before anything was said."""
        self.switch = Switch(NAME)
        self.said: list[Said] = []
        self.starts: dict[str, Start] = {}
        self.run = ""
        """Of a hall that is about one."""
        self.now_us = BEGIN

    def take(self, sent: Envelope) -> str:
        statement = parse_payload(sent.kind, sent.payload)
        index = self.switch.index + 1
        self.switch.take(log_statement(sent, statement, index, self.now_us, self.switch.authority))
        self.said.append(Said(sent, index, self.now_us))
        self.now_us += 60 * SECOND
        return sent.hash.hex()

    def say(self, statement: Statement, *signers: str) -> str:
        return self.take(envelope(statement, *signers))

    def common(self, **changes: Any) -> dict[str, Any]:
        fields = {"v": 1, "deployment": NAME, "root": self.root, "time_us": self.now_us, "policy": self.policy}
        return fields | changes

    def request(self, **changes: Any) -> Request:
        fields = {
            "requester": "lab-a/ada",
            "label": "aurora-2",
            "purpose": "a language model",
            "lineage": "aurora",
            "spec": {"image": None, "config": None, "argv": "3" * 64, "data": None},
            "scope": scope(),
            "ancestors": [],
            "nonce": "4" * 64,
        }
        return Request(**self.common(**fields | changes))

    def decision(self, subject: str, who: str, verdict: str = "approve", **changes: Any) -> Decision:
        reason = "" if verdict == "approve" else "no"
        fields = {"subject": subject, "person": who, "verdict": verdict, "narrowing": None, "reason": reason}
        return Decision(**self.common(**fields | changes))

    def approved(self, nonce: str = "4" * 64) -> str:
        run = self.say(self.request(nonce=nonce), "lab-a/ada")
        for who in ("lab-a/bob", "operator-b/eve", "office/ivy"):
            self.say(self.decision(run, who), who)
        return run

    def state(self, run: str) -> State:
        return state(self.switch.runs[run], self.now_us)

    def suspend(self, run: str, who: str = "office/ivy", stop_at_us: int | None = None) -> str:
        said = Suspend(**self.common(run=run, person=who, stop_at_us=stop_at_us, reason="because"))
        return self.say(said, who)

    def resume(self, run: str, *people: str) -> str:
        after = list(self.switch.runs[run].after)
        said = Resume(**self.common(run=run, person="lab-a/ada", after=after, reason="because"))
        proposal = self.say(said, "lab-a/ada")
        for who in people:
            self.say(self.decision(proposal, who), who)
        return proposal

    def amend(self, run: str, *people: str, **changes: Any) -> str:
        """Another spec or scope, which these people approve."""
        now = self.switch.runs[run]
        fields = {"scope": now.scope, "spec": dict(now.spec)} | changes
        said = Amend(**self.common(run=run, person="lab-a/ada", after=list(now.after), reason="because", **fields))
        proposal = self.say(said, "lab-a/ada")
        for who in people:
            self.say(self.decision(proposal, who), who)
        return proposal

    def start(self, run: str, **changes: Any) -> Start:
        """The run's first lease."""
        self.starts[run] = start = Start(
            parse_lease(lease_note(self.root, self.policy, run, self.now_us, **changes)),
            self.switch.index + 1,
            self.now_us,
        )
        self.switch.begin(run, start.index, start.time_us)
        self.now_us += 60 * SECOND
        return start

    def about(self, run: str | None) -> list[Said]:
        """What a bundle of a run holds."""
        found = []
        for one in self.said:
            statement = parse_payload(one.envelope.kind, one.envelope.payload)
            subject = getattr(statement, "run", getattr(statement, "subject", one.envelope.hash.hex()))
            of = self.switch.run_of(subject).hash if one.envelope.kind not in {*AUTHORITY, "replacement"} else None
            if one.envelope.kind in AUTHORITY or (run is not None and of == run):
                found.append(one)
        return found

    def bundle(self, run: str | None = None) -> bytes:
        return format_permit_bundle(NAME, run, self.about(run), self.starts.get(run or ""))


def every_kind() -> "Assembly":
    """A run about which a statement of every kind was said; it is ``run``."""
    hall = Assembly()
    hall.run = hall.say(hall.request(), "lab-a/ada")
    hall.say(hall.decision(hall.run, "lab-a/bob", narrowing=narrowing(sites=["fra1"], chips=1024)), "lab-a/bob")
    for who in ("operator-b/eve", "office/ivy"):
        hall.say(hall.decision(hall.run, who), who)
    hall.start(hall.run)
    hall.say(Withdraw(**hall.common(subject=hall.suspend(hall.run), person="office/ivy", reason="")), "office/ivy")
    hall.suspend(hall.run)
    hall.resume(hall.run, "lab-a/bob", "operator-b/eve", "office/ivy")
    for kind, changes in ((Amend, {"scope": scope(sites=["fra1"]), "spec": hall.request().spec}), (Revoke, {})):
        after = list(hall.switch.runs[hall.run].after)
        fields = hall.common(run=hall.run, person="lab-a/bob", after=after, reason="because", **changes)
        hall.say(kind(**fields), "lab-a/bob")
    return hall


def lease_note(root_hash: str, policy_hash: str, run: str | None, time_us: int, **changes: Any) -> bytes:
    """A lease of 8 chips, signed by the lease key of :func:`~tests.support.parties.root`, or by ``key``."""
    key: Key = changes.pop("key", Key("service lease"))
    vkey = parse_vkey(service("lease", 1))
    fields: dict[str, Any] = {
        "v": 1,
        "deployment": NAME,
        "root": root_hash,
        "policy": policy_hash,
        "run": run,
        "allowance": None,
        "node_id": node_id_of(Key(STARTER).public),
        "boot_id": BOOT,
        "nonce": "5" * 64,
        "sequence": 0,
        "chips": [f"GPU-{i}" for i in range(8)],
        "dtypes": ["bf16", "fp8"],
        "charged_tflop": 0,
        "upto_tflop": 10**6,
        "ttl_s": 48 * 3600,
        "epoch": 0,
        "time_us": time_us,
        "renew_s": 600,
    }
    lease = Lease(**fields | changes)
    return format_lease(lease, vkey, key.sign(lease_text(lease)))
