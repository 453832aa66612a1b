"""The statements that run for every segment, compiled once."""

from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Engine, Table, bindparam, case, func, insert, literal_column, update
from sqlalchemy.dialects import postgresql, sqlite

from keyturn_protocol.entries import FIELDS, MAX_FIELDS
from keyturn_protocol.limits import MAX_INT
from keyturn_verifier.db.engine import Many
from keyturn_verifier.db.tables import (
    finding,
    inventory,
    log,
    segment,
    usage_gap,
    usage_hour,
    workload_started,
)

_USAGE_KEY = ("log_id", "chip", "hour_s", "workload", "inventory_seq", "basis")
_SUMMED = ("time_us", "samples", *(f for f in FIELDS if f not in MAX_FIELDS))


class Statements:
    """Each takes tuples in the order of the names given here."""

    def __init__(self, engine: Engine) -> None:
        self.move = _move(engine)
        self.segments = _insert(engine, segment, "log_id", "start", "end", "sha256", "frontier", "receipt", "body")
        self.usage = _usage(engine)
        self.gaps = _insert(engine, usage_gap, "log_id", "chip", "from_us", "to_us", "inventory_seq", "cause")
        self.inventories = _insert(engine, inventory, "log_id", "seq", "chips")
        self.started = _insert(engine, workload_started, "log_id", "seq", "workload", "body")
        self.findings = _insert(engine, finding, "log_id", "code", "severity", "seq", "from_us", "to_us", "detail")


def _insert(engine: Engine, table: Table, *names: str) -> Many:
    return Many(engine, insert(table).values({name: bindparam(name) for name in names}), names)


def _move(engine: Engine) -> Many:
    """Compare and swap: a head moves only from the size that was decided against, and never once frozen."""
    names = ("size", "frontier", "chain", "fold", "note", "receipt", "frozen", "receipt_s", "listed_us")
    values: dict[str, Any] = {name: bindparam(f"new_{name}") for name in names}
    # A log that is being frozen keeps the time of its last receipt.
    values["receipt_s"] = func.coalesce(values["receipt_s"], log.c.receipt_s)
    # The first inventory's time stays.
    values["listed_us"] = func.coalesce(log.c.listed_us, values["listed_us"])
    statement = (
        update(log)
        .where(log.c.id == bindparam("log"), log.c.size == bindparam("old_size"), log.c.frozen.is_(None))
        .values({log.c[name]: value for name, value in values.items()})
    )
    return Many(engine, statement, [*(f"new_{name}" for name in names), "log", "old_size"])


def _usage(engine: Engine) -> Many:
    """Additive upserts that saturate at 2^53-1, as ``usage.add_sums`` does.

    Written with CASE, so that NULL stays NULL on every database: ``NULL > x`` is not true, and ``NULL + x`` is NULL.
    """
    names = (*_USAGE_KEY, "time_us", "samples", *FIELDS)
    make = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert
    statement = make(usage_hour).values({name: bindparam(name) for name in names})
    new = statement.excluded
    cap: ColumnElement[int] = literal_column(str(MAX_INT), BigInteger)
    merged: dict[str, Any] = {}
    for name in _SUMMED:
        total = usage_hour.c[name] + new[name]
        merged[name] = case((total > cap, cap), else_=total)
    for name in MAX_FIELDS:
        merged[name] = case((new[name] > usage_hour.c[name], new[name]), else_=usage_hour.c[name])
    return Many(engine, statement.on_conflict_do_update(index_elements=_USAGE_KEY, set_=merged), names)
