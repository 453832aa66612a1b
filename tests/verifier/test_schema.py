"""The schema: migrations give what the tables say, and counters behave as the protocol's fold does."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, insert, select
from sqlmodel import SQLModel

from keyturn_protocol.entry_usage import FIELDS
from keyturn_protocol.limits import MAX_INT
from keyturn_protocol.usage import RowKey, Rows, UsageRow, add_sums
from keyturn_verifier.db.engine import is_postgres, open_engine, writing
from keyturn_verifier.db.schema import check, migrate
from keyturn_verifier.db.statements import Statements
from keyturn_verifier.db.tables import log, usage_hour
from keyturn_verifier.errors import VerifierError
from tests.support.verifier import DEPLOYMENT, Database


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory, database: Database) -> Iterator[Engine]:
    made = open_engine(database() or f"sqlite:///{tmp_path_factory.mktemp('db') / 'verifier.db'}")
    migrate(made)
    yield made
    made.dispose()


def declared(name: str | None, kind: str, _parents: object) -> bool:
    """Everything but partitions."""
    return kind != "table" or name in SQLModel.metadata.tables


def test_the_migrations_give_what_the_tables_declare(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "include_name": declared})
        assert compare_metadata(context, SQLModel.metadata) == []


def test_a_second_migration_changes_nothing(engine: Engine) -> None:
    migrate(engine)
    check(engine)


def test_a_database_without_the_schema_is_refused(tmp_path: Path, database: Database) -> None:
    empty = open_engine(database() or f"sqlite:///{tmp_path / 'empty.db'}")
    with pytest.raises(VerifierError, match="schema None"):
        check(empty)
    empty.dispose()


def test_usage_columns_are_those_of_a_usage_row() -> None:
    names = [column.name for column in usage_hour.columns]
    assert names == ["log_id", *UsageRow.__struct_fields__[1:]]
    assert tuple(names[-len(FIELDS) :]) == FIELDS


def test_a_commit_is_durable(engine: Engine) -> None:
    with engine.connect() as connection:
        if is_postgres(engine):
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
            return
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


@pytest.fixture(scope="session")
def statements(engine: Engine) -> Statements:
    return Statements(engine)


EMPTY_LOG = {
    **dict.fromkeys(("public_key", "frontier", "chain", "fold"), b""),
    **dict.fromkeys(("organisation", "site"), ""),
    **dict.fromkeys(("opened_us", "size"), 0),
}
VALUES = st.one_of(st.integers(0, 1_000), st.integers(MAX_INT - 1_000, MAX_INT))


@settings(max_examples=60, deadline=None)
@given(
    nulls=st.sets(st.sampled_from(range(len(FIELDS)))),
    parts=st.lists(st.lists(VALUES, min_size=2 + len(FIELDS), max_size=2 + len(FIELDS)), min_size=1, max_size=5),
)
def test_upserts_add_as_the_fold_does(
    engine: Engine, statements: Statements, nulls: set[int], parts: list[list[int]]
) -> None:
    basis = sum(1 << i for i in nulls)
    rows = Rows()
    key = RowKey(f"{DEPLOYMENT}/x", "GPU-0", 0, "slurm:1", 1, basis)  # type: ignore[arg-type]
    with writing(engine) as connection:
        connection.execute(insert(log).values(id=1, origin=key.log, node_id="x", incarnation=1, **EMPTY_LOG))
        for part in parts:
            values = [None if i - 2 in nulls else value for i, value in enumerate(part)]
            add_sums(rows, key, values)
            statements.usage.run(connection, [(1, *key[1:], *values)])
        (stored,) = connection.execute(select(usage_hour))
        assert list(stored[6:]) == rows[key]
        connection.execute(delete(usage_hour))
        connection.execute(delete(log))
