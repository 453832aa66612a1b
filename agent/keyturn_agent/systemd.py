"""What a service tells systemd, by ``sd_notify(3)``; without a dependency, and silent without systemd.

READY=1                 the log is open and the inventory is in it
WATCHDOG=1              the loop goes round; at most every third of WATCHDOG_USEC
STOPPING=1
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Final

logger = logging.getLogger(__name__)

_PARTS: Final = 3


class Notifier:
    """The service manager's socket, if there is one.

    :param watchdog_s: the service is taken for dead after so long without a sign; None without a watchdog.
    """

    def __init__(
        self, address: str | None, watchdog_s: float | None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._watchdog_s = watchdog_s
        self._now = now
        self._last = float("-inf")
        self._socket: socket.socket | None = None
        if address is not None:
            # "@" stands for the zero byte of an abstract address.
            self._address = "\0" + address[1:] if address.startswith("@") else address
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            # A manager that doesn't read must not stop the metering.
            self._socket.setblocking(False)

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> "Notifier":
        """As the manager left it; the variables are taken out, so that no child of ours speaks in our name."""
        address = environ.pop("NOTIFY_SOCKET", None)
        watchdog_s = _watchdog_s(environ)
        for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
            environ.pop(name, None)
        if address is not None and not address.startswith(("/", "@")):
            logger.warning("NOTIFY_SOCKET is not a socket's address: %s", address)
            address = None
        return cls(address, watchdog_s if address is not None else None)

    def ready(self, status: str) -> None:
        self._say(f"READY=1\nSTATUS={_line(status)}")

    def alive(self) -> None:
        """Feed the watchdog, if it is due."""
        if self._watchdog_s is None:
            return
        now = self._now()
        if now - self._last >= self._watchdog_s / _PARTS:
            self._last = now
            self._say("WATCHDOG=1")

    def stopping(self, status: str) -> None:
        self._say(f"STOPPING=1\nSTATUS={_line(status)}")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _say(self, text: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(text.encode(), self._address)
        except OSError as error:
            logger.warning("telling systemd: %s", error)


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    """``WATCHDOG_USEC`` in seconds, where it is meant for this process."""
    text, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        return None
    if pid and pid != str(os.getpid()):
        return None
    return int(text) / 1e6


def _line(text: str) -> str:
    return text.replace("\n", " ")
