"""The gate's socket: who may speak, how much, and for how long.

Only root and the agent's account are heard, by what the kernel says of the peer (SO_PEERCRED). A line that is too
long, or a peer that is too slow, is cut; neither holds anything up.
"""

import logging
import os
import select
import selectors
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from keyturn_gate.errors import GateError
from keyturn_gate.gate import Gate, Opening
from keyturn_gate.messages import ANSWER_BYTES, LINE_BYTES, answer, parse, refusal

logger = logging.getLogger(__name__)

_PEERS: Final = 32
"""Of one user: an agent that opens more than it closes keeps root in."""
_IDLE_S: Final = 30.0
_SOON_S: Final = 0.2
_WHILE_S: Final = 1.0
"""Until the clock is looked at again: while something is going on, and while nothing is."""


class _Peer:
    def __init__(self, connection: socket.socket, uid: int, now: float) -> None:
        self.socket = connection
        self.uid = uid
        self.heard = now
        self.received = b""
        self.to_send = b""
        self.opening: Opening | None = None


class Server:
    """Serves one listening socket until it is told to stop.

    :param uids: who is heard, besides root.
    """

    def __init__(self, listener: socket.socket, gate: Gate, uids: frozenset[int]) -> None:
        self._listener = listener
        self._gate = gate
        self._uids = uids | {0}
        self._peers: dict[int, _Peer] = {}
        self._selector = selectors.DefaultSelector()
        self._wake_out, self._wake_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._stopping = False
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._wake_out, selectors.EVENT_READ)

    def wake(self) -> None:
        """Look at what changed; safe in a signal handler and in another thread."""
        try:
            os.write(self._wake_in, b"\0")
        except BlockingIOError:
            return

    def stop(self) -> None:
        """End the loop; safe in a signal handler."""
        self._stopping = True
        self.wake()

    def serve(self, alive: Callable[[], None]) -> None:
        """The loop.

        :param alive: called each time it goes round.
        """
        while not self._stopping:
            alive()
            try:
                busy = self._gate.tick()
            except OSError as error:
                # What is due stays due.
                logger.error("%s", error)
                busy = True
            self._answer_openings()
            busy = busy or any(peer.opening is not None for peer in self._peers.values())
            for key, _ in self._selector.select(_SOON_S if busy else _WHILE_S):
                self._ready(key)
            self._cut_slow()
        for peer in list(self._peers.values()):
            self._close(peer)

    def _ready(self, key: selectors.SelectorKey) -> None:
        if key.fileobj is self._listener:
            self._accept()
        elif key.fileobj == self._wake_out:
            try:
                os.read(self._wake_out, 4096)
            except BlockingIOError:
                return
        elif (peer := self._peers.get(key.fd)) is not None:
            self._serve(peer)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        uid = peer_uid(connection)
        if uid not in self._uids:
            logger.warning("refused a connection by user %d", uid)
            _send_and_close(connection, refusal(GateError("not_you", "only root and the agent's account are heard")))
            return
        if sum(peer.uid == uid for peer in self._peers.values()) >= _PEERS:
            _send_and_close(connection, refusal(GateError("busy", "too many connections")))
            return
        connection.setblocking(False)
        peer = _Peer(connection, uid, time.monotonic())
        self._peers[connection.fileno()] = peer
        self._selector.register(connection, selectors.EVENT_READ)

    def _serve(self, peer: _Peer) -> None:
        try:
            if peer.to_send:
                peer.to_send = peer.to_send[peer.socket.send(peer.to_send) :]
            elif data := peer.socket.recv(65_536):
                peer.received += data
            else:
                self._close(peer)
                return
        except BlockingIOError:
            return
        except OSError:
            self._close(peer)
            return
        peer.heard = time.monotonic()
        self._obey(peer)

    def _obey(self, peer: _Peer) -> None:
        """Do the next line, if it is whole and the one before is answered."""
        while not peer.to_send and peer.opening is None:
            line, end, rest = peer.received.partition(b"\n")
            if not end:
                if len(line) > LINE_BYTES:
                    self._close(peer)
                    return
                break
            peer.received = rest
            self._do(peer, line)
        self._watch(peer)

    def _do(self, peer: _Peer, line: bytes) -> None:
        try:
            if len(line) > LINE_BYTES:
                raise GateError("bad_request", f"a request over {LINE_BYTES} bytes")
            done = self._gate.do(parse(line), peer.uid)
        except GateError as error:
            self._say(peer, refusal(error))
            return
        except OSError as error:
            self._say(peer, refusal(GateError("failed", str(error))))
            return
        match done:
            case None:
                self._say(peer, answer())
            case Opening():
                peer.opening = done
            case _:
                self._say(peer, msgspec.json.encode(done) + b"\n")

    def _answer_openings(self) -> None:
        for peer in list(self._peers.values()):
            if peer.opening is None:
                continue
            try:
                if not self._gate.opened(peer.opening):
                    continue
                data = answer()
            except GateError as error:
                data = refusal(error)
            peer.opening = None
            self._say(peer, data)
            self._obey(peer)

    def _say(self, peer: _Peer, data: bytes) -> None:
        peer.to_send += data
        self._watch(peer)

    def _watch(self, peer: _Peer) -> None:
        if peer.socket.fileno() >= 0:
            self._selector.modify(peer.socket, selectors.EVENT_WRITE if peer.to_send else selectors.EVENT_READ)

    def _cut_slow(self) -> None:
        now = time.monotonic()
        for peer in list(self._peers.values()):
            if peer.opening is None and now - peer.heard > _IDLE_S:
                self._close(peer)

    def _close(self, peer: _Peer) -> None:
        self._peers.pop(peer.socket.fileno(), None)
        self._selector.unregister(peer.socket)
        peer.socket.close()


def peer_uid(connection: socket.socket) -> int:
    """The user at the other end, as the kernel has it."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", data)[1]
    return uid


def listen(path: Path, gid: int | None) -> socket.socket:
    """A socket of our own, where no service manager hands one over."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
        else:
            raise GateError("in_use", f"another gate serves {path}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    old = os.umask(0o177 if gid is None else 0o117)
    try:
        listener.bind(str(path))
    finally:
        os.umask(old)
    if gid is not None:
        os.chown(path, -1, gid)
    listener.listen(_PEERS)
    return listener


def _send_and_close(connection: socket.socket, data: bytes) -> None:
    with connection:
        try:
            connection.setblocking(False)
            connection.send(data)
        except OSError:
            return


def ask(path: Path, request: bytes, seconds: float) -> bytes:
    """Send one line to a gate and read the one that answers it.

    :raises GateError: ``no_gate``.
    """
    deadline = time.monotonic() + seconds
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(seconds)
        try:
            connection.connect(str(path))
            connection.sendall(request + b"\n")
            data = b""
            while not data.endswith(b"\n"):
                select.select([connection], [], [], max(0, deadline - time.monotonic()))
                part = connection.recv(65_536)
                data += part
                if not part or len(data) > ANSWER_BYTES or time.monotonic() > deadline:
                    raise GateError("no_gate", f"no answer at {path}")
        except OSError as error:
            raise GateError("no_gate", f"no gate at {path}: {error}") from None
    return data
