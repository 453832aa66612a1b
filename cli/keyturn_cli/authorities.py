"""Roots and policies with their signatures: who signed, by whose count, and who is missing."""

from collections.abc import Iterable
from dataclasses import dataclass

from keyturn_cli import render_authority, switch_text
from keyturn_cli.errors import CliError, Exit
from keyturn_cli.lines import Lines
from keyturn_protocol.authority import Authority, Logged, Refused
from keyturn_protocol.dsse import Envelope, verify
from keyturn_protocol.policy import Policy
from keyturn_protocol.quorum import Tally, tally
from keyturn_protocol.root import Root, Standing, Threshold, stand
from keyturn_protocol.switch import signing_keys


@dataclass(frozen=True, slots=True)
class Count:
    """How far signatures get, under one root."""

    standing: Standing
    threshold: Threshold
    persons: tuple[str, ...]
    """Who signed with a key that is valid."""

    @property
    def tally(self) -> Tally:
        return tally(self.threshold, self.persons, self.standing)

    def with_person(self, person: str) -> "Count":
        """With one more who signs; no change for somebody that this root doesn't know."""
        known = {person} & self.standing.persons.keys()
        return Count(self.standing, self.threshold, tuple(sorted({*self.persons, *known})))


@dataclass(frozen=True, slots=True)
class Judged:
    """A root or policy, every signature of it verified; a root after the first is counted under two roots."""

    envelope: Envelope
    said: Root | Policy
    counts: tuple[Count, ...]

    @property
    def hash(self) -> str:
        return self.envelope.hash.hex()

    @property
    def met(self) -> bool:
        return all(count.tally.met for count in self.counts)


def judge(envelope: Envelope, said: Root | Policy, under: Authority, at_us: int) -> Judged:
    """Verify the signatures that there are, and count them.

    :param under: what was in force before it.
    :raises ProtocolError: a signature that doesn't verify, or by a key that may not sign it.
    :raises CliError: a policy without a root.
    """
    if envelope.signatures:
        verify(envelope, signing_keys(under, said))
    judges = [under.roots[-1][1]] if under.roots else []
    if isinstance(said, Root):
        judges = [*judges, stand(said, envelope.hash.hex())]
    if not judges:
        raise CliError("there is no root yet under which a policy could stand", exit=Exit.REJECTED)
    return Judged(envelope, said, tuple(_count(one, said, envelope.signatures, at_us) for one in judges))


def _count(standing: Standing, said: Root | Policy, keys: Iterable[str], at_us: int) -> Count:
    thresholds = standing.root.thresholds
    valid = {
        standing.keys[key].person.id
        for key in keys
        if key in standing.keys and standing.keys[key].refusal(at_us, at_us) is None
    }
    return Count(standing, thresholds.root if isinstance(said, Root) else thresholds.policy, tuple(sorted(valid)))


def before(authority: Authority, index: int) -> Authority:
    """What was in force before a leaf."""
    return Authority(
        tuple(one for one in authority.roots if one[0] < index),
        tuple(one for one in authority.policies if one[0] < index),
    )


def refusal(judged: Judged, under: Authority, index: int, at_us: int) -> Refused | None:
    """Why it could never come into force as the next one, even if everybody signed; None if it could.

    :raises ProtocolError: ``bad_policy``: it can't both approve and refuse.
    """
    everyone = {key for count in judged.counts for key in count.standing.keys}
    logged = Logged(index, at_us, judged.hash, judged.said, tuple(sorted(everyone)), len(judged.envelope.payload))
    try:
        under.with_root(logged) if isinstance(judged.said, Root) else under.with_policy(logged)
    except Refused as error:
        return error
    return None


def screen(judged: Judged, at_us: int) -> Lines:
    """All of it, with who has signed and who is missing."""
    said = judged.said
    if isinstance(said, Root):
        lines = render_authority.root(said, judged.hash, at_us)
    else:
        lines = render_authority.policy(said, judged.hash)
    for count in judged.counts:
        whose = f"under root version {count.standing.root.version}" if len(judged.counts) > 1 else ""
        add_count(lines, count, whose)
    return lines


def add_count(lines: Lines, count: Count, whose: str) -> None:
    """Adds who signed by one count, and who is missing."""
    lines.add("signed", switch_text.persons(count.persons, count.standing) or "by nobody", *([whose] if whose else []))
    lines.add("missing", str(count.tally), style="" if count.tally.met else "yellow")


def to_json(judged: Judged) -> dict[str, object]:
    """The same as plain values."""
    counts = [
        {
            "root": count.standing.hash,
            "persons": list(count.persons),
            "met": count.tally.met,
            "missing": str(count.tally),
        }
        for count in judged.counts
    ]
    return {"kind": judged.envelope.kind, "sha256": judged.hash, "says": judged.said, "counts": counts}
