"""Sums of estimates, kept ready for reading. A cache: all of it can be dropped, and is made again from usage rows.

Nothing here is evidence, and nothing here is in a bundle. See :mod:`keyturn_verifier.rollup`. On PostgreSQL the
migration gives chips and workloads the collation "C": pages are merged with what Python sorts.
"""

from typing import Final

from sqlalchemy import BigInteger, Index, Integer, Table
from sqlmodel import Field, SQLModel

_ID: Final = BigInteger().with_variant(Integer(), "sqlite")
_COMPACT: Final = ({"sqlite_with_rowid": False},)


def _big(**options: object) -> int:
    return Field(sa_type=BigInteger, **options)  # type: ignore[call-overload,no-any-return]


class RollupState(SQLModel, table=True):
    """How far the sums reach: one row. Whoever moves it compares all of it first."""

    __tablename__ = "rollup_state"

    id: int = Field(primary_key=True, sa_type=_ID, sa_column_kwargs={"autoincrement": False})
    version: str
    """Of the rules and the chip table that the sums were made with."""
    size: int = _big()
    """Leaves of the verifier's log whose segments are in the sums."""
    built: int = _big()
    """The last log that is in the sums, while they are made for the first time."""


class RollupPlace(SQLModel, table=True):
    """A number for an organisation's site."""

    __tablename__ = "rollup_place"

    id: int = Field(primary_key=True, sa_type=_ID, sa_column_kwargs={"autoincrement": False})
    organisation: str
    site: str


class RollupChip(SQLModel, table=True):
    """A number for a chip: its place in the bit sets that are counted."""

    __tablename__ = "rollup_chip"

    number: int = Field(primary_key=True, sa_type=_ID, sa_column_kwargs={"autoincrement": False})
    chip: str = Field(unique=True)


class RollupDay(SQLModel, table=True):
    """What one log's rows of one UTC day put into the sums: taken out again when a row changes."""

    __tablename__ = "rollup_day"
    __table_args__ = _COMPACT

    log_id: int = _big(primary_key=True)
    day_s: int = _big(primary_key=True)
    body: bytes


class RollupLog(SQLModel, table=True):
    """Which of a log's gaps are in the sums."""

    __tablename__ = "rollup_log"

    log_id: int = Field(primary_key=True, sa_type=_ID, sa_column_kwargs={"autoincrement": False})
    gap_id: int = _big()


class RollupGap(SQLModel, table=True):
    """Long gaps of one log with the same ends, which are in no sum: they would be in too many."""

    __tablename__ = "rollup_gap"

    log_id: int = _big(primary_key=True)
    from_us: int = _big(primary_key=True)
    to_us: int = _big(primary_key=True)
    gap_id: int = _big(primary_key=True)
    """The last of them."""
    body: bytes


class RollupCell(SQLModel, table=True):
    """One sum: of an hour, a day or a month (UTC), of one workload or (empty) all, at one place."""

    __tablename__ = "rollup_cell"
    __table_args__ = _COMPACT

    level: int = _big(primary_key=True)
    workload: str = Field(primary_key=True)
    from_s: int = _big(primary_key=True)
    place: int = _big(primary_key=True)
    body: bytes


def _table(model: type[SQLModel]) -> Table:
    table = SQLModel.metadata.tables[str(model.__tablename__)]
    assert isinstance(table, Table)  # noqa: S101
    return table


rollup_state = _table(RollupState)
rollup_place = _table(RollupPlace)
rollup_chip = _table(RollupChip)
rollup_day = _table(RollupDay)
rollup_log = _table(RollupLog)
rollup_gap = _table(RollupGap)
rollup_cell = _table(RollupCell)

Index("rollup_cell_by_time", rollup_cell.c.level, rollup_cell.c.from_s, rollup_cell.c.workload)
