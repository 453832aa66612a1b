"""A deployment in which parties approve runs, hosts work under leases, and a verifier logs all of it; in memory.

    site = LeasedSite()
    host = site.host("a")
    lease = site.leased(host, 100)
    host.works().say(lease)
    site.receive(host)
    report = site.audit()

The verifier here issues whatever it is told to: what it shouldn't have, an audit must find.
"""

from collections.abc import Callable
from typing import Any

from keyturn_protocol.audit import Report, audit
from keyturn_protocol.bundle import lease_path
from keyturn_protocol.chips import chip_table
from keyturn_protocol.keys import parse_vkey
from keyturn_protocol.lease import AllowanceName, Lease, format_lease, lease_subject, lease_text
from keyturn_protocol.permit import Said
from keyturn_protocol.policy import Tier
from keyturn_protocol.root import Services
from tests.support.assembly import Assembly
from tests.support.bundles import Bundle, Site
from tests.support.hosts import Key
from tests.support.metered import Metered, h100
from tests.support.parties import NAME, SECOND, root, scope, service

LEASE_KEY = Key("service lease")


class LeasedSite(Site):
    """With a run that is approved for ``budget_tflop``."""

    def __init__(
        self,
        budget_tflop: int = 10**6,
        *,
        tiers: list[Tier] | None = None,
        before: Callable[["LeasedSite"], None] = lambda _: None,
        **changes: Any,
    ) -> None:
        """
        :param before: what happens before there is a root.
        :param changes: of the run's scope.
        """
        super().__init__(NAME)
        before(self)
        services = Services(
            log_vkey=str(self.log_vkey), receipt_vkey=str(self.receipt_vkey), lease_vkey=service("lease", 1)
        )
        self.hall = Assembly(of=root(services=services), **({"tiers": tiers} if tiers else {}))
        wanted = {"budget_tflop": budget_tflop, "chips": 64} | changes
        request = self.hall.request(scope=scope(**wanted))
        self.run = self.hall.say(request, "lab-a/ada")
        for who in ("lab-a/bob", "operator-b/eve", "office/ivy"):
            self.hall.say(self.hall.decision(self.run, who), who)
        self._heard = 0
        self.catch_up()

    def catch_up(self) -> None:
        """Log what the parties said since."""
        for one in self.hall.said[self._heard :]:
            self.say_at(one)
        self._heard = len(self.hall.said)

    def say_at(self, one: Said) -> None:
        self.now_s = max(self.now_s, one.time_us // SECOND - 1)
        self.say(one.envelope.to_bytes())
        self.hall.now_us = max(self.hall.now_us, self.now_s * SECOND + SECOND)

    def host(self, seed: str, chips: int = 1, *, organisation: str = "acme") -> Metered:
        """A host with chips, enrolled."""
        self.enrol(seed, organisation=organisation)
        made = Metered(seed)
        made.uuids = [f"GPU-{seed}{i}" for i in range(chips)]
        self.receive(made.genesis(source="nvml").chips_are(*map(h100, made.uuids)))
        return made

    def issue(self, host: Metered, upto: int, *, key: Key = LEASE_KEY, **changes: Any) -> str:
        """A lease that answers the host's newest permit entry, logged; its hash."""
        allowance: AllowanceName | None = changes.get("allowance")
        fields: dict[str, Any] = {
            "v": 1,
            "deployment": NAME,
            "root": self.root_sha256,
            "policy": self.hall.policy,
            "run": None if allowance else self.run,
            "allowance": None,
            "node_id": host.name.node_id,
            "boot_id": host.boot,
            "nonce": f"{host.nonces:064x}",
            "chips": host.uuids,
            "dtypes": [] if allowance else scope().dtypes,
            "upto_tflop": upto,
            "ttl_s": 3600,
            "epoch": 0,
            "time_us": (self.now_s + 1) * SECOND,  # of its leaf
            "renew_s": 600,
        }
        subject = lease_subject(Lease(**{"sequence": 0, "charged_tflop": 0} | fields | changes))
        sequence, charged = host.account(subject)
        lease = Lease(**fields | {"sequence": sequence, "charged_tflop": charged} | changes)
        note = format_lease(lease, parse_vkey(service("lease", 1)), key.sign(lease_text(lease)))
        digest = self.lease(note)
        host.leases[digest] = lease
        host.issued[subject] = sequence + 1
        return digest

    def leased(self, host: Metered, upto: int, **changes: Any) -> str:
        """The host asks, is leased so much in all, and adopts it; the hash."""
        host.ask(host.uuids, run=changes.get("run", self.run))
        self.receive(host)
        digest = self.issue(host, upto, **changes)
        host.say(digest, "adopted")
        self.receive(host)
        return digest

    def audit(self, bundle: Bundle | None = None) -> Report:
        made = bundle or self.export()
        return audit(made, None, chip_table(), root_sha256=self.hall.root)

    @staticmethod
    def lease_file(digest: str) -> str:
        return lease_path(digest)
