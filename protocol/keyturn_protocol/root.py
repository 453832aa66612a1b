"""The root: who the parties are, which keys speak for them, and how many it takes to change that.

    {"deployment":"keyturn.example.org","expires_us":…,"parties":[{"class":"lab","id":"lab-a","name":"Lab A",
     "organisation":"acme"},…],"persons":[{"id":"lab-a/ada","keys":[{"compromised_since_us":null,"key":"ed25519 …",
     "valid_from_us":…,"valid_until_us":null}],"party":"lab-a"},…],"previous":null,"root":null,"services":{…},
     "thresholds":{"policy":{…},"root":{"minimum":{"regulator":1},"organisations":2,"persons":3}},"time_us":…,
     "type":"root","v":1,"version":1,"watchers":[],"witnesses":[]}                        (one line)

Pinned by the hash of its payload, out of band, when a host enrols and when an auditor audits. Each later root names
the one before and is signed under the thresholds of both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Final, Literal

import msgspec

from keyturn_protocol.canonical import Hex32, Positive, Record, Text
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import deployment as check_deployment
from keyturn_protocol.ids import lease_name, log_origin, receipt_name
from keyturn_protocol.keys import SignatureType, parse_vkey
from keyturn_protocol.limits import KEYS_PER_PERSON, PARTIES, PERSONS, STEWARDS
from keyturn_protocol.public_keys import PublicKey, parse_public_key
from keyturn_protocol.statement_base import Statement
from keyturn_protocol.values import Micros

Name = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?\Z")]
"""Of a party or an organisation: lower-case ASCII, so that no two of them look alike."""
PersonId = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9-]{1,64}/[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?\Z")]
"""``<party>/<name>``: a person belongs to one party."""
Class = Literal["lab", "operator", "regulator", "third-party"]
CLASSES: Final[tuple[Class, ...]] = ("lab", "operator", "regulator", "third-party")


class Party(Record, frozen=True, kw_only=True):
    """One that has a say. Parties of one organisation count as one where distinct organisations are asked for."""

    id: Name
    organisation: Name
    class_: Class = msgspec.field(name="class")
    name: Text
    """For people to read; nothing is decided by it."""


class PersonKey(Record, frozen=True, kw_only=True):
    """A key that speaks for a person, from ``valid_from_us`` to before ``valid_until_us``.

    ``compromised_since_us`` voids what it signed from then on, however long ago that is found out.
    """

    key: str
    valid_from_us: Micros
    valid_until_us: Micros | None
    compromised_since_us: Micros | None


class Person(Record, frozen=True, kw_only=True):
    """Someone who signs. Several keys of one person count once."""

    id: PersonId
    party: Name
    keys: Annotated[list[PersonKey], msgspec.Meta(max_length=KEYS_PER_PERSON)]


class Threshold(Record, frozen=True, kw_only=True):
    """How many must sign: persons in all, distinct organisations among them, persons of each class."""

    persons: Positive
    organisations: Positive
    minimum: dict[Class, Positive]


class Services(Record, frozen=True, kw_only=True):
    """The verifier's keys, as vkeys: of its log, its receipts and its leases."""

    log_vkey: str
    receipt_vkey: str
    lease_vkey: str


class Thresholds(Record, frozen=True, kw_only=True):
    """What it takes to replace the root, and to put a policy in force."""

    root: Threshold
    policy: Threshold


class Steward(Record, frozen=True, kw_only=True):
    """A cosigner of the verifier's log that a party runs: a witness or a watcher."""

    party: Name
    vkey: str


class Root(Statement, frozen=True, kw_only=True, tag="root"):
    """Its own ``root`` is null in version 1 and otherwise, as ``previous``, the hash of the version before."""

    version: Positive
    previous: Hex32 | None
    expires_us: Micros
    parties: Annotated[list[Party], msgspec.Meta(min_length=1, max_length=PARTIES)]
    persons: Annotated[list[Person], msgspec.Meta(min_length=1, max_length=PERSONS)]
    services: Services
    witnesses: Annotated[list[Steward], msgspec.Meta(max_length=STEWARDS)]
    watchers: Annotated[list[Steward], msgspec.Meta(max_length=STEWARDS)]
    thresholds: Thresholds


@dataclass(frozen=True, slots=True)
class Key:
    """Where a key stands in a root."""

    person: Person
    party: Party
    validity: PersonKey
    public: PublicKey

    def refusal(self, signed_us: int, now_us: int) -> str | None:
        """Why a signature made at ``signed_us`` doesn't count at ``now_us``, None if it does."""
        validity = self.validity
        if validity.compromised_since_us is not None and signed_us >= validity.compromised_since_us:
            return "the key was compromised before"
        for at_us in (signed_us, now_us):
            if at_us < validity.valid_from_us:
                return "the key isn't valid yet"
            if validity.valid_until_us is not None and at_us >= validity.valid_until_us:
                return "the key is no longer valid"
        return None


@dataclass(frozen=True, slots=True)
class Standing:
    """A checked root with its look-ups."""

    root: Root
    hash: str
    """64 hex digits; what statements under this root name."""
    parties: Mapping[str, Party]
    persons: Mapping[str, Person]
    keys: Mapping[str, Key]
    """By :attr:`PublicKey.id`: curve and point, so that one key in two wrappers is one."""
    public_keys: Mapping[str, PublicKey]
    """The same keys, for :func:`~keyturn_protocol.dsse.verify`."""

    def party_of(self, person: str) -> Party:
        return self.parties[self.persons[person].party]


@dataclass(frozen=True, slots=True)
class _Asked:
    """Equal when the roots are, not only their hashes: who asks is not trusted to have hashed well."""

    root: Root
    digest: str

    def __hash__(self) -> int:
        return hash(self.digest)


def stand(root: Root, digest: str) -> Standing:
    """Check a root by itself and index it; ``digest`` is the hash of its payload.

    :raises ProtocolError: ``bad_root``, ``bad_key`` or ``bad_identifier``.
    """
    return _stand(_Asked(root, digest))


@lru_cache(maxsize=16)  # a host opens bundles under one and the same root all day
def _stand(asked: _Asked) -> Standing:
    root, digest = asked.root, asked.digest
    check_deployment(root.deployment)
    first = root.version == 1
    if (root.previous is None) != first or root.root != root.previous:
        raise _bad("version 1 names no root before it, every other one does, as `previous` and as `root`")
    _ordered("parties", [party.id for party in root.parties])
    _ordered("persons", [person.id for person in root.persons])
    parties = {party.id: party for party in root.parties}
    for person in root.persons:
        if person.party not in parties or not person.id.startswith(person.party + "/"):
            raise _bad("a person is named <party>/<name>, of a party in the root", got=f"{person.id} of {person.party}")
    keys = _keys(root, parties)
    _check_services(root, parties, {key.public.point for key in keys.values()})
    public = {key_id: key.public for key_id, key in keys.items()}
    return Standing(root, digest, parties, {person.id: person for person in root.persons}, keys, public)


def _keys(root: Root, parties: Mapping[str, Party]) -> dict[str, Key]:
    """Every key by its id: one key speaks for one person, in one wrapper."""
    found: dict[str, Key] = {}
    for person in root.persons:
        for validity in person.keys:
            public = parse_public_key(validity.key)
            if public.id in found:
                raise _bad("one key is listed twice", expected=found[public.id].person.id, got=person.id)
            if validity.valid_until_us is not None and validity.valid_until_us <= validity.valid_from_us:
                raise _bad("a key that is never valid", expected="valid_from_us < valid_until_us", got=person.id)
            found[public.id] = Key(person, parties[person.party], validity, public)
    return found


def _check_services(root: Root, parties: Mapping[str, Party], taken: set[bytes]) -> None:
    """One key, one purpose: no service's or steward's key is another's, or a person's."""
    name = check_deployment(root.deployment)
    services = root.services
    wanted = (
        (services.log_vkey, log_origin(name), SignatureType.ED25519),
        (services.receipt_vkey, receipt_name(name), SignatureType.COSIGNATURE_ED25519),
        (services.lease_vkey, lease_name(name), SignatureType.ED25519),
    )
    used = set(taken)
    for text, expected, kind in wanted:
        key = parse_vkey(text)
        if key.name != expected or key.kind is not kind:
            raise _bad("service key of another name or kind", expected=f"{expected}, type {kind:#04x}", got=text)
        if key.public_key in used:
            raise _bad("one key for two purposes", got=text)
        used.add(key.public_key)
    for steward in (*root.witnesses, *root.watchers):
        key = parse_vkey(steward.vkey)
        if steward.party not in parties:
            raise _bad("a witness or watcher of no party", expected="a party of the root", got=steward.party)
        if key.kind is SignatureType.ED25519 or key.public_key in used:
            raise _bad("a cosigner's key signs nothing but cosignatures", got=steward.vkey)
        used.add(key.public_key)


def _ordered(what: str, ids: Sequence[str]) -> None:
    if list(ids) != sorted(set(ids)):
        raise _bad(f"{what} are in the order of their ids, each once")


def _bad(message: str, **details: object) -> ProtocolError:
    return ProtocolError(Code.BAD_ROOT, message, **details)
