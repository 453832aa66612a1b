"""Which root and policy were in force at which leaf, and whose signature counts there."""

from dataclasses import dataclass
from enum import StrEnum

import msgspec

from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.limits import AUTHORITY_BYTES, SIGNED_BYTES, STATEMENT_SIGNATURES
from keyturn_protocol.policy import Policy, check_policy
from keyturn_protocol.quorum import tally
from keyturn_protocol.root import Root, Standing, stand
from keyturn_protocol.statement_base import Statement


class Why(StrEnum):
    """Why the switch refuses a statement whose form is good. Stable; ``keyturn explain`` says what to do about each."""

    UNKNOWN = "unknown"
    WRONG_KIND = "wrong_kind"
    OTHER_ROOT = "other_root"
    OTHER_POLICY = "other_policy"
    NO_POLICY = "no_policy"
    NOT_A_PERSON = "not_a_person"
    OTHER_SIGNER = "other_signer"
    KEY_NOT_VALID = "key_not_valid"
    NOT_ENTITLED = "not_entitled"
    REQUESTER = "requester"
    TOO_LATE = "too_late"
    DECIDED = "decided"
    OVER = "over"
    WIDENS = "widens"
    BROKEN = "broken"
    NO_PERMIT = "no_permit"
    NOT_SUSPENDED = "not_suspended"
    OVERRULED = "overruled"
    STALE = "stale"
    VERSION = "version"
    THRESHOLD = "threshold"
    EXHAUSTED = "exhausted"
    TOO_MANY_CHIPS = "too_many_chips"
    OWES_REPORT = "owes_report"
    TOO_MUCH = "too_much"
    SAID_BEFORE = "said_before"
    CHIP_TAKEN = "chip_taken"
    ASSURANCE = "assurance"
    UNVERIFIED = "unverified"
    SITE = "site"
    WINDOW = "window"
    SUSPENDED = "suspended"
    NOT_YET = "not_yet"
    UNKNOWN_CHIP = "unknown_chip"
    ORGANISATION = "organisation"
    REPLACED = "replaced"
    CHIP_CLAIMED = "chip_claimed"


class Refused(ProtocolError):
    """The switch refuses a statement: ``why`` for programs, the message for people."""

    def __init__(self, why: Why, message: str, *, expected: object = None, got: object = None) -> None:
        super().__init__(Code.REFUSED, message, expected=expected, got=got)
        self.why = why


def refuse(why: Why, message: str, *, expected: object = None, got: object = None) -> Refused:
    return Refused(why, message, expected=expected, got=got)


class Logged(msgspec.Struct, frozen=True):
    """A statement as a leaf of the verifier's log, its signatures verified."""

    index: int
    time_us: int
    hash: str
    statement: Statement
    signers: tuple[str, ...]
    """Ids of the keys that signed, each once."""
    size: int = 0
    """Bytes of its payload."""

    @property
    def kept_bytes(self) -> int:
        """The most that it takes in a permit bundle, whose payloads are base64: the same for all who count it, whatever
        exactly its signatures are."""
        signatures = min(max(len(self.signers), 1), STATEMENT_SIGNATURES)
        return (self.size + 2) // 3 * 4 + signatures * SIGNED_BYTES


@dataclass(frozen=True, slots=True)
class Authority:
    """Every root and policy, with the leaf from which on it is in force."""

    roots: tuple[tuple[int, Standing], ...] = ()
    policies: tuple[tuple[int, str, Policy], ...] = ()
    kept_bytes: int = 0
    """Of all of them, as every permit bundle has them."""

    def standing_at(self, index: int) -> Standing:
        """The root in force for the leaf ``index``: the last one before it."""
        for since, standing in reversed(self.roots):
            if since < index:
                return standing
        raise refuse(Why.OTHER_ROOT, "there is no root yet")

    def standing_for(self, logged: Logged) -> Standing:
        """The root in force for a statement, which must name it."""
        standing = self.standing_at(logged.index)
        if logged.statement.root != standing.hash:
            raise refuse(Why.OTHER_ROOT, "under another root", expected=standing.hash, got=logged.statement.root)
        return standing

    def policy_at(self, index: int) -> tuple[str, Policy]:
        """The policy in force for the leaf ``index``."""
        found = next(((digest, policy) for since, digest, policy in reversed(self.policies) if since < index), None)
        if found is None:
            raise refuse(Why.NO_POLICY, "there is no policy yet")
        return found

    def with_root(self, logged: Logged) -> "Authority":
        """With the next root; the first is believed for its hash alone, which who asks has pinned.

        :raises Refused: it doesn't follow the last one, too few of the old or the new parties signed, or there is no
            room for it in a permit bundle.
        """
        root = logged.statement
        if not isinstance(root, Root):
            raise refuse(Why.WRONG_KIND, "not a root", got=type(root).__name__)
        new = stand(root, logged.hash)
        judges = [new]
        if self.roots:
            old = self.standing_at(logged.index)
            judges.append(old)
            if (root.version, root.previous) != (old.root.version + 1, old.hash):
                raise refuse(
                    Why.VERSION,
                    "not the next root",
                    expected=f"version {old.root.version + 1} after {old.hash}",
                    got=f"version {root.version} after {root.previous}",
                )
        elif root.version != 1:
            raise refuse(Why.VERSION, "not the first root", expected="version 1", got=root.version)
        for standing in judges:
            _met(standing, logged, "root")
        return Authority((*self.roots, (logged.index, new)), self.policies, self._with(logged, AUTHORITY_BYTES))

    def with_policy(self, logged: Logged) -> "Authority":
        """With the next policy.

        :raises Refused: it doesn't follow the last one, too few signed, or there is no room for it in a permit bundle.
        :raises ProtocolError: ``bad_policy``.
        """
        policy = logged.statement
        if not isinstance(policy, Policy):
            raise refuse(Why.WRONG_KIND, "not a policy", got=type(policy).__name__)
        standing = self.standing_for(logged)
        last = self.policies[-1] if self.policies else None
        wanted = (last[2].version + 1, last[1]) if last else (1, None)
        if (policy.version, policy.previous) != wanted:
            raise refuse(
                Why.VERSION,
                "not the next policy",
                expected=f"version {wanted[0]} after {wanted[1]}",
                got=f"version {policy.version} after {policy.previous}",
            )
        _met(standing, logged, "policy")
        check_policy(policy, standing, logged.time_us)
        # A root is what takes a key away from who lost it: policies leave room for that.
        kept_bytes = self._with(logged, AUTHORITY_BYTES // 2)
        return Authority(self.roots, (*self.policies, (logged.index, logged.hash, policy)), kept_bytes)

    def _with(self, logged: Logged, most: int) -> int:
        """The bytes with those of one more."""
        kept_bytes = self.kept_bytes + logged.kept_bytes
        if kept_bytes > most:
            raise refuse(
                Why.TOO_MUCH,
                "roots and policies are more than a permit bundle holds of them",
                expected=f"<= {most} bytes",
                got=kept_bytes,
            )
        return kept_bytes


def _met(standing: Standing, logged: Logged, kind: str) -> None:
    """That a threshold of ``standing`` is met by who signed with a valid key."""
    wanted = standing.root.thresholds.root if kind == "root" else standing.root.thresholds.policy
    keys = [standing.keys[signer] for signer in logged.signers if signer in standing.keys]
    valid = [key.person.id for key in keys if key.refusal(logged.time_us, logged.time_us) is None]
    count = tally(wanted, valid, standing)
    if not count.met:
        raise refuse(Why.THRESHOLD, f"too few signed: {count} missing under root {standing.root.version}")


def signed_by(standing: Standing, person: str, logged: Logged) -> str:
    """The id of the key by which ``person``, and nobody else, signed.

    :raises Refused: another signature, or a key that isn't valid.
    """
    if person not in standing.persons:
        raise refuse(Why.NOT_A_PERSON, "not a person of the root", got=person)
    if len(logged.signers) != 1:
        raise refuse(Why.OTHER_SIGNER, "signed by one person, with one key", expected=1, got=len(logged.signers))
    key = standing.keys.get(logged.signers[0])
    if key is None or key.person.id != person:
        raise refuse(Why.OTHER_SIGNER, "signed by another", expected=person, got=key.person.id if key else None)
    refusal = key.refusal(logged.time_us, logged.time_us)
    if refusal is not None:
        raise refuse(Why.KEY_NOT_VALID, refusal, got=person)
    return key.public.id
