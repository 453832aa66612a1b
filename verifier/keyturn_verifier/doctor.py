"""``keyturn-verifier doctor``: what an operator should know before an auditor finds it out. Changes nothing.

ok    database: postgresql at schema 0003
warn  receipts: no synchronous standby (synchronous_standby_names is empty): …
ok    log: published
ok    keys: those that the root in force names
ok    root: version 2 expires in 3,320 days
ok    totals: up to date
"""

from collections.abc import Iterator
from typing import NamedTuple

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from keyturn_protocol.chips import chip_table
from keyturn_protocol.root_expiry import expires_in
from keyturn_verifier import estranged, in_force, keyfiles, state, translog
from keyturn_verifier.clock import Clock
from keyturn_verifier.config import Config
from keyturn_verifier.db import durability
from keyturn_verifier.db.engine import is_postgres, reading
from keyturn_verifier.rollup import feed
from keyturn_verifier.rollup.view import version_of

_LATE_US = 60_000_000


class Line(NamedTuple):
    """One check. ``level`` is ok, warn or fail."""

    level: str
    about: str
    text: str


def examine(settings: Config, clock: Clock) -> Iterator[Line]:
    """Every check in turn; after a database that can't be read there are no more.

    :raises VerifierError: the database is another verifier's, at another schema, or not there.
    """
    engine = state.open_database(settings)
    try:
        with reading(engine) as connection:
            kind = "postgresql" if is_postgres(connection) else "sqlite"
            yield Line("ok", "database", f"{kind}, with this directory's keys and this version's schema")
            yield _receipts(connection, kind)
            yield _log(connection, clock())
            yield _keys(connection, settings)
            yield _root(connection, clock())
            yield _totals(connection)
    except DBAPIError as error:
        yield Line("fail", "database", str(error.orig))
    finally:
        engine.dispose()


def _receipts(connection: Connection, kind: str) -> Line:
    why = durability.caution(connection)
    if why is not None:
        return Line("warn", "receipts", why)
    return Line("ok", "receipts", "synced to this disk" if kind == "sqlite" else "a COMMIT waits for a standby")


def _log(connection: Connection, now_us: int) -> Line:
    head = translog.head(connection)
    unpublished = head.size - translog.published_size(connection)
    if unpublished and now_us - head.time_us > _LATE_US:
        return Line("warn", "log", f"{unpublished} leaves are not published: is anything serving?")
    return Line("ok", "log", f"{head.size} leaves, {unpublished} of them not published yet")


def _keys(connection: Connection, settings: Config) -> Line:
    if in_force.root(connection) is None:
        return Line("ok", "keys", "there is no root yet")
    why = estranged.caution(connection, settings, keyfiles.load(settings.state, settings.deployment))
    return Line("ok", "keys", "those that the root in force names") if why is None else Line("fail", "keys", why)


def _root(connection: Connection, now_us: int) -> Line:
    root = in_force.root(connection)
    if root is None:
        return Line("ok", "root", "there is none yet")
    why = in_force.caution(connection, now_us)
    if why is None:
        return Line("ok", "root", f"version {root.version} {expires_in(root, now_us)}")
    return Line("fail" if root.expires_us <= now_us else "warn", "root", why)


def _totals(connection: Connection) -> Line:
    made = feed.load(connection)
    size = feed.size(connection)
    if made is None or made.version != version_of(chip_table()):
        return Line("warn", "totals", "no sums with this chip table yet: the first pages read all rows")
    if made.built != feed.ALL_LOGS:
        return Line("warn", "totals", f"sums are being made: logs up to {made.built} are in them")
    return Line("ok", "totals", f"sums hold all but the newest {size - made.size} leaves")
