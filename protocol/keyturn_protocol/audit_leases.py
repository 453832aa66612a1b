"""Auditing leases: what nodes asked for and said they charged, held against what their own logs come to.

The logs are read side by side, so what they say about leases is gathered first (:class:`Gathering`) and then taken at
the leaves that cover it, in the order of the verifier's log (:class:`Taking`).
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from keyturn_protocol.bundle import BundleReader, lease_path
from keyturn_protocol.charging import Charge, Survivor
from keyturn_protocol.claim_findings import Listings
from keyturn_protocol.claims import Claims, Naming, naming_in
from keyturn_protocol.entries import Entry, Inventory, Permit
from keyturn_protocol.entries import Lease as LeaseEntry
from keyturn_protocol.entry_switch import LeaseBody, PermitBody, SpecChecks
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.findings import Finding, FindingCode, finding
from keyturn_protocol.ids import Origin, parse_origin
from keyturn_protocol.lease import Lease, parse_lease
from keyturn_protocol.lease_rules import leasable
from keyturn_protocol.leases import Asked
from keyturn_protocol.leaves import EnrolmentBody, NodeCheckpoint
from keyturn_protocol.leaves import Lease as LeaseLeaf
from keyturn_protocol.switch import Switch

_UNKNOWN: Final = SpecChecks(argv="unchecked", config="unchecked", data="unchecked", image="unchecked")


class BundleLeases(Mapping[str, Lease]):
    """The leases of a bundle by hash, read when a log names one. Who signed them is not asked here."""

    def __init__(self, reader: BundleReader) -> None:
        self._reader = reader
        self._read: dict[str, Lease | None] = {}

    def __getitem__(self, digest: str) -> Lease:
        if digest not in self._read:
            self._read[digest] = self._find(digest)
        found = self._read[digest]
        if found is None:
            raise KeyError(digest)
        return found

    def _find(self, digest: str) -> Lease | None:
        try:
            signed = parse_lease(self._reader.read(lease_path(digest)))
        except ProtocolError:
            return None  # that it isn't there, or isn't one, is a contradiction of its leaf
        return signed.lease if signed.hash.hex() == digest else None

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class Ask(NamedTuple):
    """A ``permit`` entry, and the chips that could be leased then."""

    seq: int
    boot_id: str
    body: PermitBody
    listed: frozenset[str]


class Word(NamedTuple):
    """A ``lease`` entry, and what the log comes to with it."""

    seq: int
    time_us: int
    body: LeaseBody
    flop: int


@dataclass(frozen=True, slots=True)
class Gathered:
    """All that one log says about leases, in order; small and picklable."""

    asks: tuple[Ask, ...] = ()
    words: tuple[Word, ...] = ()
    charged: Mapping[str, int] = field(default_factory=dict)
    """FLOP by subject, at the end of the log."""
    survivors: tuple[Survivor, ...] = ()
    namings: tuple[Naming, ...] = ()
    """What its segments say about chips."""


@dataclass(slots=True)
class Gathering:
    """:class:`Gathered`, while a log is read."""

    charge: Charge
    asks: list[Ask] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    listed: frozenset[str] = frozenset()
    namings: list[Naming] = field(default_factory=list)

    def take(self, events: Sequence[Entry], charged: Mapping[int, int]) -> None:
        """Entries of a segment but usage.

        :param charged: what the log comes to with each ``lease`` entry, by its seq.
        """
        if (naming := naming_in(events)) is not None:
            self.namings.append(naming)
        for entry in events:
            match entry:
                case Inventory(body=inventory):
                    self.listed = leasable(inventory)
                case Permit(body=body):
                    self.asks.append(Ask(entry.seq, entry.boot_id, body, self.listed))
                case LeaseEntry(body=said):
                    self.words.append(Word(entry.seq, entry.time_us, said, charged[entry.seq]))
                case _:
                    pass

    def gathered(self) -> Gathered:
        charge = self.charge
        subjects = charge.flop.keys() | charge.floor.keys()
        survivors = tuple(charge.survivors.values())
        charged = {subject: charge.charged_flop(subject) for subject in subjects}
        return Gathered(tuple(self.asks), tuple(self.words), charged, survivors, tuple(self.namings))


_Fields = tuple[str, str, str | None, str | None, tuple[str, ...]]
"""What a lease repeats of the entry that it answers, but for the node and the nonce."""


class LogOfLeases(Protocol):
    """What :class:`Taking` needs of a log's audit."""

    @property
    def gathered(self) -> Gathered: ...


class Taking:
    """Takes what was gathered at the leaves that cover it, and holds every lease against the switch."""

    def __init__(self, enrolments: Mapping[str, EnrolmentBody], logs: Mapping[str, LogOfLeases], missing: set[str]):
        """
        :param logs: by origin, those that verify.
        :param missing: origins of logs of which not all is here: nothing can be said about what they asked for.
        """
        self.findings: list[Finding] = []
        self._enrolments = enrolments
        self._asks = {origin: iter(log.gathered.asks) for origin, log in logs.items()}
        self._words = {origin: iter(log.gathered.words) for origin, log in logs.items()}
        self._next_ask: dict[str, Ask] = {}
        self._next_word: dict[str, Word] = {}
        self._asked: dict[tuple[str, str], dict[_Fields, list[Asked]]] = {}
        """Node and nonce → entries that no lease has answered yet, oldest first, by what a lease repeats of them. A
        host that says a nonce twice puts no verifier in the wrong."""
        self._missing: dict[str, Origin] = {parse_origin(origin).node_id: Origin(origin) for origin in missing}
        self._under: set[tuple[str, str]] = set()
        self._namings = {origin: deque(log.gathered.namings) for origin, log in logs.items()}
        self.claims = Claims()
        self.listings = Listings()

    def _heard(self, leaf: NodeCheckpoint) -> None:
        """What a segment says about chips; of a log that isn't here, that there was one."""
        name, waiting = parse_origin(leaf.body.origin), self._namings.get(leaf.body.origin)
        naming = waiting.popleft() if waiting and waiting[0].seq < leaf.body.size else None
        for fold in (self.claims, self.listings):
            fold.received(name, leaf.body.receipt_s, naming)

    def checkpoint(self, switch: Switch, leaf: NodeCheckpoint) -> None:
        """What a checkpoint of a node covers: asks to be answered from here on, and reports that count now."""
        origin, size = Origin(leaf.body.origin), leaf.body.size
        enrolment = self._enrolments.get(origin)
        if enrolment is None:
            return
        self._heard(leaf)
        if origin not in self._asks:
            return
        while (ask := self._next_ask.pop(origin, None) or next(self._asks[origin], None)) is not None:
            if ask.seq >= size:
                self._next_ask[origin] = ask
                break
            organisation, site = enrolment.organisation, enrolment.site
            asked = Asked(origin, ask.seq, ask.boot_id, ask.body, organisation, site, ask.listed, leaf.index)
            said = self._asked.setdefault((enrolment.node_id, ask.body.nonce), {})
            said.setdefault(_fields(ask.boot_id, ask.body), []).append(asked)
        while (word := self._next_word.pop(origin, None) or next(self._words[origin], None)) is not None:
            if word.seq >= size:
                self._next_word[origin] = word
                break
            self._word(switch, origin, word, leaf)

    def _word(self, switch: Switch, origin: Origin, word: Word, leaf: NodeCheckpoint) -> None:
        for code, detail in switch.report(origin, word.seq, word.body, leaf.index, leaf.time_us):
            self._find(FindingCode(code), origin, detail, word.seq, word.time_us)
        said = int(word.body.charged_flop)
        if said < word.flop and (origin, word.body.lease) not in self._under:
            self._under.add((origin, word.body.lease))
            detail = f"{said} FLOP charged where the log comes to {word.flop}"
            self._find(FindingCode.LEASE_UNDERCHARGED, origin, detail, word.seq, word.time_us)

    def lease(self, switch: Switch, lease: Lease, leaf: LeaseLeaf) -> None:
        """Take a lease, whose signature was checked.

        :raises ProtocolError: ``refused``, ``bad_lease``: it should never have been issued. It counts all the same.
        """
        kind = "run" if lease.allowance is None else lease.allowance.kind
        if kind != leaf.body.kind:
            raise ProtocolError(Code.BAD_LEASE, "of another kind than its leaf", expected=leaf.body.kind, got=kind)
        said = self._asked.get((lease.node_id, lease.nonce), {})
        if not said and lease.node_id in self._missing:
            asked = _as_told(lease, self._missing[lease.node_id], leaf.index)
            switch.grant(lease, leaf.body.sha256, asked, leaf.index, leaf.time_us)
            return
        if not said:
            got = f"node {lease.node_id}, nonce {lease.nonce}"
            raise ProtocolError(Code.BAD_LEASE, "it answers no permit entry that an earlier leaf covers", got=got)
        fields = _fields_of(lease)
        fields = fields if fields in said else next(iter(said))
        open_asks = said.pop(fields)
        at, wrong = self._answered(switch, lease, open_asks, leaf)
        # Also one that should never have been issued: whoever was granted it may have used it.
        switch.grant(lease, leaf.body.sha256, open_asks[at], leaf.index, leaf.time_us)
        if rest := open_asks[at + 1 :]:
            said[fields] = rest
        if not said:
            del self._asked[lease.node_id, lease.nonce]
        if wrong is not None:
            raise wrong

    def _answered(
        self, switch: Switch, lease: Lease, asked: Sequence[Asked], leaf: LeaseLeaf
    ) -> tuple[int, ProtocolError | None]:
        """Which of the entries a lease answers: the first that it may; and what it breaks, if there is none."""
        wrong = None
        for at, one in enumerate(asked):
            try:
                switch.check_lease(lease, one, self.claims, leaf.index, leaf.time_us)
            except ProtocolError as error:
                wrong = wrong or error
            else:
                return at, None
        return 0, wrong

    def _find(self, code: FindingCode, origin: str, detail: str, seq: int, time_us: int) -> None:
        self.findings.append(finding(code, origin, detail, seq=seq, from_us=time_us, to_us=time_us))


def _fields(boot_id: str, body: PermitBody) -> _Fields:
    return boot_id, body.kind, body.run, body.lineage, tuple(body.chips)


def _fields_of(lease: Lease) -> _Fields:
    kind = "run" if lease.allowance is None else lease.allowance.kind
    lineage = None if lease.allowance is None else lease.allowance.lineage
    return lease.boot_id, kind, lease.run, lineage, tuple(lease.chips)


def _as_told(lease: Lease, origin: Origin, index: int) -> Asked:
    """The entry that a lease of a log that isn't here must have answered."""
    body = PermitBody(
        chips=lease.chips,
        group="",
        hosts=1,
        kind="run" if lease.allowance is None else lease.allowance.kind,
        lineage=None if lease.allowance is None else lease.allowance.lineage,
        nonce=lease.nonce,
        run=lease.run,
        spec=_UNKNOWN,
    )
    return Asked(origin, lease.sequence, lease.boot_id, body, "", "", frozenset(lease.chips), index)


def survivor_findings(origin: str, survivors: Sequence[Survivor]) -> list[Finding]:
    """Workloads that went on on leased chips after the last word on their lease."""
    found = []
    for lease, workload, chip, from_us in survivors:
        detail = f"{workload} goes on on {chip} after the last word on lease {lease}"
        found.append(finding(FindingCode.LEASE_SURVIVORS, origin, detail, from_us=from_us, to_us=from_us))
    return found
