"""Messages about runs, kept until they are delivered: written in the transaction that they are about.

    {"data":{"index":41,"kind":"decision","person":"office/ivy","run":"5e0c…","sha256":"71a3…"},
     "timestamp":"2026-09-21T13:34:41.000000Z","type":"statement.decision"}                 (one line)

A message says what to look at, and is no evidence: who gets one reads the statement itself.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, Final

from sqlalchemy import Connection, delete, func, insert, select, update

from keyturn_protocol.canonical import encode
from keyturn_verifier.config import Webhook
from keyturn_verifier.db.switch_tables import webhook_outbox

CLAIM_US: Final = 60_000_000
"""Whoever took a message to send it has so long; after that it is anybody's again."""
FIRST_US: Final = 5_000_000
MOST_US: Final = 3_600_000_000
"""Between two tries: five seconds at first, twice as long each time, an hour at most."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Message:
    """One to be sent. ``id`` is the receiver's; the same for every try."""

    row: int
    url: str
    id: str
    body: bytes
    created_us: int
    tries: int


def event(kind: str, time_us: int, /, **data: Any) -> bytes:
    """A message's body."""
    moment = (_EPOCH + timedelta(microseconds=time_us)).isoformat(timespec="microseconds")
    return encode({"type": kind, "timestamp": moment.replace("+00:00", "Z"), "data": data})


def queue(connection: Connection, hooks: Sequence[Webhook], bodies: Iterable[bytes], now_us: int) -> None:
    """Keep messages for every hook; in a write transaction."""
    rows = [
        {"url": hook.url, "message": _id(body), "body": body, "created_us": now_us, "next_us": now_us, "tries": 0}
        for body in bodies
        for hook in hooks
    ]
    if rows:
        connection.execute(insert(webhook_outbox), rows)


def _id(body: bytes) -> str:
    """Two replicas that restart in the middle of a message send it under one id."""
    return "msg_" + sha256(body).hexdigest()[:32]


def due(connection: Connection, url: str, now_us: int) -> Message | None:
    """The message that has waited longest for its turn."""
    row = webhook_outbox.c
    query = select(webhook_outbox).where(row.url == url, row.next_us <= now_us).order_by(row.next_us).limit(1)
    found = connection.execute(query).one_or_none()
    if found is None:
        return None
    return Message(found.id, found.url, found.message, found.body, found.created_us, found.tries)


def claim(connection: Connection, message: Message, now_us: int) -> bool:
    """Take a message to send it; in a write transaction. False: another replica has."""
    row = webhook_outbox.c
    mine = update(webhook_outbox).where(row.id == message.row, row.tries == message.tries, row.next_us <= now_us)
    return connection.execute(mine.values(tries=message.tries + 1, next_us=now_us + CLAIM_US)).rowcount == 1


def put_back(connection: Connection, message: Message, now_us: int) -> None:
    """Send a message later that :func:`claim` took."""
    wait_us = min(FIRST_US << min(message.tries, 20), MOST_US)
    mine = update(webhook_outbox).where(webhook_outbox.c.id == message.row)
    connection.execute(mine.values(next_us=now_us + wait_us))


def drop(connection: Connection, rows: Iterable[int]) -> None:
    """Forget messages: delivered ones, or those that are given up."""
    connection.execute(delete(webhook_outbox).where(webhook_outbox.c.id.in_(list(rows))))


def late(connection: Connection, before_us: int, limit: int = 100) -> list[Message]:
    """Messages from before a time, of any hook: of one that was taken out of the configuration too."""
    query = select(webhook_outbox).where(webhook_outbox.c.created_us < before_us).limit(limit)
    return [Message(r.id, r.url, r.message, r.body, r.created_us, r.tries) for r in connection.execute(query)]


def waiting(connection: Connection) -> int:
    """How many messages are not delivered."""
    return connection.execute(select(func.count()).select_from(webhook_outbox)).scalar_one()
