"""Sending what :mod:`keyturn_verifier.notify` keeps, by threads of its own: one a receiver, so that none waits for
another and no request waits for any.

Signed as *Standard Webhooks* says: ``webhook-signature: v1,`` and base64 of HMAC-SHA256 over
``<id>.<timestamp>.<body>``. A message is delivered when the answer is 2xx, at least once; its ``webhook-id`` tells
copies apart. There is no order among messages: ``data.index``, where there is one, gives it.
"""

import base64
import binascii
import hmac
import logging
import threading
import time
from dataclasses import dataclass
from hashlib import sha256
from typing import Final
from urllib.parse import urlsplit

import urllib3
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from keyturn_verifier import notify
from keyturn_verifier.clock import Clock
from keyturn_verifier.config import Webhook
from keyturn_verifier.db.engine import reading, writing
from keyturn_verifier.errors import OutcomeUnknown, VerifierError

log = logging.getLogger(__name__)

PREFIX: Final = "whsec_"
_SECRET_BYTES: Final = (24, 64)
"""Standard Webhooks asks for as many random bytes."""
_TIMEOUT_S: Final = 10.0
_LOOK_S: Final = 5.0
"""How often a replica looks for what another one queued, or what has to be sent again."""
_GIVE_UP_S: Final = 60.0
"""How often messages are looked for that are too old."""
_DAY_US: Final = 86_400_000_000


def load_secret(hook: Webhook) -> bytes:
    """The secret of a hook.

    :raises VerifierError: it isn't there, others can read it, or it is no such secret.
    """
    path = hook.secret_file
    try:
        if path.stat().st_mode & 0o077:
            raise VerifierError(f"{path}: others can read this secret", hint=f"chmod 600 {path}, and make a new one")
        text = path.read_text("ascii").strip()
        secret = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except (OSError, UnicodeDecodeError, binascii.Error) as error:
        raise VerifierError(f"{path}: no webhook's secret: {error}") from None
    least, most = _SECRET_BYTES
    if not text.startswith(PREFIX) or not least <= len(secret) <= most:
        raise VerifierError(f"{path}: no webhook's secret", hint=f"{PREFIX} and base64 of {least} to {most} bytes")
    return secret


def signature(secret: bytes, message: str, timestamp_s: int, body: bytes) -> str:
    """The value of ``webhook-signature``."""
    signed = hmac.digest(secret, b"%s.%d.%s" % (message.encode(), timestamp_s, body), sha256)
    return "v1," + base64.b64encode(signed).decode()


@dataclass(frozen=True, slots=True)
class _Failed(Exception):
    why: str


class Webhooks:
    """The threads. :meth:`woken` may be called by anybody; :meth:`step` makes one try for one hook."""

    def __init__(self, engine: Engine, hooks: tuple[Webhook, ...], days: int, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._days = days
        self._secrets = {hook.url: load_secret(hook) for hook in hooks}
        self._stopping = False
        self._wake = threading.Condition()
        self._queued = 0
        self._gave_up_at = float("-inf")
        # Certificates are checked, redirects aren't followed: what is said goes where its operator said, or nowhere.
        self._pool = urllib3.PoolManager(
            retries=False, timeout=urllib3.Timeout(total=_TIMEOUT_S), num_pools=len(hooks) + 1
        )
        self._threads = [
            threading.Thread(target=self._run, args=(hook.url,), name=f"webhook {at}", daemon=True)
            for at, hook in enumerate(hooks)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End after the tries that are under way. Blocks for so long at most."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=_TIMEOUT_S + 1)

    def woken(self) -> None:
        """Something was queued here."""
        with self._wake:
            self._queued += 1
            self._wake.notify_all()

    def _run(self, url: str) -> None:
        seen = 0
        while True:
            with self._wake:
                if self._queued == seen and not self._stopping:
                    self._wake.wait(timeout=_LOOK_S)
                if self._stopping:
                    return
                seen = self._queued
            try:
                while self.step(url) and not self._stopping:
                    pass
            except (DBAPIError, OutcomeUnknown, PoolTimeout) as error:
                log.warning("webhooks: the outbox can't be read or written: %s", error)
            except Exception:
                log.exception("webhooks: an error of the verifier")

    def step(self, url: str) -> bool:
        """Send the next message of a hook that is due; returns whether there was one."""
        now_us = self._clock()
        if time.monotonic() - self._gave_up_at >= _GIVE_UP_S:
            self._gave_up_at = time.monotonic()
            self._give_up(now_us)
        with reading(self._engine) as connection:
            message = notify.due(connection, url, now_us)
        if message is None:
            return False
        with writing(self._engine) as connection:
            if not notify.claim(connection, message, now_us):
                return True
        try:
            self._send(message)
        except _Failed as failed:
            log.warning("webhook: %s: try %d: %s", _host(url), message.tries + 1, failed.why)
            with writing(self._engine) as connection:
                notify.put_back(connection, message, self._clock())
            return True
        # Killed before this: the message is sent once more, under its id.
        with writing(self._engine) as connection:
            notify.drop(connection, [message.row])
        return True

    def _send(self, message: notify.Message) -> None:
        timestamp_s = self._clock() // 1_000_000
        headers = {
            "content-type": "application/json",
            "user-agent": "keyturn-verifier",
            "webhook-id": message.id,
            "webhook-timestamp": str(timestamp_s),
            "webhook-signature": signature(self._secrets[message.url], message.id, timestamp_s, message.body),
        }
        try:
            answer = self._pool.request(
                "POST", message.url, body=message.body, headers=headers, redirect=False, preload_content=False
            )
            answer.close()  # whatever it says: only the status counts
        except urllib3.exceptions.HTTPError as error:
            # Without the URL, which may hold a secret of its receiver's.
            raise _Failed(type(error).__name__) from None
        if not 200 <= answer.status < 300:
            raise _Failed(f"status {answer.status}")

    def _give_up(self, now_us: int) -> None:
        with reading(self._engine) as connection:
            late = notify.late(connection, now_us - self._days * _DAY_US)
        if not late:
            return
        with writing(self._engine) as connection:
            notify.drop(connection, [message.row for message in late])
        for message in late:
            log.error(
                "webhook: %s: %s was not delivered in %d days and %d tries, and is given up",
                *(_host(message.url), message.id, self._days, message.tries),
            )


def _host(url: str) -> str:
    """A hook as the log may name it: what follows the host may be a secret."""
    return urlsplit(url).hostname or "?"
