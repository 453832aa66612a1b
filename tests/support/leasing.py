"""Hosts that ask for leases, as the ledger sees them: asks, leases and reports in short."""

from hashlib import sha256
from typing import Any

from keyturn_protocol.authority import Refused
from keyturn_protocol.entry_switch import LeaseBody, PermitBody, SpecChecks
from keyturn_protocol.ids import Origin, parse_origin
from keyturn_protocol.lease import AllowanceName, Lease, lease_hash, lease_subject
from keyturn_protocol.leases import Asked, Irregular, Ledger
from keyturn_protocol.policy import Allowance
from keyturn_protocol.runs import Scope
from tests.support.parties import BEGIN, NAME, scope

SECOND = 1_000_000
TTL = 3600
RUN = "41" * 32
UNCHECKED = SpecChecks(argv="unchecked", config="unchecked", data="unchecked", image="unchecked")


def log(node: str, incarnation: int = 1) -> Origin:
    return Origin(f"{NAME}/node/{sha256(node.encode()).hexdigest()[:32]}/{incarnation}")


def boot(number: int) -> str:
    return f"{number:08x}-1111-4222-8333-444455556666"


def asking(lease: Lease) -> PermitBody:
    """What a host writes to get this lease."""
    return PermitBody(
        chips=lease.chips,
        group="",
        hosts=1,
        kind="run" if lease.allowance is None else lease.allowance.kind,
        lineage=None if lease.allowance is None else lease.allowance.lineage,
        nonce=lease.nonce,
        run=lease.run,
        spec=UNCHECKED,
    )


class Books:
    """A ledger, and hosts that write to it: seconds from :data:`BEGIN`, entries numbered by this class."""

    def __init__(self, limits: Scope | Allowance | None = None) -> None:
        self.ledger = Ledger()
        self.limits = limits or scope(budget_tflop=100, chips=8)
        self.seq: dict[Origin, int] = {}
        self.leases: dict[str, Lease] = {}

    def next_seq(self, origin: Origin) -> int:
        self.seq[origin] = self.seq.get(origin, 0) + 1
        return self.seq[origin]

    def asked(self, origin: Origin, lease: Lease, seq: int | None = None) -> Asked:
        body = asking(lease)
        listed = frozenset(lease.chips)
        number = self.next_seq(origin) if seq is None else seq
        return Asked(origin, number, lease.boot_id, body, "acme", "hall 1", listed, 0)

    def lease(self, origin: Origin, upto: int, *, subject: str | AllowanceName = RUN, **changes: Any) -> Lease:
        allowance = subject if isinstance(subject, AllowanceName) else None
        name = parse_origin(origin)
        fields: dict[str, Any] = {
            "v": 1,
            "deployment": NAME,
            "root": "00" * 32,
            "policy": "00" * 32,
            "run": None if allowance else subject,
            "allowance": allowance,
            "node_id": name.node_id,
            "boot_id": boot(1),
            "nonce": f"{len(self.leases):064x}",
            "sequence": 0,
            "charged_tflop": 0,
            "chips": [f"GPU-{name.node_id[:8]}"],
            "dtypes": [],
            "upto_tflop": upto,
            "ttl_s": TTL,
            "epoch": 0,
            "time_us": BEGIN,
            "renew_s": 600,
        }
        known = self.ledger.account(lease_subject(Lease(**fields | changes)), origin)
        newest = {"sequence": known.sequence, "charged_tflop": known.charged_tflop}
        return Lease(**fields | newest | changes)

    def grant(self, origin: Origin, upto: int, *, at_s: int = 0, seq: int | None = None, **changes: Any) -> str:
        """A lease, if the ledger lets it pass; its hash."""
        at_us = BEGIN + at_s * SECOND
        lease = self.lease(origin, upto, **{"time_us": at_us} | changes)
        asked = self.asked(origin, lease, seq)
        self.ledger.check(lease, asked, self.limits, at_us)
        digest = lease_hash(lease).hex()
        self.ledger.grant(lease, digest, asked, self.limits, at_us)
        self.leases[digest] = lease
        return digest

    def why(self, origin: Origin, upto: int, **changes: Any) -> str | None:
        """Why a lease is refused; None if it isn't. Nothing is granted."""
        at_us = BEGIN + changes.pop("at_s", 0) * SECOND
        seq = changes.pop("seq", None)
        lease = self.lease(origin, upto, **{"time_us": at_us} | changes)
        try:
            self.ledger.check(lease, self.asked(origin, lease, seq), self.limits, at_us)
        except Refused as refusal:
            return str(refusal.why)
        return None

    def report(
        self, origin: Origin, lease: str, tflop: float, event: str = "report", *, at_s: int = 0, seq: int | None = None
    ) -> list[str]:
        """What a host says that it has charged; the codes of what is wrong with that."""
        return [one.code for one in self.irregular(origin, lease, tflop, event, at_s=at_s, seq=seq)]

    def irregular(
        self, origin: Origin, lease: str, tflop: float, event: str = "report", *, at_s: int = 0, seq: int | None = None
    ) -> tuple[Irregular, ...]:
        """The same, with what is said about each."""
        body = LeaseBody(
            charged_flop=str(round(tflop * 10**12)),
            event=event,  # type: ignore[arg-type]
            gaps=[],
            lease=lease,
            reason="done" if event == "final" else None,
        )
        number = self.next_seq(origin) if seq is None else seq
        return self.ledger.report(origin, number, body, BEGIN + at_s * SECOND)
