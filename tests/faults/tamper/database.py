"""An insider with SQL: every column edited, rows deleted, added and exchanged, and whole histories written anew.

The operators come from the schema, so that a table or column that is new has its operators by itself.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Column, Connection, Table, UniqueConstraint, delete, insert, select, update
from sqlmodel import SQLModel

from keyturn_protocol.leaves import EnrolmentBody, StatementBody, format_leaf, parse_leaf
from keyturn_protocol.merkle import Frontier, leaf_hash, root_of
from keyturn_protocol.tiles import TILE_WIDTH
from keyturn_verifier.check import UNCHECKED
from keyturn_verifier.db import review_tables, tables
from keyturn_verifier.db.engine import is_postgres
from keyturn_verifier.db.statement_tables import node_replacement, statement
from keyturn_verifier.db.switch_tables import lease_issued, lease_report, lease_request, ledger_snapshot

FAR = 1_000_003
"""Added to a number, it is nobody else's."""
assert review_tables.finding_closing is not None  # its tables are in the metadata


class Edit(NamedTuple):
    """One thing that SQL does. ``why_not``: the reason why nobody has to find it."""

    table: str
    name: str
    run: Callable[[Connection], None]
    why_not: str | None


def operators() -> list[Edit]:
    """All of them, table by table."""
    made: list[Edit] = []
    for table in SQLModel.metadata.sorted_tables:
        if table.name.startswith("rollup_"):  # a cache: test_rollup_passes edits it
            continue
        for column in table.columns:
            why_not = UNCHECKED.get(table.name) or UNCHECKED.get(f"{table.name}.{column.name}")
            made.append(Edit(table.name, f"{table.name}.{column.name} edited", _edit(table, column), why_not))
        of_table = UNCHECKED.get(table.name)
        for name, run in (("deleted", _delete), ("added", _add), ("exchanged with another's values", _exchange)):
            if name in ("added", "deleted"):
                why_not = of_table or _NO_ROWS.get((table.name, name))
            else:
                why_not = of_table or _NO_EXCHANGE.get(table.name)
            made.append(Edit(table.name, f"{table.name}: a row {name}", run(table), why_not))
    return [*made, *HISTORIES]


_NO_ROWS = {
    ("pending_log", "deleted"): "an announced node that never began: it announces itself again",
    ("ledger_snapshot", "deleted"): "leases are folded from the first one on, and it is made again",
    (
        "opening",
        "deleted",
    ): "a value that somebody gave away: whoever has it gives it again; it is no evidence",
    ("tree_checkpoint", "deleted"): "it is signed again, over the same leaves; a client that kept it can compare",
}
_NO_EXCHANGE = {
    "usage_gap": "the same gaps under other numbers",
}


def unchecked(connection: Connection) -> None:
    """Foreign keys don't hold an insider back."""
    if is_postgres(connection):
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")


def _rows(connection: Connection, table: Table) -> Sequence[Any]:
    """The rows of a table, those with most values first, so that there is something to edit in each column."""
    found = connection.execute(select(table).order_by(*table.primary_key.columns)).all()
    assert found, f"the site has no row in {table.name}"
    return sorted(found, key=lambda row: sum(value is None for value in row))


def _where(table: Table, row: Any) -> Any:
    at = list(table.columns)
    return [column == row[at.index(column)] for column in table.primary_key.columns]


def _edit(table: Table, column: "Column[Any]") -> Callable[[Connection], None]:
    def run(connection: Connection) -> None:
        at = list(table.columns).index(column)
        rows = _rows(connection, table)
        row = next((r for r in rows if r[at] is not None), rows[0])
        value = other(row[at], column)
        connection.execute(update(table).where(*_where(table, row)).values({column: value}))

    return run


def other(value: Any, column: "Column[Any]") -> Any:
    """Another value of the same kind."""
    if value is None:
        kind = column.type.python_type
        return b"\x01" if kind is bytes else 1 if kind is int else "x"
    if isinstance(value, int):
        return value + (FAR if column.primary_key or column.foreign_keys or column.unique else 1)
    if isinstance(value, str):
        return value[:-1] + ("0" if value[-1:] != "0" else "1") if value else "x"
    data = bytes(value)
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if data else b"\x01"


def _delete(table: Table) -> Callable[[Connection], None]:
    def run(connection: Connection) -> None:
        connection.execute(delete(table).where(*_where(table, _rows(connection, table)[-1])))

    return run


def _add(table: Table) -> Callable[[Connection], None]:
    """A copy of a row under keys of its own."""
    keys = {list(one.columns)[-1].name for one in table.constraints if isinstance(one, UniqueConstraint)}

    def run(connection: Connection) -> None:
        row = dict(zip(table.columns.keys(), _rows(connection, table)[0], strict=True))
        for column in table.columns:
            if column.primary_key or column.unique or column.name in keys:
                row[column.name] = other(row[column.name], column)
        if table is tables.log:
            row["incarnation"] += FAR
        connection.execute(insert(table).values(row))

    return run


def _exchange(table: Table) -> Callable[[Connection], None]:
    """The values of two rows that are no key change places; with one row, they come from nowhere."""

    def run(connection: Connection) -> None:
        names = [c.name for c in table.columns if not (c.primary_key or c.unique or c.foreign_keys)]
        rows = _rows(connection, table)
        at = {name: i for i, name in enumerate(table.columns.keys())}
        if table is tables.log:
            names = [n for n in names if n not in ("node_id", "incarnation")]
        one = rows[0]
        two = next((r for r in rows[1:] if any(r[at[n]] != one[at[n]] for n in names)), None)
        if two is None or not names:
            _edit(table, list(table.columns)[-1])(connection)
            return
        for row, source in ((one, two), (two, one)):
            connection.execute(update(table).where(*_where(table, row)).values({n: source[at[n]] for n in names}))

    return run


# -- histories: an insider who knows the code, and leaves everything in agreement


def _rebuild(connection: Connection, keep: Callable[[Any], bool]) -> None:
    """The verifier's log without some leaves; indices, hashes, tiles and head made to fit, no checkpoint left, and no
    snapshot of the leases."""
    leaves = [parse_leaf(bytes(data)) for data in connection.execute(_LEAVES).scalars()]
    kept = [leaf for leaf in leaves if keep(leaf.body)]
    new = [format_leaf(i, leaf.time_us, leaf.body) for i, leaf in enumerate(kept)]
    hashes = [leaf_hash(data) for data in new]
    for table in (tables.tree_leaf, tables.tree_node, tables.tree_checkpoint, ledger_snapshot):
        connection.execute(delete(table))
    rows = [{"index": i, "hash": d, "data": x} for i, (d, x) in enumerate(zip(hashes, new, strict=True))]
    connection.execute(insert(tables.tree_leaf), rows)
    for at in range(len(hashes) // TILE_WIDTH):
        root = root_of(hashes[at * TILE_WIDTH : (at + 1) * TILE_WIDTH])
        connection.execute(insert(tables.tree_node).values(level=1, index=at, hash=root))
    head = {"size": len(new), "frontier": Frontier().extend(hashes).to_bytes(), "time_us": kept[-1].time_us}
    connection.execute(update(tables.tree_head).values(head))
    for at, leaf in enumerate(kept):  # upwards: no two rows meet
        if at != leaf.index:
            for table in _NAME_LEAVES:
                connection.execute(update(table).where(table.c.leaf == leaf.index).values(leaf=at))


_NAME_LEAVES = (statement, node_replacement, lease_request, lease_report, lease_issued)
_LEAVES = select(tables.tree_leaf.c.data).order_by(tables.tree_leaf.c.index)


def host_taken_out(connection: Connection) -> None:
    """The first host, out of every table and out of the verifier's log."""
    row = connection.execute(select(tables.log).order_by(tables.log.c.id).limit(1)).one()
    for table in SQLModel.metadata.sorted_tables:
        if "log_id" in table.c:
            connection.execute(delete(table).where(table.c.log_id == row.id))
    connection.execute(delete(tables.log).where(tables.log.c.id == row.id))
    tokens = [
        bytes.fromhex(body.token_sha256)
        for data in connection.execute(_LEAVES).scalars()
        if isinstance(body := parse_leaf(bytes(data)).body, EnrolmentBody) and body.origin == row.origin
        if body.token_sha256 is not None
    ]
    used = tables.join_token.c.uses - 1
    connection.execute(update(tables.join_token).where(tables.join_token.c.sha256.in_(tokens)).values(uses=used))
    _rebuild(connection, lambda body: getattr(body, "origin", None) != row.origin)


def receipts_leaf_out(connection: Connection) -> None:
    """The newest receipt of the first host, out of the verifier's log only."""
    row = connection.execute(select(tables.log).order_by(tables.log.c.id).limit(1)).one()
    _rebuild(connection, lambda body: (getattr(body, "origin", 0), getattr(body, "size", 0)) != (row.origin, row.size))


def freeze_forgiven(connection: Connection) -> None:
    """A fork's evidence, its leaf, its finding and the freeze."""
    connection.execute(delete(tables.evidence))
    connection.execute(delete(tables.finding).where(tables.finding.c.code == "fork"))
    connection.execute(update(tables.log).values(frozen=None))
    _rebuild(connection, lambda body: not hasattr(body, "evidence_sha256"))


def suspension_out(connection: Connection) -> None:
    """What a veto-holder said, out of the table and out of the verifier's log."""
    gone = connection.execute(select(statement.c.leaf).where(statement.c.kind == "suspend")).scalar_one()
    connection.execute(delete(statement).where(statement.c.leaf == gone))
    _rebuild(connection, lambda body: not (isinstance(body, StatementBody) and body.kind == "suspend"))


def lease_out(connection: Connection) -> None:
    """The first lease of a run, out of the table and out of the verifier's log."""
    row = connection.execute(select(lease_issued).order_by(lease_issued.c.leaf).limit(1)).one()
    connection.execute(delete(lease_issued).where(lease_issued.c.leaf == row.leaf))
    _rebuild(connection, lambda body: getattr(body, "sha256", None) != bytes(row.sha256).hex())


HISTORIES = [
    Edit("history", "a host taken out of everything, the verifier's log built anew", host_taken_out, None),
    Edit("history", "a receipt's leaf taken out, the verifier's log built anew", receipts_leaf_out, None),
    Edit("history", "a suspension taken out, the verifier's log built anew", suspension_out, None),
    Edit("history", "a lease taken out, the verifier's log built anew", lease_out, None),
    Edit("history", "a fork forgiven, the verifier's log built anew", freeze_forgiven, None),
]
