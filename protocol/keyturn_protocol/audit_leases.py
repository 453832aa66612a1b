"""Auditing leases: what nodes asked for and said they charged, held against what their own logs come to.

The logs are read side by side, so what they say about leases is gathered first (:class:`Gathering`) and then taken at
the leaves that cover it, in the order of the verifier's log (:class:`Taking`).
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from keyturn_protocol.audit_left_out import LeftOut
from keyturn_protocol.bundle import BundleReader, lease_path
from keyturn_protocol.charging import Charge, Survivor
from keyturn_protocol.claim_findings import Listings
from keyturn_protocol.claims import Claims, Naming, naming_in
from keyturn_protocol.entries import Entry, Inventory, Permit
from keyturn_protocol.entries import Lease as LeaseEntry
from keyturn_protocol.entry_switch import LeaseBody, PermitBody
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.findings import Finding, FindingCode, finding
from keyturn_protocol.ids import LogName, Origin, parse_origin
from keyturn_protocol.lease import Lease, parse_lease
from keyturn_protocol.lease_rules import leasable, limits_of
from keyturn_protocol.leases import Asked
from keyturn_protocol.leaves import Enrolment, EnrolmentBody, NodeCheckpoint
from keyturn_protocol.leaves import Lease as LeaseLeaf
from keyturn_protocol.switch import Switch


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

    def __init__(self, enrolments: Mapping[str, EnrolmentBody], logs: Mapping[str, LogOfLeases], missing: Set[str]):
        """
        :param logs: by origin, those that are in the bundle.
        :param missing: origins of logs of which not all is here: what they asked for and reported is unknown.
        """
        self.findings: list[Finding] = []
        self._enrolments = enrolments
        self._asks = {origin: iter(log.gathered.asks) for origin, log in logs.items() if origin not in missing}
        self._words = {origin: iter(log.gathered.words) for origin, log in logs.items()}
        self._next_ask: dict[str, Ask] = {}
        self._next_word: dict[str, Word] = {}
        self._asked: dict[tuple[str, str], dict[_Fields, list[Asked]]] = {}
        """Log and nonce → entries that no lease has answered yet, oldest first, by what a lease repeats of them. A
        host that says a nonce twice puts no verifier in the wrong."""
        self._newest: dict[str, LogName] = {}
        """Node → its log that is open: what its earlier ones asked for, no lease answers any more."""
        self._left_out = LeftOut(missing) if missing else None
        self._unknown = {parse_origin(origin).node_id for origin in missing}
        """Nodes of which nobody can tell since when they name a chip."""
        self._under: set[tuple[str, str]] = set()
        self._namings = {origin: deque(log.gathered.namings) for origin, log in logs.items()}
        self.claims = Claims()
        self.listings = Listings()

    def enrolment(self, leaf: Enrolment) -> None:
        """A log is opened."""
        name = parse_origin(leaf.body.origin)
        if self._newest.setdefault(name.node_id, name).incarnation < name.incarnation:
            self._newest[name.node_id] = name

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
        if self._left_out is not None and origin in self._left_out:
            self._left_out.checkpoint(leaf)
        asks, words = self._asks.get(origin, iter(())), self._words.get(origin, iter(()))
        while (ask := self._next_ask.pop(origin, None) or next(asks, None)) is not None:
            if ask.seq >= size:
                self._next_ask[origin] = ask
                break
            organisation, site = enrolment.organisation, enrolment.site
            asked = Asked(origin, ask.seq, ask.boot_id, ask.body, organisation, site, ask.listed, leaf.index)
            said = self._asked.setdefault((origin, ask.body.nonce), {})
            said.setdefault(_fields(ask.boot_id, ask.body), []).append(asked)
        while (word := self._next_word.pop(origin, None) or next(words, None)) is not None:
            if word.seq >= size:
                self._next_word[origin] = word
                break
            self._word(switch, origin, word, leaf)

    def _word(self, switch: Switch, origin: Origin, word: Word, leaf: NodeCheckpoint) -> None:
        for code, detail in switch.report(origin, word.seq, word.body, leaf.index, leaf.time_us):
            self._find(FindingCode(code), origin, detail, word.seq, word.time_us)
        if self._left_out is not None:
            self._left_out.ledger.report(origin, word.seq, word.body, leaf.time_us)
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
        log = self._newest.get(lease.node_id)
        if log is not None and self._left_out is not None and log.origin in self._left_out:
            asked = self._left_out.asked(lease, self._enrolments[log.origin], leaf.index)
            wrong = self._wrong(switch, lease, asked, leaf)
        else:
            asked, wrong = self._answered(switch, lease, log, leaf)
        # Also one that should never have been issued: whoever was granted it may have used it.
        switch.grant(lease, leaf.body.sha256, asked, leaf.index, leaf.time_us)
        if self._left_out is not None:
            limits = limits_of(switch.authority, None if lease.run is None else switch.run_of(lease.run), leaf.index)
            self._left_out.ledger.grant(lease, leaf.body.sha256, asked, limits, leaf.time_us)
        if wrong is not None:
            raise wrong

    def _answered(
        self, switch: Switch, lease: Lease, log: LogName | None, leaf: LeaseLeaf
    ) -> tuple[Asked, ProtocolError | None]:
        """Which of a log's entries a lease answers: the first that it may; and what it breaks, if there is none.

        :raises ProtocolError: ``bad_lease``: nothing asked for it.
        """
        place = ("" if log is None else log.origin, lease.nonce)
        said = self._asked.get(place)
        if not said:
            got = f"node {lease.node_id}, nonce {lease.nonce}"
            raise ProtocolError(Code.BAD_LEASE, "it answers no permit entry that an earlier leaf covers", got=got)
        fields = _fields_of(lease)
        fields = fields if fields in said else next(iter(said))
        open_asks = said.pop(fields)
        at, wrong = 0, self._wrong(switch, lease, open_asks[0], leaf)
        if wrong is not None:
            others = range(1, len(open_asks))
            at = next((i for i in others if self._wrong(switch, lease, open_asks[i], leaf) is None), 0)
        if rest := open_asks[at + 1 :]:
            said[fields] = rest
        if not said:
            del self._asked[place]
        return open_asks[at], None if at else wrong

    def _wrong(self, switch: Switch, lease: Lease, asked: Asked, leaf: LeaseLeaf) -> ProtocolError | None:
        """What a lease breaks that answers this entry."""
        claims = Claims() if lease.node_id in self._unknown else self.claims
        ledger = None if self._left_out is None else self._left_out.ledger
        try:
            switch.check_lease(lease, asked, claims, leaf.index, leaf.time_us, ledger=ledger)
        except ProtocolError as error:
            return error
        return None

    def _find(self, code: FindingCode, origin: str, detail: str, seq: int, time_us: int) -> None:
        self.findings.append(finding(code, origin, detail, seq=seq, from_us=time_us, to_us=time_us))


def _fields(boot_id: str, body: PermitBody) -> _Fields:
    return boot_id, body.kind, body.run, body.lineage, tuple(body.chips)


def _fields_of(lease: Lease) -> _Fields:
    kind = "run" if lease.allowance is None else lease.allowance.kind
    lineage = None if lease.allowance is None else lease.allowance.lineage
    return lease.boot_id, kind, lease.run, lineage, tuple(lease.chips)


def survivor_findings(origin: str, survivors: Sequence[Survivor]) -> list[Finding]:
    """Workloads that went on on leased chips after the last word on their lease."""
    found = []
    for lease, workload, chip, from_us in survivors:
        detail = f"{workload} goes on on {chip} after the last word on lease {lease}"
        found.append(finding(FindingCode.LEASE_SURVIVORS, origin, detail, from_us=from_us, to_us=from_us))
    return found
