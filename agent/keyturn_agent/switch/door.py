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
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from keyturn_agent.errors import AgentError, RefusedError, UnavailableError
from keyturn_agent.switch.asking import FILES, LINE_BYTES, Ask, Refused, ToAgent, ToExec, Told, line, to_agent
from keyturn_agent.switch.digests import digest_of
from keyturn_protocol.canonical import fit_text
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.values import SpecPart

logger = logging.getLogger(__name__)

_VISITORS: Final = 128
_OF_A_USER: Final = 64
"""So that one user who only knocks keeps nobody else out."""
_FIRST_WORD_S: Final = 30
"""Whoever has said nothing whole by then goes."""
_BREATH_S: Final = 0.5
_PART: Final = 65_536
_MODE: Final = 0o666


class Visitor:
    """One connection: ``pid`` and ``uid`` are the kernel's word."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self.pid, self.uid = _peer(connection)
        self.closed = False
        self.turn = threading.Semaphore(1)
        """Taken while a line of this visitor waits to be heard: it says the next one after that."""

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
        """:raises UnavailableError: ``no_socket``: nothing can listen there."""
        self.path = path
        self._heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        self._inside: Counter[int] = Counter()
        self._open = True
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            path.unlink(missing_ok=True)
            self._listener.bind(str(path))
            path.chmod(_MODE)
            self._listener.listen(_VISITORS)
        except OSError as error:
            self._listener.close()
            raise UnavailableError("no_socket", f"switch.exec_socket: can't listen on {path}: {error}") from None
        threading.Thread(target=self._accept, name="door", daemon=True).start()

    def heard(self) -> Iterator[Heard]:
        """What was said since the last time, and nothing that is said meanwhile; never waits."""
        for _ in range(self._heard.qsize()):
            try:
                heard = self._heard.get_nowait()
            except queue.Empty:
                return
            if heard.message is not None:
                heard.visitor.turn.release()
            yield heard

    @property
    def waiting(self) -> bool:
        return not self._heard.empty()

    def close(self) -> None:
        """Take no more visitors. Those inside see the end of the process."""
        self._open = False
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    # -- threads

    def _accept(self) -> None:
        while self._open:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if self._open:
                    # Out of descriptors, say: the door stays, for those who come when there are some again.
                    logger.error("%s: %s", self.path, error)
                    time.sleep(_BREATH_S)
                continue
            visitor = Visitor(connection)
            if not self._let_in(visitor, connection):
                visitor.tell(Refused(code="busy", detail="too many commands are being started", hint=None, retry=True))
                visitor.close()
                connection.close()

    def _let_in(self, visitor: Visitor, connection: socket.socket) -> bool:
        with self._lock:
            if self._inside[visitor.uid] >= _OF_A_USER or self._inside.total() >= _VISITORS:
                return False
            self._inside[visitor.uid] += 1
        try:
            threading.Thread(target=self._attend, args=(visitor, connection), name="visitor", daemon=True).start()
        except RuntimeError as error:
            logger.error("%s: %s", self.path, error)
            self._left(visitor)
            return False
        return True

    def _left(self, visitor: Visitor) -> None:
        with self._lock:
            self._inside[visitor.uid] -= 1
            # Users who aren't inside aren't remembered.
            self._inside += Counter()

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
            self._left(visitor)
            self._heard.put(Heard(visitor, None))

    def _read(self, visitor: Visitor, connection: socket.socket) -> None:
        data = b""
        fds: list[int] = []
        patience: float | None = time.monotonic() + _FIRST_WORD_S
        # Of the kernel, and not Python's: with that one, telling something would wait.
        _wait_at_most(connection, _FIRST_WORD_S)
        try:
            while True:
                text, end, rest = data.partition(b"\n")
                if not end:
                    if len(data) > LINE_BYTES:
                        raise RefusedError("too_large", f"a line over {LINE_BYTES} bytes")
                    part, more, _, _ = socket.recv_fds(connection, _PART, FILES)
                    fds += more
                    if not part or len(fds) > FILES or (patience is not None and time.monotonic() > patience):
                        return
                    data += part
                    continue
                data = rest
                given, fds = fds, []
                patience = None
                _wait_at_most(connection, 0)
                heard = self._understand(visitor, text, given)
                # A visitor with more to say than is heard waits here, and nobody else does.
                visitor.turn.acquire()
                self._heard.put(heard)
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


def _wait_at_most(connection: socket.socket, seconds: int) -> None:
    """How long a read waits; 0: for ever."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", seconds, 0))


def _peer(connection: socket.socket) -> tuple[int, int]:
    """pid and uid at the other end; a pid that isn't in our namespace is 0."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", data)
    return pid, uid
