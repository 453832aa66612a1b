"""Join tokens and reader tokens: printed once, stored as SHA-256, expiring, revocable.

A token is 256 random bits, so a plain hash keeps it as safe as a slow one would.
"""

import secrets
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Literal

from sqlalchemy import Connection, Table, insert, select, update

from keyturn_verifier.db.tables import join_token, reader_token
from keyturn_verifier.errors import UsageError

Role = Literal["operator", "auditor", "admin", "approver"]
JOIN_PREFIX: Final = "ktj_"
READER_PREFIX: Final = "ktr_"


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token as it is listed: never its secret. ``id`` is ``join-<n>`` or ``reader-<n>``."""

    id: str
    what: str
    uses: str
    created_us: int
    expires_us: int
    revoked_us: int | None


def digest(token: str) -> bytes:
    """What is stored of a token."""
    return sha256(token.encode("utf-8", "replace")).digest()


def create_join(connection: Connection, organisation: str, site: str, hosts: int, now_us: int, expires_us: int) -> str:
    """A new join token; returns it, and nothing keeps it."""
    token = JOIN_PREFIX + secrets.token_urlsafe(32)
    connection.execute(
        insert(join_token).values(
            sha256=digest(token),
            organisation=organisation,
            site=site,
            hosts=hosts,
            uses=0,
            created_us=now_us,
            expires_us=expires_us,
        )
    )
    return token


def create_reader(connection: Connection, role: Role, now_us: int, expires_us: int) -> str:
    """A new reader token; returns it, and nothing keeps it."""
    token = READER_PREFIX + secrets.token_urlsafe(32)
    connection.execute(
        insert(reader_token).values(sha256=digest(token), role=role, created_us=now_us, expires_us=expires_us)
    )
    return token


def listed(connection: Connection) -> list[TokenRow]:
    """Every token, the oldest first."""
    joins = connection.execute(select(join_token).order_by(join_token.c.id)).all()
    readers = connection.execute(select(reader_token).order_by(reader_token.c.id)).all()
    return [
        TokenRow(
            f"join-{t.id}",
            f"join {t.organisation} / {t.site}",
            f"{t.uses} of {t.hosts}",
            t.created_us,
            t.expires_us,
            t.revoked_us,
        )
        for t in joins
    ] + [TokenRow(f"reader-{t.id}", t.role, "", t.created_us, t.expires_us, t.revoked_us) for t in readers]


def revoke(connection: Connection, name: str, now_us: int) -> None:
    """Revoke a token by the id that :func:`listed` shows.

    :raises UsageError: there is no such token.
    """
    kind, _, number = name.partition("-")
    tables: dict[str, Table] = {"join": join_token, "reader": reader_token}
    table = tables.get(kind)
    if table is None or not number.isascii() or not number.isdigit() or len(number) > 15:
        raise UsageError(f"not the id of a token: {name}", hint="keyturn-verifier token list shows them")
    live = table.c.revoked_us.is_(None)
    if connection.execute(update(table).where(table.c.id == int(number), live).values(revoked_us=now_us)).rowcount != 1:
        raise UsageError(f"no live token {name}", hint="keyturn-verifier token list shows them")
