"""What the service manager hands over and is told: sd_listen_fds(3), sd_notify(3)."""

import os
import socket
import time
from collections.abc import MutableMapping
from typing import Final

from keyturn_gate.errors import GateError

_FIRST_FD: Final = 3
_PARTS: Final = 3


def listener_of(environ: MutableMapping[str, str]) -> socket.socket | None:
    """The listening socket that a manager made, or None; the variables are taken out.

    :raises GateError: ``bad_socket``: more than one, or of another kind.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit() or count == "0":
        return None
    if count != "1":
        raise GateError("bad_socket", f"expected one socket from the service manager (got {count})")
    os.set_inheritable(_FIRST_FD, False)
    listener = socket.socket(fileno=_FIRST_FD)
    if (listener.family, listener.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
        raise GateError("bad_socket", "expected a stream socket in the file system")
    return listener


class Manager:
    """The service manager's notification socket, if there is one."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        watchdog = environ.pop("WATCHDOG_USEC", "")
        pid = environ.pop("WATCHDOG_PID", "")
        self._watchdog_s = int(watchdog) / 1e6 if watchdog.isdigit() and pid in ("", str(os.getpid())) else None
        self._fed = float("-inf")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) if address else None

    def say(self, text: str) -> None:
        """One message; a manager that doesn't listen is not waited for."""
        if self._socket is not None:
            try:
                self._socket.sendto(text.encode(), socket.MSG_DONTWAIT, self._address)
            except OSError:
                return

    def alive(self) -> None:
        """Feed the watchdog, if it is due."""
        now = time.monotonic()
        if self._watchdog_s is not None and now - self._fed >= self._watchdog_s / _PARTS:
            self._fed = now
            self.say("WATCHDOG=1")
