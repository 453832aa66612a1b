"""What operators say about findings: closings and maintenance windows. Rows are added, never edited away."""

from typing import Final

from sqlalchemy import BigInteger, Integer, Table
from sqlmodel import Field, SQLModel

_ID: Final = BigInteger().with_variant(Integer(), "sqlite")


class FindingClosing(SQLModel, table=True):
    """A closing of all findings of one code on one node. The newest one of a (node, code) counts."""

    __tablename__ = "finding_closing"

    id: int | None = Field(default=None, primary_key=True, sa_type=_ID)
    node_id: str = Field(index=True)
    code: str
    reason: str
    author: str
    closed_us: int = Field(sa_type=BigInteger)
    count: int = Field(sa_type=BigInteger)
    """Findings that there were."""
    timeless: int = Field(sa_type=BigInteger)
    """Of those, how many name no time: one more than that is a new one."""


class MaintenanceWindow(SQLModel, table=True):
    """Announced work on a node, a site, or (both NULL) everywhere."""

    __tablename__ = "maintenance_window"

    id: int | None = Field(default=None, primary_key=True, sa_type=_ID)
    node_id: str | None = None
    site: str | None = None
    from_us: int = Field(sa_type=BigInteger)
    to_us: int = Field(sa_type=BigInteger)
    reason: str
    author: str
    created_us: int = Field(sa_type=BigInteger)
    cancelled_us: int | None = Field(default=None, sa_type=BigInteger)


def _table(model: type[SQLModel]) -> Table:
    table = SQLModel.metadata.tables[str(model.__tablename__)]
    assert isinstance(table, Table)  # noqa: S101
    return table


finding_closing = _table(FindingClosing)
maintenance_window = _table(MaintenanceWindow)
