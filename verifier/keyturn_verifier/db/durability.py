"""What a COMMIT of this database outlives. A receipt promises as much and no more."""

from sqlalchemy import Connection

from keyturn_verifier.db.engine import is_postgres


def caution(connection: Connection) -> str | None:
    """Why receipts can outrun the database; None if nothing speaks for it.

    A COMMIT on a single server outlives its process and its machine's power, and not the loss of its disk, nor a
    failover to a standby that it didn't wait for.
    """
    if not is_postgres(connection):
        return None
    names = connection.exec_driver_sql("SELECT current_setting('synchronous_standby_names')").scalar()
    if str(names).strip():
        return None
    return (
        "no synchronous standby (synchronous_standby_names is empty): after a failover receipts can outrun the "
        "database, and agents send again what it lost"
    )
