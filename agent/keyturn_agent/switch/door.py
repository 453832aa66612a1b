"""The agent's socket for ``exec``: who is there, what they say, and what they are told.

A thread for each visitor reads lines and hashes the files that come with them; what was understood waits for the
daemon's thread in :meth:`Door.heard`. Anybody on the host may knock; nothing is believed but what the kernel says of
the peer (SO_PEERCRED), what is hashed here, and what opens a commitment.
"""

import contextlib
import logging
import os
import queue
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from keyturn_agent.errors import AgentError, RefusedError, UsageError
from keyturn_agent.switch.asking import FILES, LINE_BYTES, Ask, Refused, ToAgent, ToExec, Told, line, to_agent
from keyturn_agent.switch.digests import digest_of
from keyturn_protocol.canonical import fit_text
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.values import SpecPart

logger = logging.getLogger(__name__)

_VISITORS: Final = 64
_PART: Final = 65_536
_MODE: Final = 0o666


class Visitor:
    """One connection: ``pid`` and ``uid`` are the kernel's word."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self.pid, self.uid = _peer(connection)
        self.closed = False

    def tell(self, message: ToExec) -> None:
        """Say something; a visitor that doesn't listen is dropped, and never waited for."""
        if self.closed:
            return
        data = line(message)
        try:
            sent = self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            sent = -1
        if sent != len(data):
            self.close()

    def close(self) -> None:
        self.closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True, slots=True)
class Heard:
    """What a visitor said; None: it hung up. ``digests``: of the files that came with it."""

    visitor: Visitor
    message: ToAgent | None
    digests: dict[SpecPart, str] = field(default_factory=dict)


class Door:
    """The listening socket and its threads."""

    def __init__(self, path: Path) -> None:
        """:raises UsageError: ``bad_setting``: nothing can listen there."""
        self.path = path
        self._heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        self._inside = 0
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            path.unlink(missing_ok=True)
            self._listener.bind(str(path))
            path.chmod(_MODE)
            self._listener.listen(_VISITORS)
        except OSError as error:
            self._listener.close()
            raise UsageError("bad_setting", f"switch.exec_socket: can't listen on {path}: {error}") from None
        threading.Thread(target=self._accept, name="door", daemon=True).start()

    def heard(self) -> Iterator[Heard]:
        """What was said since the last time; never waits."""
        while True:
            try:
                yield self._heard.get_nowait()
            except queue.Empty:
                return

    @property
    def waiting(self) -> bool:
        return not self._heard.empty()

    def close(self) -> None:
        """Take no more visitors. Those inside see the end of the process."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    # -- threads

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            visitor = Visitor(connection)
            with self._lock:
                full = self._inside >= _VISITORS
                self._inside += not full
            if full:
                visitor.tell(Refused(code="busy", detail="too many commands are being started", hint=None, retry=True))
                visitor.close()
                connection.close()
                continue
            threading.Thread(target=self._attend, args=(visitor, connection), name="visitor", daemon=True).start()

    def _attend(self, visitor: Visitor, connection: socket.socket) -> None:
        try:
            self._read(visitor, connection)
        except (AgentError, ProtocolError) as error:
            code, hint = (error.code, error.hint) if isinstance(error, AgentError) else (str(error.code), None)
            visitor.tell(Refused(code=code, detail=fit_text(str(error)), hint=hint, retry=False))
        except OSError:
            pass
        finally:
            visitor.close()
            connection.close()
            with self._lock:
                self._inside -= 1
            self._heard.put(Heard(visitor, None))

    def _read(self, visitor: Visitor, connection: socket.socket) -> None:
        data = b""
        fds: list[int] = []
        try:
            while True:
                text, end, rest = data.partition(b"\n")
                if not end:
                    if len(data) > LINE_BYTES:
                        raise RefusedError("too_large", f"a line over {LINE_BYTES} bytes")
                    part, more, _, _ = socket.recv_fds(connection, _PART, FILES)
                    fds += more
                    if not part or len(fds) > FILES:
                        return
                    data += part
                    continue
                data = rest
                given, fds = fds, []
                self._heard.put(self._understand(visitor, text, given))
        finally:
            for fd in fds:
                os.close(fd)

    def _understand(self, visitor: Visitor, text: bytes, fds: list[int]) -> Heard:
        digests: dict[SpecPart, str] = {}
        try:
            message = to_agent(text)
            if isinstance(message, Ask):
                if len(message.files) != len(fds):
                    raise RefusedError("bad_files", f"{len(message.files)} files are named, {len(fds)} came")
                for part in message.files:
                    visitor.tell(Told(text=f"hashing the {part}"))
                    digests[part] = digest_of(fds.pop(0), part)
        finally:
            for fd in fds:
                os.close(fd)
        return Heard(visitor, message, digests)


def _peer(connection: socket.socket) -> tuple[int, int]:
    """pid and uid at the other end; a pid that isn't in our namespace is 0."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", data)
    return pid, uid
