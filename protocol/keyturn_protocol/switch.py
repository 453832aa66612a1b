"""The start switch: every root, policy, run and lease, as the leaves of the verifier's log say in their order.

Verifier, host, command line and auditor fold the same leaves with this and get the same. What it refuses, a verifier
doesn't log; an auditor who finds such a leaf has found a verifier that lies.
"""

from collections.abc import Mapping

import msgspec

from keyturn_protocol.advance import advance, open_run, under_policy, under_root
from keyturn_protocol.asking import Recent, asked_lately
from keyturn_protocol.authority import Authority, Logged, Why, refuse
from keyturn_protocol.claims import Claims, check_claims
from keyturn_protocol.dsse import Envelope, verify
from keyturn_protocol.entry_switch import LeaseBody
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import Origin, parse_origin
from keyturn_protocol.lease import Lease
from keyturn_protocol.lease_rules import check_node, check_rules, limits_of
from keyturn_protocol.leases import Asked, Irregular, Ledger
from keyturn_protocol.lifecycle import Run, State, is_over, started, state
from keyturn_protocol.limits import PENDING
from keyturn_protocol.policy import Policy
from keyturn_protocol.public_keys import PublicKey, parse_public_key
from keyturn_protocol.root import Root, Standing
from keyturn_protocol.runs import Amend, Decision, Request, Resume, Revoke, Suspend, Withdraw
from keyturn_protocol.statement_base import Statement
from keyturn_protocol.statements import Replacement


class Change(msgspec.Struct, frozen=True):
    """What a statement changes; :meth:`Switch.apply` makes it so."""

    authority: Authority
    runs: Mapping[str, Run] = msgspec.field(default_factory=dict)
    """Those that are other than before."""
    subjects: Mapping[str, str] = msgspec.field(default_factory=dict)
    """What can be decided on or withdrawn from now on → its run."""


class Switch:
    """A fold over leaves: :meth:`decide` is pure and says what a statement changes, :meth:`apply` can't fail."""

    def __init__(self, deployment: str) -> None:
        self.deployment = deployment
        self.authority = Authority()
        self.runs: dict[str, Run] = {}
        """By the hash of their request."""
        self.ledger = Ledger()
        """What leases took of budgets and of the allowance."""
        self.replaced: dict[str, str] = {}
        """Node → which one its host became, as an operator signed."""
        self.index = -1
        """Of the last leaf taken."""
        self._subjects: dict[str, str] = {}
        self._open: dict[str, set[str]] = {}
        """Requester → its runs that may still change when a root or a policy does. One that nobody ended, but time,
        leaves when its requester asks again."""
        self._asked: dict[str, Recent] = {}
        """Requester → what it asked for within a day before it asked last."""
        self._said: set[bytes] = set()
        """Hashes of all statements so far: said once, counted once."""

    @property
    def standing(self) -> Standing | None:
        """The root in force, if there is one."""
        return self.authority.roots[-1][1] if self.authority.roots else None

    @property
    def open_runs(self) -> frozenset[str]:
        """Runs that another root or policy may still change, by hash; some whose time is over may be among them."""
        return frozenset().union(*self._open.values())

    def run_of(self, subject: str) -> Run:
        """The run of a request, a proposal or a suspension.

        :param subject: hash of one of these.
        :raises Refused: ``unknown``.
        """
        run = self.runs.get(self._subjects.get(subject, subject))
        if run is None:
            raise refuse(Why.UNKNOWN, "no such request, proposal or suspension", got=subject)
        return run

    def decide(self, logged: Logged) -> Change:
        """What a statement changes, as the next leaf; nothing is changed yet.

        :raises Refused: with what it breaks.
        :raises ProtocolError: ``bad_statement``: for another deployment; ``bad_root``, ``bad_policy``.
        :raises ValueError: a leaf from before the last one.
        """
        self._check_order(logged.index)
        statement = logged.statement
        if statement.deployment != self.deployment:
            raise ProtocolError(
                Code.BAD_STATEMENT, "for another deployment", expected=self.deployment, got=statement.deployment
            )
        if bytes.fromhex(logged.hash) in self._said:
            raise refuse(Why.SAID_BEFORE, "said before: it counts once", got=logged.hash)
        match statement:
            case Decision() | Withdraw():
                return self._about(self.run_of(statement.subject), logged)
            case Suspend() | Resume() | Revoke() | Amend():
                return self._about(self.run_of(statement.run), logged)
            case Request():
                return self._request(statement, logged)
            case Root() | Policy():
                return self._next(statement, logged)
            case Replacement():
                check_replacement(self.authority, logged)
                return Change(self.authority)
            case _:
                raise refuse(Why.WRONG_KIND, "not a statement that the switch knows", got=type(statement).__name__)

    def apply(self, logged: Logged, change: Change) -> None:
        """Make a change so that :meth:`decide` gave for this leaf, and for which none was applied since."""
        self.authority = change.authority
        self.runs.update(change.runs)
        self._subjects.update(change.subjects)
        self._said.add(bytes.fromhex(logged.hash))
        self._sort_out(change.runs)
        match logged.statement:
            case Replacement() as said:
                self.replace(said)
            case Request(requester=requester):
                self._asked[requester] = asked_lately(self._asked.get(requester, ()), requester, logged)
                self._forget_lapsed(requester, logged.time_us)
            case Root() | Policy():
                for requester in list(self._open):
                    self._forget_lapsed(requester, logged.time_us)
            case _:
                pass
        self.index = logged.index

    def take(self, logged: Logged) -> None:
        """:meth:`decide` and :meth:`apply`; raises what the former does, and then changes nothing."""
        self.apply(logged, self.decide(logged))

    def replace(self, said: Replacement) -> None:
        """Take a replacement from before there was a root, whose signatures by operators the caller has checked."""
        self.replaced.setdefault(said.old, said.new)

    def begin(self, run: str, index: int, time_us: int) -> None:
        """Take the leaf of a run's first lease.

        :raises Refused: it has no permit, or may not start then.
        :raises ValueError: a leaf from before the last one.
        """
        self._check_order(index)
        found = self.run_of(run)
        if found.permit is None:
            raise refuse(Why.NO_PERMIT, "a lease without a permit", got=run)
        if (at := state(found, time_us)) is not State.APPROVED:
            raise refuse(Why.OVER, f"a first lease of a run that is {at}", got=run)
        self.runs[found.hash] = started(found, time_us)
        self.index = index

    def check_lease(
        self,
        lease: Lease,
        asked: Asked,
        claims: Claims,
        index: int,
        time_us: int,
        *,
        ledger: Ledger | None = None,
    ) -> None:
        """Whether a lease may be the next leaf; nothing is changed.

        :param asked: the entry that it answers.
        :param claims: of nodes to the chips of the lease, as of the leaves before.
        :param ledger: what leases took, for who can't see all of it; else the switch's own.
        :raises Refused: with the first rule that it breaks.
        """
        self._check_order(index)
        ledger = self.ledger if ledger is None else ledger
        run = None if lease.run is None else self.run_of(lease.run)
        charged = 0 if run is None else ledger.charged_tflop(run.hash)
        check_node(asked, self.replaced)
        check_rules(self.authority, run, lease, asked, charged_tflop=charged, index=index, time_us=time_us)
        check_claims(claims, parse_origin(asked.origin).node_id, lease.chips, self.replaced, time_us)
        ledger.check(lease, asked, limits_of(self.authority, run, index), time_us)

    def grant(self, lease: Lease, lease_hash: str, asked: Asked, index: int, time_us: int) -> None:
        """Take the leaf of a lease that :meth:`check_lease` let pass, or that was logged although it didn't.

        :raises Refused: ``unknown``, ``no_policy``: there is nothing of which it could be.
        """
        self._check_order(index)
        run = None if lease.run is None else self.run_of(lease.run)
        self.ledger.grant(lease, lease_hash, asked, limits_of(self.authority, run, index), time_us)
        if run is not None:
            self.runs[run.hash] = started(run, time_us)
        self.index = index

    def report(self, origin: Origin, seq: int, body: LeaseBody, index: int, time_us: int) -> tuple[Irregular, ...]:
        """Take a ``lease`` entry of a node's log, at the leaf of the checkpoint that covers it; says what is wrong.

        Entries of one leaf come in the order of the log.
        """
        if index < self.index:
            raise ValueError(f"leaf {index} after leaf {self.index}")
        self.index = index
        return self.ledger.report(origin, seq, body, time_us)

    def state_of(self, run: Run, at_us: int) -> State:
        """Where a run stands, with what was charged to it."""
        return state(run, at_us, self.ledger.charged_tflop(run.hash))

    def _check_order(self, index: int) -> None:
        if index <= self.index:
            raise ValueError(f"leaf {index} after leaf {self.index}")

    def _sort_out(self, changed: Mapping[str, Run]) -> None:
        """Runs that somebody ended are open no more; others that changed are."""
        for digest, run in changed.items():
            mine = self._open.setdefault(run.request.requester, set())
            if run.ended is None:
                mine.add(digest)
            else:
                mine.discard(digest)

    def _forget_lapsed(self, requester: str, at_us: int) -> None:
        """Runs whose time is over for good are open no more: no statement says so."""
        left = {digest for digest in self._open.get(requester, ()) if not is_over(self.runs[digest], at_us)}
        if left:
            self._open[requester] = left
        else:
            self._open.pop(requester, None)

    def _next(self, statement: Root | Policy, logged: Logged) -> Change:
        """Another root or policy, and what it does to every run that isn't over."""
        open_runs = {digest: self.runs[digest] for digest in self.open_runs}
        if isinstance(statement, Root):
            authority = self.authority.with_root(logged)
            after = {
                digest: under_root(run, authority, logged.index + 1, logged.time_us)
                for digest, run in open_runs.items()
            }
        else:
            authority = self.authority.with_policy(logged)
            after = {digest: under_policy(run, logged.hash, logged.time_us) for digest, run in open_runs.items()}
        return Change(authority, {digest: run for digest, run in after.items() if run is not open_runs[digest]})

    def _request(self, request: Request, logged: Logged) -> Change:
        run = open_run(self.authority, logged)
        mine = (self.runs[digest] for digest in self._open.get(request.requester, ()))
        if sum(state(one, logged.time_us) is State.PENDING for one in mine) >= PENDING:
            raise refuse(Why.TOO_MUCH, "has so many requests pending", expected=f"<= {PENDING}", got=request.requester)
        asked_lately(self._asked.get(request.requester, ()), request.requester, logged)
        return Change(self.authority, {run.hash: run})

    def _about(self, run: Run, logged: Logged) -> Change:
        after = advance(run, self.authority, logged)
        named = isinstance(logged.statement, (Suspend, Resume, Revoke, Amend))
        return Change(self.authority, {run.hash: after}, {logged.hash: run.hash} if named else {})


def check_replacement(authority: Authority, logged: Logged) -> None:
    """That a host's replacement is signed by persons of the operator, each with a key that is valid at its leaf.

    :raises Refused: by others, or there is no root yet: then keys of the trust file sign it.
    """
    standing = authority.standing_for(logged)
    for signer in logged.signers:
        key = standing.keys.get(signer)
        if key is None or key.party.class_ != "operator":
            got = "a key that isn't in the root" if key is None else key.person.id
            raise refuse(Why.NOT_ENTITLED, "not a person of an operator", got=got)
        refusal = key.refusal(logged.time_us, logged.time_us)
        if refusal is not None:
            raise refuse(Why.KEY_NOT_VALID, refusal, got=key.person.id)


def signing_keys(authority: Authority, statement: Statement) -> Mapping[str, PublicKey]:
    """Whose signatures the envelope of a statement may carry, by key id: those in the root in force.

    For a root, those in it as well. A key that is in both signs in the way that the root in force has for it.

    :param statement: parsed, so that a root is one.
    :raises Refused: there is no root yet, and this is none.
    """
    in_force = authority.roots[-1][1].public_keys if authority.roots else {}
    if isinstance(statement, Root):
        new = (parse_public_key(key.key) for person in statement.persons for key in person.keys)
        return {**{key.id: key for key in new}, **in_force}
    if not in_force:
        raise refuse(Why.OTHER_ROOT, "there is no root yet")
    return in_force


def log_statement(envelope: Envelope, statement: Statement, index: int, time_us: int, authority: Authority) -> Logged:
    """A statement as the next leaf, every signature of its envelope verified.

    :param statement: what :func:`~keyturn_protocol.statements.parse_payload` found in the envelope.
    :raises ProtocolError: ``unknown_key``, ``bad_signature``, ``bad_sshsig``.
    """
    signers = verify(envelope, signing_keys(authority, statement))
    return Logged(
        index, time_us, envelope.hash.hex(), statement, tuple(key.id for key in signers), len(envelope.payload)
    )
