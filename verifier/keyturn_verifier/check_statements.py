"""Statements as they are stored, against the leaves that name them and the bytes that were signed.

The switch is computed again from them: what it refuses now, it would have refused then.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Table, select

from keyturn_protocol.api import OperatorKey, Trust
from keyturn_protocol.bundle import operator_keys
from keyturn_protocol.dsse import Envelope, verify
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.leaves import Lease as LeaseLeaf
from keyturn_protocol.leaves import NodeCheckpoint
from keyturn_protocol.leaves import Statement as StatementLeaf
from keyturn_protocol.statements import Replacement, Statement, check_operators, check_place, parse_statement
from keyturn_protocol.switch import Switch, log_statement
from keyturn_verifier.check_switch import Leases
from keyturn_verifier.check_tree import Tree
from keyturn_verifier.db.rows import Row
from keyturn_verifier.db.statement_tables import node_replacement, statement
from keyturn_verifier.differences import Difference, by_key, plain
from keyturn_verifier.switch_state import run_about

_STATEMENT = ("leaf", "sha256", "kind", "time_us", "run")
_REPLACEMENT = ("leaf", "old", "new", "reason")


def check_statements(
    connection: Connection, trust: Trust, operators: Sequence[OperatorKey], tree: Tree
) -> Iterator[Difference]:
    """A row for each leaf, an envelope that is the statement of it, and what is taken out of that as it says."""
    rows = {row.leaf: row for row in connection.execute(select(statement))}
    again = _Again(trust, operators, Switch(trust.deployment))
    expected: list[Row] = []
    leases = Leases(connection)
    for leaf in tree.leaves:
        if isinstance(leaf, NodeCheckpoint):
            yield from leases.checkpoint(again.switch, leaf)
        if isinstance(leaf, LeaseLeaf):
            yield from leases.lease(again.switch, leaf)
        if not isinstance(leaf, StatementLeaf):
            continue
        run = None
        row = rows.get(leaf.index)
        if row is not None:  # else by_key names it
            try:
                run = again.take(leaf, row)
            except ProtocolError as error:
                yield Difference(statement.name, f"leaf {leaf.index}", f"envelope: {error}")
                run = row.run
        expected.append((leaf.index, bytes.fromhex(leaf.body.sha256), leaf.body.kind, leaf.time_us, run))
    yield from by_key(statement, "statements", _STATEMENT, 1, expected, _stored(connection, statement, _STATEMENT))
    stored = _stored(connection, node_replacement, _REPLACEMENT)
    yield from by_key(node_replacement, "statements", _REPLACEMENT, 1, again.replacements, stored)
    yield from leases.rest(again.switch)


@dataclass(slots=True)
class _Again:
    """Everything that was said, taken once more."""

    trust: Trust
    operators: Sequence[OperatorKey]
    switch: Switch
    replacements: list[Row] = field(default_factory=list)

    def take(self, leaf: StatementLeaf, row: Any) -> str | None:
        """Returns the run that a statement is about."""
        envelope, said = parse_statement(bytes(row.envelope))
        if (envelope.hash.hex(), envelope.kind) != (leaf.body.sha256, leaf.body.kind):
            raise ProtocolError(Code.BAD_STATEMENT, "not the statement that the verifier's log names")
        run = self._said(leaf, envelope, said)
        if isinstance(said, Replacement):
            self.replacements.append((leaf.index, said.old, said.new, said.reason))
        return run

    def _said(self, leaf: StatementLeaf, envelope: Envelope, said: Statement) -> str | None:
        if self.switch.standing is None and isinstance(said, Replacement):
            check_place(said, self.trust.deployment, None)
            check_operators(envelope.kind)
            verify(envelope, operator_keys(self.operators, leaf.time_us))
            self.switch.replace(said)
            return None
        logged = log_statement(envelope, said, leaf.index, leaf.time_us, self.switch.authority)
        self.switch.take(logged)
        return run_about(self.switch, logged.hash, said)


def _stored(connection: Connection, table: Table, names: Sequence[str]) -> list[Row]:
    return [plain(row) for row in connection.execute(select(*(table.c[name] for name in names)))]
