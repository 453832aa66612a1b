"""Between a verifier and PostgreSQL: counts what the client asks, and stops at one question to let something happen.

Messages are those of the frontend/backend protocol, version 3 (PostgreSQL's manual, "Message Formats"). A *question*
ends with Sync, Query or the end of a COPY: after it the client waits for an answer. The link can stop before a
question goes to the server, once its answer is there and before the client has it, or let it go and not wait.
"""

import selectors
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

When = Literal["before", "meanwhile", "after"]
_QUESTIONS = b"SQcf"
_STARTUP = 196_608


@dataclass
class Trap:
    """At one question of a transaction, do something."""

    of: bytes
    """What the transaction begins with: its first question, in a word."""
    at: int | Literal["commit"]
    when: When
    act: Callable[[int], None]
    """Given the backend's process id."""
    sprung: bool = False
    hit: tuple[bytes, ...] = ()
    """The questions of the transaction it stopped, up to the one it stopped at."""

    def wants(self, asked: list[bytes]) -> bool:
        """Whether the newest question of this transaction is the one."""
        if self.sprung or asked[0] != self.of:
            return False
        return is_commit(asked[-1]) if self.at == "commit" else len(asked) - 1 == self.at


def is_commit(question: bytes) -> bool:
    return question.upper().startswith(b"COMMIT")


class Link:
    """A socket in a folder, for `postgresql://…?host=FOLDER`, in front of the one in ``server``."""

    def __init__(self, server: Path, folder: Path) -> None:
        self._server = str(server / ".s.PGSQL.5432")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / ".s.PGSQL.5432"))
        self._listener.listen(64)
        self._closing = False
        self.trap: Trap | None = None
        self.questions: list[bytes] = []
        """Of the transaction that wrote last, from its first lock to its COMMIT: what each was, in a word."""
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> "Link":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(self._server)
            _Connection(self, client, server).run()
        except OSError:
            pass  # one of the two is gone, and the other has to be
        finally:
            client.close()
            server.close()


class _Connection:
    def __init__(self, link: Link, client: socket.socket, server: socket.socket) -> None:
        self.link, self.client, self.server = link, client, server
        self.backend = 0
        self.started = False
        self.writing = False
        self.asked: list[bytes] = []
        self.statement = b""
        self._from_client = self._from_server = b""

    def run(self) -> None:
        waiting = selectors.DefaultSelector()
        for side in (self.client, self.server):
            waiting.register(side, selectors.EVENT_READ)
        with waiting:
            self._relay(waiting)

    def _relay(self, waiting: selectors.BaseSelector) -> None:
        while True:
            ready = [key.fileobj for key, _ in waiting.select()]
            if self.server in ready:
                data = self.server.recv(65_536)
                if not data:
                    return
                self._listen(data)
                self.client.sendall(data)
            if self.client in ready:
                data = self.client.recv(65_536)
                if not data:
                    return
                self._from_client += data
                while (message := self._next()) is not None:
                    self._pass(message)

    def _next(self) -> bytes | None:
        """The client's next whole message."""
        at = 1 if self.started else 0
        if len(self._from_client) < at + 4:
            return None
        end = at + struct.unpack_from("!I", self._from_client, at)[0]
        if len(self._from_client) < end:
            return None
        message, self._from_client = self._from_client[:end], self._from_client[end:]
        if not self.started and struct.unpack_from("!I", message, 4)[0] == _STARTUP:
            self.started = True
        return message

    def _listen(self, data: bytes) -> None:
        """Learn the backend's process id from BackendKeyData."""
        if self.backend:
            return
        self._from_server += data
        at = 0
        while len(self._from_server) >= at + 5:
            kind, length = self._from_server[at : at + 1], struct.unpack_from("!I", self._from_server, at + 1)[0]
            if len(self._from_server) < at + 1 + length:
                return
            if kind == b"K":
                self.backend = struct.unpack_from("!I", self._from_server, at + 5)[0]
                return
            at += 1 + length

    def _answered(self) -> None:
        """Wait until the server has done it; the client will never hear."""
        answer = b""
        while chunk := self.server.recv(65_536):
            answer += chunk
            at = 0
            while len(answer) >= at + 5:
                # ReadyForQuery, or CopyInResponse, after which it is the client's turn.
                if answer[at : at + 1] in b"ZG":
                    return
                at += 1 + struct.unpack_from("!I", answer, at + 1)[0]

    def _pass(self, message: bytes) -> None:
        kind = message[:1]
        if kind in b"PQ":
            self.statement = message[5:].split(b"\0")[0 if kind == b"Q" else 1]
        if not self.started or kind not in _QUESTIONS:
            self.server.sendall(message)
            return
        word = b" ".join(self.statement.split()[:3])
        writes = b"FOR UPDATE" in self.statement or self.statement.startswith((b"INSERT", b"UPDATE"))
        if writes and not self.writing:
            self.writing, self.asked = True, []
            self.link.questions = []
        if not self.writing:
            self.server.sendall(message)
            return
        self.asked.append(word)
        self.link.questions.append(word)
        ends = word.upper().startswith((b"COMMIT", b"ROLLBACK"))
        self.writing = not ends
        trap = self.link.trap
        if trap is None or not trap.wants(self.asked):
            self.server.sendall(message)
            return
        trap.sprung, trap.hit = True, tuple(self.asked)
        if trap.when == "before":
            trap.act(self.backend)
            raise ConnectionError("the server was stopped before it was asked")
        self.server.sendall(message)
        if trap.when == "after":
            self._answered()
        trap.act(self.backend)
        raise ConnectionError("the server was stopped before it was heard")
