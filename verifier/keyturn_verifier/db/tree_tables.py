"""The tables of the verifier's own log."""

from typing import Final

from sqlalchemy import BigInteger, Integer, Table
from sqlmodel import Field, SQLModel

_ID: Final = BigInteger().with_variant(Integer(), "sqlite")


def _big(**options: object) -> int:
    return Field(sa_type=BigInteger, **options)  # type: ignore[call-overload,no-any-return]


class TreeLeaf(SQLModel, table=True):
    """A leaf of the verifier's log."""

    __tablename__ = "tree_leaf"

    index: int = Field(primary_key=True, sa_type=_ID, sa_column_kwargs={"autoincrement": False})
    hash: bytes
    data: bytes


class TreeNode(SQLModel, table=True):
    """The root of a full tile of the level below: what hash tiles above level 0 are made of."""

    __tablename__ = "tree_node"

    level: int = _big(primary_key=True)
    index: int = _big(primary_key=True)
    hash: bytes


class TreeHead(SQLModel, table=True):
    """The newest state of the verifier's log: one row, locked by whoever appends."""

    __tablename__ = "tree_head"

    id: int = Field(primary_key=True, sa_type=_ID, sa_column_kwargs={"autoincrement": False})
    size: int = _big()
    frontier: bytes
    time_us: int = _big()
    """Of the newest leaf; times of leaves and receipts never go back."""


class TreeCheckpoint(SQLModel, table=True):
    """A signed checkpoint of the verifier's log; one for a size, ever."""

    __tablename__ = "tree_checkpoint"

    size: int = Field(primary_key=True, sa_type=_ID, sa_column_kwargs={"autoincrement": False})
    note: bytes
    time_us: int = _big()
    """When it was signed: any replica's next one waits for the interval."""


def _table(model: type[SQLModel]) -> Table:
    table = SQLModel.metadata.tables[str(model.__tablename__)]
    assert isinstance(table, Table)  # noqa: S101
    return table


tree_leaf = _table(TreeLeaf)
tree_node = _table(TreeNode)
tree_head = _table(TreeHead)
tree_checkpoint = _table(TreeCheckpoint)
