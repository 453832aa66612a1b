"""A host under a lease: its log with permit and lease entries, and the fold of what it charges."""

from collections.abc import Mapping
from itertools import groupby
from typing import Any, Self

from msgspec import structs

from keyturn_protocol.canonical import encode_record, parse
from keyturn_protocol.charging import EMPTY, Charge, ChargeState
from keyturn_protocol.chips import chip_table
from keyturn_protocol.entries import Entry, Usage, parse_entry
from keyturn_protocol.entries import Lease as LeaseEntry
from keyturn_protocol.entry_inventory import Chip, InventoryBody
from keyturn_protocol.entry_switch import LeaseBody, LeaseGap, PermitBody, SpecChecks
from keyturn_protocol.entry_usage import FIELDS, Share, UsageBody
from keyturn_protocol.ids import Deployment
from keyturn_protocol.lease import Lease, lease_hash, lease_subject
from keyturn_protocol.lease_accounts import TERA
from keyturn_protocol.usage_runs import Run
from tests.support.hosts import Host, chip

NAME = Deployment("kt.example")
RUN = "41" * 32
SECOND = 1_000_000
UNCHECKED = SpecChecks(argv="unchecked", config="unchecked", data="unchecked", image="unchecked")
WORK = {
    "energy_mj": 3_000_000,
    "busy_us": 10_000_000,
    "elapsed_mcycles": 17_000,
    "active_mcycles": 15_000,
    "tensor_mcycles": 9_000,
    "hmma_mcycles": 9_000,
    "imma_mcycles": 0,
    "dmma_mcycles": 0,
    "fp64_mcycles": 0,
    "fp32_mcycles": 2_000,
    "fp16_mcycles": 100,
}
"""Ten busy seconds with every counter."""


class Metered(Host):
    """Writes what it charges as the fold has it, unless it is told to write something else."""

    def __init__(self, seed: str = "a", **more: Any) -> None:
        super().__init__(seed, NAME, **more)
        self.boots = 1
        self.leases: dict[str, Lease] = {}
        self.nonces = 0
        self.uuids: list[str] = []
        self.issued: dict[str, int] = {}
        """Subject → how many leases of it were issued."""

    def add(self, body: Any, **overrides: Any) -> Self:
        return super().add(body, **({"boots": self.boots} | overrides))

    def reboot(self, off_s: int = 60, *, clock_s: int = 0) -> Self:
        """``clock_s``: how far the wall clock is off afterwards."""
        self.boots += 1
        self.boot = f"{self.boot[:24]}{self.boots:012x}"
        self.now_us += (off_s + clock_s) * SECOND
        self.mono_us = 5 * SECOND
        self.now_us += self.mono_us
        return self

    def chips_are(self, *chips: Chip) -> Self:
        self.chips = len(chips)
        return self.add(
            InventoryBody(
                chips=list(chips), driver_version=None, nvml_version=None, cuda_version=None, gate="observe", pci=None
            )
        )

    def ask(self, chips: list[str], run: str = RUN) -> str:
        """Writes a permit entry; its nonce."""
        self.nonces += 1
        nonce = f"{self.nonces:064x}"
        self.add(
            PermitBody(chips=chips, group="", hosts=1, kind="run", lineage=None, nonce=nonce, run=run, spec=UNCHECKED)
        )
        return nonce

    def ask_allowance(self, chips: list[str], lineage: str | None) -> str:
        """Of diagnostics, without a lineage."""
        self.nonces += 1
        nonce = f"{self.nonces:064x}"
        body = PermitBody(
            chips=chips,
            group="",
            hosts=1,
            kind="diagnostics" if lineage is None else "allowance",
            lineage=lineage,
            nonce=nonce,
            run=None,
            spec=UNCHECKED,
        )
        self.add(body)
        return nonce

    def listing(self, uuids: list[str]) -> Self:
        return self.chips_are(*map(h100, uuids))

    def lease(self, chips: list[str], *, run: str = RUN, **changes: Any) -> str:
        """Asks for a lease, gets one and adopts it; its hash."""
        nonce = self.ask(chips, run)
        digest = self.granted(chips, nonce, run=run, **changes)
        self.say(digest, "adopted")
        return digest

    def granted(self, chips: list[str], nonce: str, *, run: str = RUN, **changes: Any) -> str:
        fields: dict[str, Any] = {
            "v": 1,
            "deployment": NAME,
            "root": "00" * 32,
            "policy": "00" * 32,
            "run": run,
            "allowance": None,
            "node_id": self.name.node_id,
            "boot_id": self.boot,
            "nonce": nonce,
            "sequence": len(self.leases),
            "charged_tflop": 0,
            "chips": chips,
            "dtypes": [],
            "upto_tflop": 10**9,
            "ttl_s": 3600,
            "epoch": 0,
            "time_us": self.now_us,
            "renew_s": 600,
        }
        lease = Lease(**fields | changes)
        digest = lease_hash(lease).hex()
        self.leases[digest] = lease
        return digest

    def say(
        self,
        lease: str,
        event: str = "report",
        *,
        flop: int | None = None,
        gaps: tuple[LeaseGap, ...] = (),
        reason: str = "done",
    ) -> int:
        """Writes a lease entry, with what the fold says or ``flop``. ``reason``: of a last word."""
        why = reason if event == "final" else None
        draft = LeaseBody(charged_flop="0", event=event, gaps=list(gaps), lease=lease, reason=why)  # type: ignore[arg-type]
        charge = self.charge()
        charged = charge.to_say(draft, self.boots, self.mono_us, self.now_us) if flop is None else flop
        self.add(structs.replace(draft, charged_flop=str(charged)))
        return charged

    def account(self, subject: str) -> tuple[int, int]:
        """The sequence of the next lease, and TFLOP that the log says are charged."""
        words = [entry.body for entry in self.entries if isinstance(entry, LeaseEntry)]
        own = [word for word in words if word.lease in self.leases]
        flop = [int(word.charged_flop) for word in own if lease_subject(self.leases[word.lease]) == subject]
        return self.issued.get(subject, 0), tflop(max(flop, default=0))

    def gap(self, uuid: str, from_us: int, energy_mj: int, to_us: int | None = None) -> LeaseGap:
        return LeaseGap(
            chip=uuid, mono_from_us=from_us, mono_to_us=self.mono_us if to_us is None else to_us, energy_mj=energy_mj
        )

    def works(self, *each: Mapping[str, int | None], s: int = 10, workload: str | None = "run:a") -> Self:
        """A usage entry of ``s`` seconds; one set of counters for each chip, the last one for all that follow."""
        sets = [each[min(i, len(each) - 1)] if each else WORK for i in range(self.chips)]
        start_us, start_mono = self.now_us, self.mono_us
        self.wait(s * SECOND)
        columns = {name: [one.get(name) for one in sets] for name in FIELDS}
        read = [any(value is not None for value in one.values()) for one in sets]
        shares = [
            Share(chip=i, id=workload, class_="exclusive", share_ppm=1_000_000)
            for i in range(self.chips)
            if workload and read[i]
        ]
        return self.add(
            UsageBody(
                from_us=start_us,
                to_us=self.now_us,
                mono_from_us=start_mono,
                samples=[10 if yes else 0 for yes in read],
                workloads=shares,
                **columns,
            )
        )

    @property
    def entries(self) -> list[Entry]:
        return [parse_entry(line) for line in self.lines]

    def charge(self) -> Charge:
        """The fold of the whole log, entry by entry."""
        folding = Charge(chip_table(), self.leases)
        for entry in self.entries:
            folding.entry(entry)
        return folding

    def charged(self, run: str = RUN) -> int:
        return self.charge().charged_flop(run)


def in_runs(entries: list[Entry], leases: dict[str, Lease], run: str = RUN) -> int:
    """What a log comes to when its usage is read in runs."""
    folding = Charge(chip_table(), leases)
    for boots, group in groupby(entries, key=lambda e: e.boots if isinstance(e, Usage) else None):
        if boots is None:
            for entry in group:
                folding.entry(entry)
        else:
            folding.run(Run.of([entry for entry in group if isinstance(entry, Usage)]))
    return folding.charged_flop(run)


def with_restarts(entries: list[Entry], leases: dict[str, Lease], run: str = RUN) -> int:
    """What it comes to when the state is stored and read back between any two entries."""
    state: ChargeState = EMPTY
    for entry in entries:
        folding = Charge(chip_table(), leases, state)
        folding.entry(entry)
        state = parse(encode_record(folding.state()), ChargeState)
    return Charge(chip_table(), leases, state).charged_flop(run)


def h100(uuid: str = "GPU-a", **changes: Any) -> Chip:
    return structs.replace(chip(uuid), **changes)


def tflop(value: int) -> int:
    return -(-value // TERA)
