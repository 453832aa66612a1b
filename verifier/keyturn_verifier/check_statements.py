"""Statements as they are stored, against the leaves that name them and the bytes that were signed."""

from collections.abc import Iterator, Sequence

from sqlalchemy import Connection, Table, select

from keyturn_protocol.api import OperatorKey, Trust
from keyturn_protocol.bundle import operator_keys
from keyturn_protocol.dsse import verify
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.leaves import Statement
from keyturn_protocol.statements import Replacement, check_operators, check_place, parse_statement
from keyturn_verifier.check_tree import Tree
from keyturn_verifier.db.rows import Row
from keyturn_verifier.db.statement_tables import node_replacement, statement
from keyturn_verifier.differences import Difference, by_key, plain

_STATEMENT = ("leaf", "sha256", "kind", "time_us")
_REPLACEMENT = ("leaf", "old", "new", "reason")


def check_statements(
    connection: Connection, trust: Trust, operators: Sequence[OperatorKey], tree: Tree
) -> Iterator[Difference]:
    """A row for each leaf, an envelope that is the statement of it, and what is taken out of that as it says."""
    rows = {row.leaf: row for row in connection.execute(select(statement))}
    leaves = [leaf for leaf in tree.leaves if isinstance(leaf, Statement)]
    taken: list[Row] = []
    for leaf in leaves:
        row = rows.get(leaf.index)
        if row is None:
            continue  # by_key names it
        try:
            envelope, said = parse_statement(bytes(row.envelope))
            if (envelope.hash.hex(), envelope.kind) != (leaf.body.sha256, leaf.body.kind):
                raise ProtocolError(Code.BAD_STATEMENT, "not the statement that the verifier's log names")
            check_place(said, trust.deployment, None)
            check_operators(envelope.kind)
            verify(envelope, operator_keys(operators, leaf.time_us))
        except ProtocolError as error:
            yield Difference(statement.name, f"leaf {leaf.index}", f"envelope: {error}")
            continue
        if isinstance(said, Replacement):
            taken.append((leaf.index, said.old, said.new, said.reason))
    expected = [(leaf.index, bytes.fromhex(leaf.body.sha256), leaf.body.kind, leaf.time_us) for leaf in leaves]
    yield from by_key(statement, "statements", _STATEMENT, 1, expected, _stored(connection, statement, _STATEMENT))
    stored = _stored(connection, node_replacement, _REPLACEMENT)
    yield from by_key(node_replacement, "statements", _REPLACEMENT, 1, taken, stored)


def _stored(connection: Connection, table: Table, names: Sequence[str]) -> list[Row]:
    return [plain(row) for row in connection.execute(select(*(table.c[name] for name in names)))]
