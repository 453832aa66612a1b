"""Bringing a database to the newest schema."""

from functools import cache
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

from keyturn_verifier.db.engine import is_postgres, reading, writing
from keyturn_verifier.errors import VerifierError

MIGRATION_LOCK: Final = 0x6B65797475726E01
"""The advisory lock of whoever changes tables on PostgreSQL: "keyturn" and a one."""
_SCRIPTS: Final = Path(__file__).with_name("migrations")


def migrate(engine: Engine) -> None:
    """Run the migrations that ``engine``'s database lacks, in one transaction; none is the usual case."""
    with writing(engine) as connection:
        if is_postgres(engine):
            # One replica migrates, the others wait here and then find it done.
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
        upgrade(connection)


def upgrade(connection: Connection) -> None:
    """Run the migrations that a database lacks, inside of a transaction."""
    if _have(connection) == _want():
        return
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def check(engine: Engine) -> None:
    """That the database has the schema that this version works with; changes nothing.

    :raises VerifierError: it has another one.
    """
    with reading(engine) as connection:
        have = _have(connection)
    if have != _want():
        raise VerifierError(f"the database has schema {have}, this version needs {_want()}", hint="serve migrates it")


def _have(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


@cache
def _want() -> str | None:
    return ScriptDirectory.from_config(_config()).get_current_head()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    return config
