"""A root as people write it: TOML, compiled to the statement that the parties sign.

    deployment = "keyturn.example.org"
    expires = 2036-01-01

    [thresholds]
    root = { persons = 3, organisations = 2, minimum = { regulator = 1 } }
    policy = { persons = 2, organisations = 2 }

    [[party]]
    id = "lab-a"
    organisation = "acme"
    class = "lab"
    name = "Lab A"

    [[person]]
    id = "lab-a/ada"
    keys = ["ssh-ed25519 AAAA… ada@desk", { key = "ed25519 …", valid_until = 2027-01-01 }]

Versions, hashes and the verifier's own keys aren't in it: they come from the root in force and from the verifier.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from keyturn_cli.errors import CliError, Exit
from keyturn_cli.moments import moment_us
from keyturn_cli.toml_forms import convert
from keyturn_protocol.canonical import Record
from keyturn_protocol.root import (
    Class,
    Party,
    Person,
    PersonKey,
    Root,
    Services,
    Standing,
    Steward,
    Threshold,
    Thresholds,
)

Moment = Any
"""A TOML date, its midnight in UTC, or a date and time with its offset."""


class _Threshold(Record, frozen=True, kw_only=True):
    persons: int
    organisations: int = 1
    minimum: dict[Class, int] = msgspec.field(default_factory=dict)


class _Thresholds(Record, frozen=True, kw_only=True):
    root: _Threshold
    policy: _Threshold


class _Party(Record, frozen=True, kw_only=True):
    id: str
    organisation: str
    class_: Class = msgspec.field(name="class")
    name: str = ""


class _Key(Record, frozen=True, kw_only=True):
    key: str
    valid_from: Moment = None
    valid_until: Moment = None
    compromised_since: Moment = None


class _Person(Record, frozen=True, kw_only=True):
    id: str
    keys: list[str | _Key]


class _Steward(Record, frozen=True, kw_only=True):
    party: str
    vkey: str


class Form(Record, frozen=True, kw_only=True):
    """The file, with the names that people write."""

    deployment: str
    expires: Moment
    thresholds: _Thresholds
    party: list[_Party]
    person: list[_Person]
    witness: list[_Steward] = msgspec.field(default_factory=list)
    watcher: list[_Steward] = msgspec.field(default_factory=list)


def compile_root(
    table: Mapping[str, Any], services: Services, before: Standing | None, now_us: int, where: str = ""
) -> Root:
    """The next root; parties and persons in the order that it asks for.

    :param before: the root in force; None makes version 1.
    :param where: the file, for the message.
    :raises CliError: which key of the file is wrong, and how.
    """
    form = convert(table, Form, where)
    if before is not None and form.deployment != before.root.deployment:
        raise CliError(
            f"deployment: must be that of the root in force, {before.root.deployment} (got {form.deployment})",
            exit=Exit.USAGE,
        )
    previous = None if before is None else before.hash
    return Root(
        v=1,
        deployment=form.deployment,
        root=previous,
        time_us=now_us,
        version=1 if before is None else before.root.version + 1,
        previous=previous,
        expires_us=moment_us("expires", form.expires),
        parties=sorted((_party(one) for one in form.party), key=lambda party: party.id),
        persons=sorted((_person(one) for one in form.person), key=lambda person: person.id),
        services=services,
        witnesses=_stewards(form.witness),
        watchers=_stewards(form.watcher),
        thresholds=Thresholds(root=_threshold(form.thresholds.root), policy=_threshold(form.thresholds.policy)),
    )


def _party(one: _Party) -> Party:
    return Party(id=one.id, organisation=one.organisation, class_=one.class_, name=one.name or one.id)


def _person(one: _Person) -> Person:
    keys = [key if isinstance(key, _Key) else _Key(key=key) for key in one.keys]
    made = [
        PersonKey(
            key=_key_text(key.key),
            valid_from_us=_moment(f"{one.id}: valid_from", key.valid_from) or 0,
            valid_until_us=_moment(f"{one.id}: valid_until", key.valid_until),
            compromised_since_us=_moment(f"{one.id}: compromised_since", key.compromised_since),
        )
        for key in keys
    ]
    return Person(id=one.id, party=one.id.partition("/")[0], keys=made)


def _moment(where: str, value: Moment) -> int | None:
    return None if value is None else moment_us(where, value)


def _key_text(line: str) -> str:
    """A key without the comment that a line of a ``.pub`` file ends with."""
    return " ".join(line.split()[:2])


def _threshold(one: _Threshold) -> Threshold:
    return Threshold(persons=one.persons, organisations=one.organisations, minimum=one.minimum)


def _stewards(listed: Iterable[_Steward]) -> list[Steward]:
    return [Steward(party=one.party, vkey=one.vkey) for one in listed]
