"""A lab, an operator and a regulator who sign statements, all keys from fixed seeds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import msgspec

from keyturn_protocol.advance import advance, open_run, under_policy, under_root
from keyturn_protocol.authority import Authority, Logged
from keyturn_protocol.canonical import encode_record
from keyturn_protocol.dsse import Envelope, pae
from keyturn_protocol.lifecycle import Run
from keyturn_protocol.policy import Above, Allowance, Policy, Stop, Tier
from keyturn_protocol.public_keys import FILE_KEY, PublicKey
from keyturn_protocol.root import Party, Person, PersonKey, Root, Services, Threshold, Thresholds
from keyturn_protocol.runs import (
    Decision,
    Narrowing,
    Request,
    Scope,
    Suspend,
    Withdraw,
)
from keyturn_protocol.statements import Statement, format_statement, kind_of
from tests.support.hosts import Key

NAME = "kt.example"
SECOND = 1_000_000
DAY = 86_400 * SECOND
BEGIN = 1_790_000_000_000_000
PEOPLE = {
    "lab-a/ada": "lab",
    "lab-a/bob": "lab",
    "operator-b/eve": "operator",
    "operator-b/fay": "operator",
    "office/ivy": "regulator",
    "office/joe": "regulator",
}
ORGANISATION = {"lab-a": "acme", "operator-b": "hosting", "office": "state"}


def public(seed: str) -> PublicKey:
    return PublicKey(FILE_KEY, Key(seed).public)


def person(name: str, *keys: PersonKey) -> Person:
    listed = list(keys) or [person_key(name)]
    return Person(id=name, party=name.partition("/")[0], keys=listed)


def person_key(seed: str, **changes: Any) -> PersonKey:
    fields = {"valid_from_us": 0, "valid_until_us": None, "compromised_since_us": None} | changes
    return PersonKey(key=str(public(seed)), **fields)


def service(name: str, kind: int) -> str:
    from keyturn_protocol.keys import SignatureType, VerifierKey

    return str(VerifierKey(f"{NAME}/{name}", SignatureType(kind), Key(f"service {name}").public))


def root(**changes: Any) -> Root:
    """Version 1: six people of three parties; two organisations change it."""
    two = Threshold(persons=2, organisations=2, minimum={})
    fields: dict[str, Any] = {
        "v": 1,
        "deployment": NAME,
        "root": None,
        "time_us": BEGIN,
        "version": 1,
        "previous": None,
        "expires_us": BEGIN + 3650 * DAY,
        "parties": [
            Party(id=party, organisation=ORGANISATION[party], class_=kind, name=party.title())  # type: ignore[arg-type]
            for party, kind in sorted({name.partition("/")[0]: kind for name, kind in PEOPLE.items()}.items())
        ],
        "persons": [person(name) for name in sorted(PEOPLE)],
        "services": Services(
            log_vkey=service("log", 1), receipt_vkey=service("receipt", 4), lease_vkey=service("lease", 1)
        ),
        "witnesses": [],
        "watchers": [],
        "thresholds": Thresholds(root=two, policy=two),
    }
    return Root(**fields | changes)


def tier(**changes: Any) -> Tier:
    """Three persons of three organisations, one of each class; operator and regulator have a veto."""
    fields: dict[str, Any] = {
        "name": "large",
        "above": Above(budget_tflop=10**11, chips=1024, lineage_tflop=None),
        "approve": Threshold(persons=3, organisations=3, minimum={"lab": 1, "operator": 1, "regulator": 1}),
        "deny": 2,
        "veto": ["operator", "regulator"],
        "colleagues": True,
        "decide_s": 7 * 86_400,
        "start_s": 30 * 86_400,
        "grace_s": 600,
        "lease_s": 48 * 3600,
        "assurance": 0,
        "verified": [],
        "watchers": [],
    }
    return Tier(**fields | changes)


def policy(of: str, **changes: Any) -> Policy:
    fields: dict[str, Any] = {
        "v": 1,
        "deployment": NAME,
        "root": of,
        "time_us": BEGIN,
        "version": 1,
        "previous": None,
        "name": "three parties",
        "requesters": ["lab"],
        "tiers": [tier()],
        "allowance": Allowance(
            window_s=7 * 86_400,
            organisation_tflop=10**9,
            lineage_tflop=10**9,
            diagnostics_tflop=10**6,
            chips=64,
            lease_s=3600,
        ),
        "stop": Stop(notice_s=1800, alone_s=72 * 3600, kill_s=60),
    }
    return Policy(**fields | changes)


def scope(**changes: Any) -> Scope:
    fields: dict[str, Any] = {
        "budget_tflop": 10**12,
        "chips": 16_384,
        "chip_uuids": None,
        "sites": None,
        "dtypes": ["bf16", "fp8"],
        "not_before_us": BEGIN,
        "not_after_us": BEGIN + 100 * DAY,
    }
    return Scope(**fields | changes)


def narrowing(**changes: Any) -> Narrowing:
    fields: dict[str, Any] = dict.fromkeys(Narrowing.__struct_fields__)
    return Narrowing(**fields | changes)


def digest(statement: Statement) -> str:
    return sha256(encode_record(statement)).hexdigest()


def envelope(statement: Statement, *signers: str) -> Envelope:
    """The statement, really signed by the keys of these seeds."""
    kind, payload = kind_of(statement), format_statement(statement)
    message = pae(kind, payload)
    return Envelope(kind, payload, {public(seed).id: Key(seed).sign(message) for seed in signers})


@dataclass
class World:
    """A deployment with one run; each statement is logged a minute after the last."""

    authority: Authority = field(default_factory=Authority)
    run: Run | None = None
    index: int = 0
    now_us: int = BEGIN
    log: list[Logged] = field(default_factory=list)

    @classmethod
    def begun(cls, *, of: Root | None = None, **changes: Any) -> "World":
        """With a root and a policy in force."""
        world = cls()
        world.put_root(of or root())
        world.put_policy(policy(world.root_hash, **changes))
        return world

    @property
    def root_hash(self) -> str:
        return self.authority.roots[-1][1].hash

    @property
    def policy_hash(self) -> str:
        return self.authority.policies[-1][1]

    def logged(self, statement: Statement, *signers: str) -> Logged:
        """The statement as the next leaf, its form checked, as if signed by the keys of these seeds."""
        ids = tuple(sorted(public(signer).id for signer in signers))
        payload = format_statement(statement)
        return Logged(self.index + 1, self.now_us, digest(statement), statement, ids, len(payload))

    def done(self, logged: Logged) -> str:
        self.log.append(logged)
        self.index, self.now_us = logged.index, self.now_us + 60 * SECOND
        return logged.hash

    def put_root(self, new: Root, *signers: str) -> str:
        logged = self.logged(new, *(signers or ("lab-a/ada", "operator-b/eve")))
        self.authority = self.authority.with_root(logged)
        if self.run:
            self.run = under_root(self.run, self.authority, logged.index + 1, logged.time_us)
        return self.done(logged)

    def put_policy(self, new: Policy, *signers: str) -> str:
        logged = self.logged(new, *(signers or ("lab-a/ada", "operator-b/eve")))
        self.authority = self.authority.with_policy(logged)
        if self.run:
            self.run = under_policy(self.run, logged.hash, logged.time_us)
        return self.done(logged)

    def common(self) -> Mapping[str, Any]:
        return {"v": 1, "deployment": NAME, "root": self.root_hash, "time_us": self.now_us, "policy": self.policy_hash}

    def request(self, requester: str = "lab-a/ada", *, signer: str | None = None, **changes: Any) -> str:
        fields: dict[str, Any] = {
            **self.common(),
            "requester": requester,
            "label": "aurora-2 pre-training",
            "purpose": "a language model",
            "lineage": "aurora",
            "spec": {"image": "1" * 64, "config": "2" * 64, "argv": "3" * 64, "data": None},
            "scope": scope(),
            "ancestors": [],
            "nonce": "4" * 64,
        }
        logged = self.logged(Request(**fields | changes), signer or requester)
        self.run = open_run(self.authority, logged)
        return self.done(logged)

    def say(self, statement: Statement, signer: str) -> str:
        """One more statement about the run."""
        assert self.run is not None
        logged = self.logged(statement, signer)
        self.run = advance(self.run, self.authority, logged)
        return self.done(logged)

    def decide(self, who: str, verdict: str = "approve", *, signer: str | None = None, **changes: Any) -> str:
        assert self.run is not None
        fields: dict[str, Any] = {
            **self.common(),
            "policy": self.run.request.policy,
            "subject": self.run.hash,
            "person": who,
            "verdict": verdict,
            "narrowing": None,
            "reason": "" if verdict == "approve" else "not now",
        }
        return self.say(Decision(**fields | changes), signer or who)

    def approved(self) -> "World":
        """Requested by ada, approved by bob, eve and ivy."""
        self.request()
        for who in ("lab-a/bob", "operator-b/eve", "office/ivy"):
            self.decide(who)
        return self

    def about(self, kind: type[Any], who: str, **changes: Any) -> Any:
        """A suspension, withdrawal or proposal of this run, every event answered."""
        assert self.run is not None
        fields: dict[str, Any] = {
            **self.common(),
            "policy": self.run.request.policy,
            "person": who,
            "reason": "because",
        }
        if kind is Withdraw:
            fields["subject"] = self.run.hash
        else:
            fields["run"] = self.run.hash
        if kind is Suspend:
            fields["stop_at_us"] = None
        elif kind is not Withdraw:
            fields["after"] = list(self.run.after)
        return kind(**fields | changes)

    def suspend(self, who: str = "office/ivy", **changes: Any) -> str:
        return self.say(self.about(Suspend, who, **changes), who)

    def withdraw(self, who: str, **changes: Any) -> str:
        return self.say(self.about(Withdraw, who, **changes), who)

    def propose(self, kind: type[Any], who: str = "lab-a/ada", **changes: Any) -> str:
        return self.say(self.about(kind, who, **changes), who)

    def agree(self, subject: str, *people: str, verdict: str = "approve") -> None:
        for who in people:
            self.decide(who, verdict, subject=subject)

    def wait(self, seconds: int) -> None:
        self.now_us += seconds * SECOND


def changed(value: Any, **fields: Any) -> Any:
    """``value`` with other fields."""
    return msgspec.structs.replace(value, **fields)
