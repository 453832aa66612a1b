"""The statements that run for every segment, compiled once."""

from functools import cache
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Engine,
    Table,
    TableClause,
    bindparam,
    case,
    column,
    func,
    insert,
    literal_column,
    select,
    table,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from keyturn_protocol.entry_usage import FIELDS, MAX_FIELDS
from keyturn_protocol.limits import MAX_INT
from keyturn_verifier.db.bulk import Copy, Each, Many, Through
from keyturn_verifier.db.engine import is_postgres
from keyturn_verifier.db.switch_tables import lease_report, lease_request
from keyturn_verifier.db.tables import (
    chip_listed,
    finding,
    inventory,
    log,
    segment,
    segment_body,
    tree_leaf,
    usage_gap,
    usage_hour,
    workload_started,
)

_USAGE_KEY: Final = ("log_id", "chip", "hour_s", "workload", "inventory_seq", "basis")
_SUMMED: Final = ("time_us", "samples", *(f for f in FIELDS if f not in MAX_FIELDS))
_MOVED: Final = ("size", "frontier", "chain", "fold", "note", "receipt", "frozen", "receipt_s")


class Statements:
    """Each takes tuples in the order of the names given here."""

    def __init__(self, engine: Engine) -> None:
        self.move = _move(engine)
        self.segments = _insert(engine, segment, "log_id", "start", "end", "sha256", "frontier", "receipt", "hours")
        self.bodies = _insert(engine, segment_body, "log_id", "start", "receipt_s", "body")
        self.usage = _usage(engine)
        self.gaps = _insert(engine, usage_gap, "log_id", "chip", "from_us", "to_us", "inventory_seq", "cause")
        self.inventories = _insert(engine, inventory, "log_id", "seq", "chips")
        self.listed = _insert(engine, chip_listed, "log_id", "chip", "start", "boot_id", "mono_us", "time_us")
        self.started = _insert(engine, workload_started, "log_id", "seq", "workload", "body")
        covered = ("log_id", "seq", "leaf", "time_us")
        self.asked = _insert(engine, lease_request, *covered, "party", "run", "boot_id", "body")
        self.reported = _insert(engine, lease_report, *covered, "said_us", "body")
        self.findings = _insert(engine, finding, "log_id", "code", "severity", "seq", "from_us", "to_us", "detail")


@cache
def many_leaves(engine: Engine) -> Many:
    """Leaves of the verifier's log: index, hash, data."""
    return _insert(engine, tree_leaf, "index", "hash", "data")


def _insert(engine: Engine, into: Table, *names: str) -> Many:
    if is_postgres(engine):
        return Copy(into, names)
    return Each(engine, insert(into).values({name: bindparam(name) for name in names}), names)


def _move(engine: Engine) -> Many:
    """Compare and swap: a head moves only from the size that was decided against, and never once frozen."""
    names = [*(f"new_{name}" for name in _MOVED), "log", "old_size"]
    moved = table("batch_move", *(column(name) for name in names))
    new: dict[str, Any] = {name: moved.c[name] if is_postgres(engine) else bindparam(name) for name in names}
    values = {name: new[f"new_{name}"] for name in _MOVED}
    # A log that is being frozen keeps the time of its last receipt.
    values["receipt_s"] = func.coalesce(values["receipt_s"], log.c.receipt_s)
    statement = (
        update(log)
        .where(log.c.id == new["log"], log.c.size == new["old_size"], log.c.frozen.is_(None))
        .values({log.c[name]: value for name, value in values.items()})
    )
    if not is_postgres(engine):
        return Each(engine, statement, names)
    like = [*((f"new_{name}", name) for name in _MOVED), ("log", "id"), ("old_size", "size")]
    return Through(log, moved.name, like, _sql(engine, statement))


def _usage(engine: Engine) -> Many:
    """Additive upserts that saturate at 2^53-1, as ``usage.add_sums`` does.

    Written with CASE, so that NULL stays NULL on every database: ``NULL > x`` is not true, and ``NULL + x`` is NULL.
    """
    names = (*_USAGE_KEY, "time_us", "samples", *FIELDS)
    batch = table("batch_usage", *(column(name) for name in names))
    make = postgresql.insert if is_postgres(engine) else sqlite.insert
    statement = make(usage_hour)
    if is_postgres(engine):
        statement = statement.from_select(names, _sorted(batch))
    else:
        statement = statement.values({name: bindparam(name) for name in names})
    new = statement.excluded
    cap: ColumnElement[int] = literal_column(str(MAX_INT), BigInteger)
    merged: dict[str, Any] = {}
    for name in _SUMMED:
        total = usage_hour.c[name] + new[name]
        merged[name] = case((total > cap, cap), else_=total)
    for name in MAX_FIELDS:
        merged[name] = case((new[name] > usage_hour.c[name], new[name]), else_=usage_hour.c[name])
    whole = statement.on_conflict_do_update(index_elements=_USAGE_KEY, set_=merged)
    if is_postgres(engine):
        return Through(usage_hour, batch.name, [(name, name) for name in names], _sql(engine, whole))
    return Each(engine, whole, names)


def _sorted(batch: TableClause) -> Any:
    return select(*batch.c).order_by(*(batch.c[name] for name in _USAGE_KEY))


def _sql(engine: Engine, statement: Any) -> str:
    """The text of a statement without parameters."""
    compiled = statement.compile(dialect=engine.dialect)
    if compiled.params:
        raise ValueError(f"statement binds {compiled.params}")
    return str(compiled)
