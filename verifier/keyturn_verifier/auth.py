"""Who may do what: bearer tokens with a role, and the one table of what each role may do.

| Right    | operator | auditor | admin | approver |
|----------|----------|---------|-------|----------|
| read     | yes      | yes     | yes   |          |
| switch   | yes      | yes     | yes   | yes      |
| bundle   |          | yes     | yes   |          |
| review   | yes      |         | yes   |          |
| metrics  | yes      |         | yes   |          |

*read*: nodes, logs, segments, proofs, workloads, usage, findings, maintenance windows, leaves of the verifier's log.
*bundle*: evidence bundles, each of which appends a leaf to that log. *review*: closing findings, maintenance windows.
*switch*: runs, leases, openings, statements. Nobody needs a token to sign: a signature says whose it is. Tokens
themselves are made, listed and revoked on the server's machine.
"""

import hmac
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, cast

from sqlalchemy import Connection, select

from keyturn_protocol.api import ProblemCode
from keyturn_verifier.db.tables import reader_token
from keyturn_verifier.problems import Refusal
from keyturn_verifier.tokens import Role, digest


class Right(StrEnum):
    """A kind of request."""

    READ = "read"
    SWITCH = "switch"
    BUNDLE = "bundle"
    REVIEW = "review"
    METRICS = "metrics"


RIGHTS: Final[dict[Role, frozenset[Right]]] = {
    "operator": frozenset({Right.READ, Right.SWITCH, Right.REVIEW, Right.METRICS}),
    "auditor": frozenset({Right.READ, Right.SWITCH, Right.BUNDLE}),
    "admin": frozenset(Right),
    "approver": frozenset({Right.SWITCH}),
}


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose token it is: its id as ``keyturn-verifier token list`` shows it, and its role."""

    name: str
    role: Role


def check_reader(connection: Connection, authorization: str | None, now_us: int, right: Right = Right.READ) -> Caller:
    """The caller that a request's bearer token stands for.

    :raises Refusal: ``unauthorized`` for no token or one that isn't good (any more), ``forbidden`` for a role
        that may not do this.
    """
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Refusal(ProblemCode.UNAUTHORIZED, "a reader's token is needed: Authorization: Bearer …")
    wanted = digest(token.strip())
    row = connection.execute(select(reader_token).where(reader_token.c.sha256 == wanted)).one_or_none()
    # The index is searched by a hash of 256 random bits: how long that takes says nothing about any token. The
    # comparison is repeated in constant time, so that this doesn't rest on how a database compares.
    if row is None or not hmac.compare_digest(bytes(row.sha256), wanted):
        raise Refusal(ProblemCode.UNAUTHORIZED, "no such reader's token")
    if row.revoked_us is not None or row.expires_us <= now_us:
        raise Refusal(ProblemCode.UNAUTHORIZED, "this reader's token has expired or was revoked")
    if right not in RIGHTS.get(row.role, frozenset()):
        raise Refusal(ProblemCode.FORBIDDEN, f"the role {row.role} may not do this")
    return Caller(f"reader-{row.id}", cast(Role, row.role))
