"""How nodes come in: announced with a join token, enrolled by their first valid genesis segment."""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, Row, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from keyturn_protocol.api import JoinRequest, JoinResponse, ProblemCode
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.ids import Deployment, LogName, Origin, parse_origin
from keyturn_protocol.keys import SignatureType, VerifierKey, node_id_of, parse_vkey
from keyturn_verifier.config import Limits
from keyturn_verifier.db.engine import is_postgres
from keyturn_verifier.db.tables import join_token, log, pending_log
from keyturn_verifier.problems import Refusal
from keyturn_verifier.tokens import digest

HOUR_US = 3_600_000_000


@dataclass(frozen=True, slots=True)
class Joining:
    """An announced node: its first log opens when the token is used up for it."""

    token_id: int
    token_sha256: bytes
    organisation: str
    site: str


def join(connection: Connection, name: Deployment, limits: Limits, request: JoinRequest, now_us: int) -> JoinResponse:
    """Announce a node; in a write transaction. The same announcement twice is one.

    :raises Refusal: ``token_unknown``, ``token_expired``, ``token_used``, ``bad_request``, ``unknown_log``,
        ``already_enrolled``.
    """
    # The lock makes the count below hold until the commit, and is of the kind that a reference to the token allows.
    query = select(join_token).where(join_token.c.sha256 == digest(request.token)).with_for_update(key_share=True)
    token = connection.execute(query).one_or_none()
    if token is None:
        raise Refusal(ProblemCode.TOKEN_UNKNOWN, "no such join token")
    _check_token(token, now_us)
    origin, key = _node(name, request.vkey)
    if connection.execute(select(log.c.id).where(log.c.node_id == parse_origin(origin).node_id)).first() is not None:
        raise Refusal(ProblemCode.ALREADY_ENROLLED, f"{origin} is enrolled")
    live = pending_log.c.expires_us > now_us
    known = connection.execute(select(pending_log.c.token_id).where(pending_log.c.origin == origin, live)).scalar()
    if known is None:
        count = connection.execute(
            select(func.count()).select_from(pending_log).where(pending_log.c.token_id == token.id, live)
        ).scalar_one()
        if count >= token.hosts * limits.pending_per_token:
            raise Refusal(ProblemCode.TOKEN_USED, "too many nodes were announced with this token and never began")
    if known != token.id:
        _announce(connection, origin, key, token.id, now_us, limits)
    return JoinResponse(origin=origin, organisation=token.organisation, site=token.site)


def _announce(
    connection: Connection, origin: Origin, key: VerifierKey, token_id: int, now_us: int, limits: Limits
) -> None:
    """Expect a node's first log. A second token for the same key: the newer one counts, its organisation with it."""
    make = postgresql.insert if is_postgres(connection) else sqlite.insert
    expires_us = now_us + limits.pending_hours * HOUR_US
    row = make(pending_log).values(origin=origin, public_key=key.public_key, token_id=token_id, expires_us=expires_us)
    new = {"token_id": row.excluded.token_id, "expires_us": row.excluded.expires_us}
    connection.execute(row.on_conflict_do_update(index_elements=["origin"], set_=new))
    # Last, and only rows that nobody holds: this waits for no one while it holds what is above.
    late = select(pending_log.c.origin).where(pending_log.c.expires_us <= now_us).limit(1_000)
    connection.execute(delete(pending_log).where(pending_log.c.origin.in_(late.with_for_update(skip_locked=True))))


def lock_tokens(connection: Connection, ids: Iterable[int]) -> None:
    """Lock join tokens in the order of their ids, before the logs that they open."""
    numbers = sorted(set(ids))
    if not numbers:
        return
    wanted = select(join_token.c.id).where(join_token.c.id.in_(numbers)).order_by(join_token.c.id)
    connection.execute(wanted.with_for_update(key_share=True)).all()


def token_refusal(connection: Connection, joining: Joining, now_us: int) -> Refusal | None:
    """Why a locked token can't be used, or None."""
    token = connection.execute(select(join_token).where(join_token.c.id == joining.token_id)).one()
    try:
        _check_token(token, now_us)
    except Refusal as refusal:
        return refusal
    return None


def _check_token(token: Row[tuple[object, ...]], now_us: int) -> None:
    if token.revoked_us is not None:
        raise Refusal(ProblemCode.TOKEN_EXPIRED, "this join token was revoked")
    if token.expires_us <= now_us:
        raise Refusal(ProblemCode.TOKEN_EXPIRED, "this join token has expired")
    if token.uses >= token.hosts:
        raise Refusal(ProblemCode.TOKEN_USED, f"this join token was good for {token.hosts} hosts and is used up")


def _node(name: Deployment, vkey: str) -> tuple[Origin, VerifierKey]:
    """The origin and key of a node's first log.

    :raises Refusal: ``bad_request``, or ``unknown_log`` for another deployment.
    """
    try:
        key = parse_vkey(vkey)
        origin = parse_origin(key.name)
    except ProtocolError as error:
        raise Refusal(ProblemCode.BAD_REQUEST, f"vkey: {error}") from None
    if key.kind is not SignatureType.ED25519:
        raise Refusal(ProblemCode.BAD_REQUEST, "vkey: a node's log is signed with Ed25519 (type 0x01)")
    if origin.deployment != name:
        raise Refusal(ProblemCode.UNKNOWN_LOG, f"this is {name}, not {origin.deployment}")
    if origin.incarnation != 1:
        raise Refusal(ProblemCode.BAD_REQUEST, f"vkey: a node joins with incarnation 1 (got {origin.incarnation})")
    if node_id_of(key.public_key) != origin.node_id:
        raise Refusal(ProblemCode.BAD_REQUEST, "vkey: the node id is not this key's")
    return origin.origin, key


def pending(connection: Connection, origin: Origin, now_us: int) -> tuple[bytes, Joining] | None:
    """The public key of an announced node, and what it joins with."""
    row = connection.execute(
        select(pending_log.c.public_key, join_token)
        .join(join_token, join_token.c.id == pending_log.c.token_id)
        .where(pending_log.c.origin == origin, pending_log.c.expires_us > now_us)
    ).one_or_none()
    if row is None:
        return None
    return row.public_key, Joining(row.id, row.sha256, row.organisation, row.site)


def use_token(connection: Connection, name: LogName, joining: Joining) -> None:
    """Use a locked token that is good up for one node, in the transaction that opens the node's log."""
    uses, hosts = join_token.c.uses, join_token.c.hosts
    used = connection.execute(
        update(join_token).where(join_token.c.id == joining.token_id, uses < hosts).values(uses=uses + 1)
    ).rowcount
    if used != 1:
        raise AssertionError("a token that is good could not be used")
    connection.execute(delete(pending_log).where(pending_log.c.origin == name.origin))
