"""Whether the root in force names this server's keys: what it signs with others, nobody believes.

A replica with the ``lease.key`` of another state directory, or one restored from before the root, would hand out leases
that every host throws away, and account for each of them.
"""

from typing import Final

from sqlalchemy import Connection, select

from keyturn_protocol.dsse import parse_envelope
from keyturn_protocol.root import Root, Services
from keyturn_protocol.statements import parse_payload
from keyturn_verifier import keyfiles
from keyturn_verifier.config import Config
from keyturn_verifier.db.statement_tables import statement
from keyturn_verifier.errors import stored

_FILES: Final = {
    "log_vkey": keyfiles.LOG_KEY,
    "receipt_vkey": keyfiles.RECEIPT_KEY,
    "lease_vkey": keyfiles.LEASE_KEY,
}


@stored
def in_force(connection: Connection) -> Services | None:
    """The keys that the newest root names; None before the first. Read from its row, without a fold of the switch."""
    query = select(statement.c.envelope).where(statement.c.kind == "root").order_by(statement.c.leaf.desc()).limit(1)
    data = connection.execute(query).scalar()
    if data is None:
        return None
    envelope = parse_envelope(data)
    root = parse_payload(envelope.kind, envelope.payload)
    return root.services if isinstance(root, Root) else None


def caution(connection: Connection, config: Config, keys: keyfiles.Keys) -> str | None:
    """What an operator should know of this server's keys; None: the root names them, or there is none yet."""
    services = in_force(connection)
    return None if services is None else why_not(services, keyfiles.current(config.state, config.deployment, keys))


def why_not(services: Services, keys: keyfiles.Keys) -> str | None:
    """Which key isn't the one that a root names."""
    own = {
        "log_vkey": str(keys.log.public),
        "receipt_vkey": str(keys.receipt.public),
        "lease_vkey": None if keys.lease is None else str(keys.lease.public),
    }
    for name, file in _FILES.items():
        wanted = getattr(services, name)
        if own[name] is None:
            return f"there is no {file}; the root in force names {wanted}: copy it here, until then there are no leases"
        if own[name] != wanted:
            return f"{file} is {own[name]}, the root in force names {wanted}: put that one in place and restart"
    return None
