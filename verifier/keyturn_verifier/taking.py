"""Taking statements by people: each once, with a leaf, if the switch takes it.

Decided about twice: before the lock that everybody waits for, so that what is refused never takes it, and again under
it, with everything that was said by then.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from msgspec import structs
from sqlalchemy import Connection, Engine, insert, select

from keyturn_protocol.api import ProblemCode
from keyturn_protocol.api_read import StatementItem
from keyturn_protocol.authority import Logged, Refused, Why, refuse
from keyturn_protocol.bundle import operator_keys
from keyturn_protocol.dsse import Envelope, verify
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.leaves import StatementBody
from keyturn_protocol.root import Root
from keyturn_protocol.statements import BY_OPERATORS, Replacement, Statement, check_place, parse_statement
from keyturn_protocol.switch import Switch, log_statement
from keyturn_verifier import keyfiles, notify, operators, translog
from keyturn_verifier.clock import Clock
from keyturn_verifier.config import Config
from keyturn_verifier.db.engine import reading, writing
from keyturn_verifier.db.statement_tables import node_replacement, statement
from keyturn_verifier.db.tables import log
from keyturn_verifier.people import known, links
from keyturn_verifier.problems import Refusal
from keyturn_verifier.switch_events import events
from keyturn_verifier.switch_state import SwitchState, run_about


@dataclass(frozen=True, slots=True)
class Said:
    """A statement whose form is good; who signed it is yet to be checked."""

    envelope: Envelope
    statement: Statement


@dataclass(frozen=True, slots=True)
class Looked:
    """What was found before the lock: the signatures are good, and by whom."""

    root: str | None
    """Under which root; None: there was none, so that operators signed."""
    logged: Logged | None


@dataclass(frozen=True, slots=True)
class _Effect:
    """What a statement is about, and what is to be said of it."""

    run: str | None = None
    messages: tuple[bytes, ...] = ()


def opened(data: bytes, config: Config) -> Said:
    """A statement for this deployment.

    :raises Refusal: ``bad_statement``, or ``too_large``.
    """
    try:
        envelope, said = parse_statement(data)
        check_place(said, config.deployment, said.root)
    except ProtocolError as error:
        raise refusal_of_statement(error) from None
    return Said(envelope, said)


def refusal_of_statement(error: ProtocolError) -> Refusal:
    """What whoever sent a statement is told: of what the switch refuses, its code first."""
    match error:
        case Refused(why=why):
            return Refusal(ProblemCode.STATEMENT_REFUSED, f"{why}: {error}")
        case ProtocolError(code=Code.TOO_LARGE):
            return Refusal(ProblemCode.TOO_LARGE, str(error))
        case ProtocolError(code=Code.UNKNOWN_KEY | Code.BAD_SIGNATURE | Code.BAD_SSHSIG):
            return Refusal(ProblemCode.BAD_SIGNATURE, str(error))
        case _:
            return Refusal(ProblemCode.BAD_STATEMENT, str(error))


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except ProtocolError as error:
        raise refusal_of_statement(error) from None


class Taker:
    """Takes statements for one verifier; any thread may.

    :param first: it may take the first root, which no earlier one stands behind: on the server's own machine only.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        keys: keyfiles.Keys,
        switch: SwitchState,
        clock: Clock,
        *,
        first: bool = False,
    ) -> None:
        self._config = config
        self._engine = engine
        self._keys = keys
        self._switch = switch
        self._clock = clock
        self._first = first

    def take(self, said: Said) -> StatementItem:
        """Store a statement and append its leaf. The same one again changes nothing.

        :raises Refusal: ``bad_statement``, ``bad_signature``, ``statement_refused``.
        """
        looked = self.look(said)
        return looked if isinstance(looked, StatementItem) else self.settle(said, looked)

    def look(self, said: Said) -> StatementItem | Looked:
        """Whether a statement is here already or could be taken now; stores nothing, and waits for nobody."""
        try:
            return self._look(said)
        except Refusal:
            # The switch can be ahead of the snapshot: what it refuses may be this very statement, sent twice.
            with reading(self._engine) as connection:
                there = known(connection, said.envelope)
            if there is None:
                raise
            return there

    def _look(self, said: Said) -> StatementItem | Looked:
        with reading(self._engine) as connection:
            there = known(connection, said.envelope)
            if there is not None:
                return there
            head = translog.head(connection)
            with _refusing(), self._switch.caught_up(connection, head.size) as switch:
                # The switch may be ahead of this snapshot.
                index, time_us = max(head.size, switch.index + 1), max(self._clock(), head.time_us)
                looked = self._signed(switch, said, None, index, time_us)
                if looked.logged is not None:
                    switch.decide(looked.logged)
            self._beside(connection, said.statement)
            return looked

    def settle(self, said: Said, looked: Looked) -> StatementItem:
        """Decide again, with all that was said by now, and store."""
        with writing(self._engine) as connection:
            # From here on nobody says anything else, at this replica or another.
            head = translog.lock(connection)
            there = known(connection, said.envelope)
            if there is not None:
                return there
            index, time_us = head.size, max(self._clock(), head.time_us)
            with _refusing(), self._switch.caught_up(connection, index, locked=True) as switch:
                effect = self._effect(switch, self._signed(switch, said, looked, index, time_us))
            self._beside(connection, said.statement)
            self._store(connection, said, effect, index, time_us)
        kind, digest = said.envelope.kind, said.envelope.hash.hex()
        return StatementItem(index=index, time_us=time_us, kind=kind, sha256=digest)

    def _signed(self, switch: Switch, said: Said, looked: Looked | None, index: int, time_us: int) -> Looked:
        """Check who signed; what was found before is good for as long as the root is the same."""
        standing, new = switch.standing, said.statement
        if isinstance(new, Root):
            self._own_services(new)
        if standing is None and not (self._first and isinstance(new, Root)):
            self._by_operators(said, time_us)
            return Looked(None, None)
        root = None if standing is None else standing.hash
        if looked is not None and looked.logged is not None and looked.root == root:
            return Looked(root, structs.replace(looked.logged, index=index, time_us=time_us))
        return Looked(root, log_statement(said.envelope, new, index, time_us, switch.authority))

    def _by_operators(self, said: Said, time_us: int) -> None:
        """Before a root: by keys of the trust file, read anew each time, so that one that is added or ended counts."""
        if said.envelope.kind not in BY_OPERATORS:
            raise refuse(Why.OTHER_ROOT, "there is no root yet", got=said.envelope.kind)
        check_place(said.statement, self._config.deployment, None)
        verify(said.envelope, operator_keys(operators.load(self._config.state), time_us))

    def _own_services(self, root: Root) -> None:
        """A root that names another verifier's keys would leave this one signing what nobody believes."""
        own = keyfiles.current(self._config.state, self._config.deployment, self._keys).services()
        if root.services != own:
            raise refuse(Why.BROKEN, "the services of this root aren't this verifier's keys", expected=own)

    def _effect(self, switch: Switch, signed: Looked) -> _Effect:
        if signed.logged is None:
            return _Effect()
        change = switch.decide(signed.logged)
        run = run_about(switch, signed.logged.hash, signed.logged.statement)
        messages = events(switch, signed.logged, change, run) if self._config.webhooks else ()
        return _Effect(run, tuple(messages))

    def _beside(self, connection: Connection, said: Statement) -> None:
        """What the switch doesn't know: which nodes are enrolled, and what was said of them."""
        if not isinstance(said, Replacement):
            return
        enrolled = connection.execute(select(log.c.id).where(log.c.node_id == said.old).limit(1)).first() is not None
        try:
            links(connection).admit(said, enrolled=enrolled)
        except ProtocolError as error:
            raise Refusal(ProblemCode.STATEMENT_REFUSED, str(error)) from None

    def _store(self, connection: Connection, said: Said, effect: _Effect, index: int, time_us: int) -> None:
        envelope = said.envelope
        row = {"leaf": index, "sha256": envelope.hash, "kind": envelope.kind, "time_us": time_us, "run": effect.run}
        connection.execute(insert(statement).values(**row, envelope=envelope.to_bytes()))
        if isinstance(said.statement, Replacement):
            link = {"old": said.statement.old, "new": said.statement.new, "reason": said.statement.reason}
            connection.execute(insert(node_replacement).values(leaf=index, **link))
        notify.queue(connection, self._config.webhooks, effect.messages, time_us)
        translog.append(connection, [StatementBody(kind=envelope.kind, sha256=envelope.hash.hex())], time_us)
