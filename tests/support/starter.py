"""Hosts that ask a verifier for leases: what their agents write, upload and ask for."""

from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from keyturn_protocol.api_switch import LEASES, LeaseRequest
from keyturn_protocol.canonical import encode_record
from keyturn_protocol.entry_switch import LeaseBody, PermitBody, SpecChecks
from keyturn_protocol.lease import Lease, open_lease, parse_lease
from tests.support.node import Client, Node, Reply, chip
from tests.support.verifier import Verifier

TERA = 10**12


def spec(**changes: Any) -> SpecChecks:
    return SpecChecks(**{"argv": "verified", "config": "declared", "data": "unchecked", "image": "verified"} | changes)


@dataclass
class Starter:
    """One host of a verifier; ``first``: the number of its first chip, so that no two hosts have the same."""

    verifier: Verifier
    node: Node
    first: int
    chips: int
    _nonces: int = 0

    @classmethod
    def enrolled(cls, verifier: Verifier, number: int, chips: int = 2, **token: Any) -> "Starter":
        node = Node.new(verifier.settings.deployment)
        answer = verifier.client.join(node, verifier.join_token(**token))
        assert answer.status == 200, answer
        made = cls(verifier, node, number * chips, chips)
        node.time_us = verifier.clock()
        node.genesis()
        node.inventory(chips, first=made.first)
        made.send()
        return made

    @property
    def uuids(self) -> list[str]:
        return [chip(self.first + at).uuid for at in range(self.chips)]

    def send(self, client: Client | None = None) -> None:
        """Upload what was written."""
        answer = (client or self.verifier.client).post(self.node.segment())
        assert answer.status == 200, answer

    def wants(self, run: str | None, **changes: Any) -> PermitBody:
        self._nonces += 1
        nonce = sha256(f"{self.node.origin} {self._nonces}".encode()).hexdigest()
        fields: dict[str, Any] = {
            **{"chips": self.uuids, "group": "0", "hosts": 1, "kind": "run" if run else "allowance"},
            **{"lineage": None if run else "aurora", "nonce": nonce, "run": run, "spec": spec()},
        }
        return PermitBody(**fields | changes)

    def ask(self, run: str | None, *, client: Client | None = None, **changes: Any) -> int:
        """Write and upload the entry that asks; returns its number."""
        self.node.append(self.wants(run, **changes))
        self.send(client)
        return self.node.size - 1

    def get(self, seq: int, client: Client | None = None) -> Reply:
        body = encode_record(LeaseRequest(origin=self.node.origin, seq=seq))
        return (client or self.verifier.client).request("POST", LEASES, body, content_type="application/json")

    def leased(self, run: str | None, **changes: Any) -> Lease:
        """Ask, and get one."""
        return self.opened(self.get(self.ask(run, **changes)))

    def opened(self, answer: Reply) -> Lease:
        assert (answer.status, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8"), answer
        key = self.verifier.keys.lease
        assert key is not None
        return open_lease(answer.body, key.public)

    def says(self, lease: Lease, tflop: int, event: Any = "report", *, reason: str | None = None) -> LeaseBody:
        return LeaseBody(
            charged_flop=str(tflop * TERA),
            event=event,
            gaps=[],
            lease=hash_of(lease),
            reason="ended" if event == "final" and reason is None else reason,
        )

    def report(self, lease: Lease, tflop: int, event: Any = "report") -> None:
        self.node.append(self.says(lease, tflop, event))
        self.send()


def hash_of(lease: Lease) -> str:
    from keyturn_protocol.lease import lease_hash

    return lease_hash(lease).hex()


def hash_in(answer: Reply) -> str:
    return parse_lease(answer.body).hash.hex()
