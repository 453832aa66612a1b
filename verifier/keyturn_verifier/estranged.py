"""Whether the root in force names this server's keys: what it signs with others, nobody believes.

A replica with the ``lease.key`` of another state directory, or one restored from before the root, would hand out leases
that every host throws away, and account for each of them.
"""

from typing import Final

from sqlalchemy import Connection

from keyturn_protocol.root import Services
from keyturn_verifier import in_force, keyfiles
from keyturn_verifier.config import Config

_FILES: Final = {
    "log_vkey": keyfiles.LOG_KEY,
    "receipt_vkey": keyfiles.RECEIPT_KEY,
    "lease_vkey": keyfiles.LEASE_KEY,
}


def caution(connection: Connection, config: Config, keys: keyfiles.Keys) -> str | None:
    """What an operator should know of this server's keys; None: the root names them, or there is none yet."""
    root = in_force.root(connection)
    if root is None:
        return None
    return why_not(root.services, keyfiles.current(config.state, config.deployment, keys))


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
