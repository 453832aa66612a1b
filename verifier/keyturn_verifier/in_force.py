"""The root in force, read from its row without a fold of the switch, and whether it is to be renewed."""

from sqlalchemy import Connection, select

from keyturn_protocol.dsse import parse_envelope
from keyturn_protocol.root import Root
from keyturn_protocol.root_expiry import ends_soon, expires_in
from keyturn_protocol.statements import parse_payload
from keyturn_verifier.db.statement_tables import statement
from keyturn_verifier.errors import stored


@stored
def root(connection: Connection) -> Root | None:
    """The newest root; None before the first."""
    query = select(statement.c.envelope).where(statement.c.kind == "root").order_by(statement.c.leaf.desc()).limit(1)
    data = connection.execute(query).scalar()
    if data is None:
        return None
    envelope = parse_envelope(data)
    said = parse_payload(envelope.kind, envelope.payload)
    return said if isinstance(said, Root) else None


def caution(connection: Connection, now_us: int) -> str | None:
    """What an operator should know of the root's end; None: it is far, or there is no root yet."""
    found = root(connection)
    if found is None or not ends_soon(found, now_us):
        return None
    text = f"root version {found.version} {expires_in(found, now_us)}"
    if found.expires_us <= now_us:
        return f"{text}: no host can be enrolled under it; have the next version signed, and send it"
    return f"{text}; after that no host can be enrolled under it: have the next version signed, and send it"
