"""What people signed. Rows are added under the lock of the verifier's log, with their leaves, and never edited."""

from typing import Final

from sqlalchemy import BigInteger, Integer, Table
from sqlmodel import Field, SQLModel

_ID: Final = BigInteger().with_variant(Integer(), "sqlite")


class StoredStatement(SQLModel, table=True):
    """A statement, by the index of its leaf."""

    __tablename__ = "statement"

    leaf: int = Field(primary_key=True, sa_type=_ID, sa_column_kwargs={"autoincrement": False})
    sha256: bytes = Field(unique=True)
    """Of its payload."""
    kind: str
    envelope: bytes
    time_us: int = Field(sa_type=BigInteger)
    """Of its leaf."""
    run: str | None = Field(default=None, index=True)
    """The hash of the request of the run that it is about, 64 hex digits; none for roots, policies, replacements."""


class NodeReplacement(SQLModel, table=True):
    """A statement of the kind ``replacement``, taken apart. A node is replaced once, and replaces one."""

    __tablename__ = "node_replacement"

    leaf: int = Field(
        primary_key=True, sa_type=_ID, sa_column_kwargs={"autoincrement": False}, foreign_key="statement.leaf"
    )
    old: str = Field(unique=True)
    new: str = Field(unique=True)
    reason: str


def _table(model: type[SQLModel]) -> Table:
    table = SQLModel.metadata.tables[str(model.__tablename__)]
    assert isinstance(table, Table)  # noqa: S101
    return table


statement = _table(StoredStatement)
node_replacement = _table(NodeReplacement)
