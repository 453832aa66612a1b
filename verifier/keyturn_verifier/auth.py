"""Who may read: bearer tokens with a role."""

from typing import Final, cast, get_args

from sqlalchemy import Connection, select

from keyturn_protocol.api import ProblemCode
from keyturn_verifier.db.tables import reader_token
from keyturn_verifier.problems import Refusal
from keyturn_verifier.tokens import Role, digest

READERS: Final[frozenset[Role]] = frozenset(get_args(Role))
"""Roles that may read nodes, usage and findings."""


def check_reader(
    connection: Connection, authorization: str | None, now_us: int, roles: frozenset[Role] = READERS
) -> Role:
    """The role of a request's bearer token.

    :raises Refusal: ``unauthorized`` for no token or one that isn't good (any more), ``forbidden`` for a role
        that may not do this.
    """
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Refusal(ProblemCode.UNAUTHORIZED, "a reader's token is needed: Authorization: Bearer …")
    row = connection.execute(select(reader_token).where(reader_token.c.sha256 == digest(token.strip()))).one_or_none()
    if row is None:
        raise Refusal(ProblemCode.UNAUTHORIZED, "no such reader's token")
    if row.revoked_us is not None or row.expires_us <= now_us:
        raise Refusal(ProblemCode.UNAUTHORIZED, "this reader's token has expired or was revoked")
    if row.role not in roles:
        raise Refusal(ProblemCode.FORBIDDEN, f"the role {row.role} may not do this")
    return cast(Role, row.role)
