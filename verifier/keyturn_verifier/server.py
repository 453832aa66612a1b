"""The HTTP server: uvicorn in one process, its socket, its signals."""

import asyncio
import gc
import logging
import resource
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from keyturn_protocol.api import ProblemCode
from keyturn_verifier import config, estranged, in_force, keyfiles, service, state
from keyturn_verifier.app import create_app
from keyturn_verifier.clock import Clock
from keyturn_verifier.db import durability
from keyturn_verifier.db.engine import reading
from keyturn_verifier.errors import VerifierError
from keyturn_verifier.problems import Refusal, answer

log = logging.getLogger(__name__)

DRAIN_S = 20
"""How long requests that are under way may take after SIGTERM."""
_TURNED_AWAY = 256
"""Connections over the limit that are still answered; beyond them there is only the end of the connection."""
_TURN_AWAY_S = 2
"""How long one of these may take to say something: an answer to what wasn't read yet can get lost."""
_AROUND_BYTES = 512 * 1024
_AROUND_FACTOR = 8
"""What a message may have around its content: a chunk of one byte has five bytes around it."""
_OTHER_FILES = 256
"""Open files that are no connections: databases, the log, the standard streams."""


@dataclass(frozen=True, slots=True)
class Tls:
    """A certificate with its chain, and its key: PEM files. Put new ones in place and restart to renew."""

    cert: Path
    key: Path


def serve(
    settings: config.Config, host: str, port: int, port_file: Path | None, clock: Clock, tls: Tls | None = None
) -> None:
    """Serve until SIGTERM or SIGINT, then answer what was taken and return.

    :raises VerifierError: the state directory is served already, the address is taken, or a certificate is no good.
    """
    settings = replace(
        settings, limits=replace(settings.limits, connections=allowed_connections(settings.limits.connections))
    )
    with state.serving(settings):
        keys = keyfiles.load(settings.state, settings.deployment)
        engine = state.open_database(settings, migrating=True)
        try:
            with reading(engine) as connection:
                for why in (
                    durability.caution(connection),
                    estranged.caution(connection, settings, keys),
                    in_force.caution(connection, clock()),
                ):
                    if why is not None:
                        log.warning("%s", why)
            with bind(host, port) as listener:
                # What was imported stays for good. A batch makes and drops many thousand values without cycles,
                # and looking through all of them for cycles took a third of its time.
                gc.freeze()
                gc.set_threshold(50_000, 20, 100)
                built = service.build(settings, engine, keys, clock)
                _Server(configure(built, tls), listener, port_file, built.watch.close).run_until_signal()
        finally:
            engine.dispose()


def allowed_connections(wanted: int) -> int:
    """How many connections this process may have; raises its limit of open files as far as it may."""
    others = _TURNED_AWAY + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted + others:
        soft = wanted + others if hard == resource.RLIM_INFINITY else min(wanted + others, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < wanted + others:
            allowed = max(soft - others, 64)
            if allowed < wanted // 2:
                log.warning("%d open files are allowed: at most %d connections, not %d", soft, allowed, wanted)
            return allowed
    return wanted


def configure(built: service.Service, tls: Tls | None = None) -> uvicorn.Config:
    """How uvicorn serves a verifier.

    :raises VerifierError: a certificate or key that can't be used.
    """
    made = uvicorn.Config(
        create_app(built),
        http=_protocol(built.config.limits),
        loop="uvloop",
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=DRAIN_S,
        ssl_certfile=None if tls is None else tls.cert,
        ssl_keyfile=None if tls is None else tls.key,
    )
    try:
        made.load()
    except (ssl.SSLError, OSError) as error:
        if tls is None:
            raise
        raise VerifierError(f"--tls-cert {tls.cert}, --tls-key {tls.key}: {error}") from None
    if made.ssl is not None:
        made.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    return made


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    :raises VerifierError: the address can't be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise VerifierError(f"cannot listen on {host} port {port}: {error.strerror}") from None


class _Server(uvicorn.Server):
    """Says when it is ready, and ends with 0 after a signal that it was asked to end with."""

    def __init__(
        self,
        settings: uvicorn.Config,
        listener: socket.socket,
        port_file: Path | None,
        draining: Callable[[], None],
    ) -> None:
        super().__init__(settings)
        self._draining = draining
        self._listener = listener
        self._port_file = port_file
        self._failed: VerifierError | None = None

    def run_until_signal(self) -> None:
        # uvicorn listens to these once its loop runs, drains on them, and then raises them again, for whoever was
        # listening before. Its own handler does both: one that comes before the loop isn't lost, one raised again
        # changes nothing.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle_exit)
        self.run(sockets=[self._listener])
        if self._failed is not None:
            raise self._failed

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.started:
            raise VerifierError("the server could not start")
        host, port = self._listener.getsockname()[:2]
        try:
            self._say_port(port)
        except OSError as error:
            self._failed = VerifierError(f"--port-file: {error}")
            self.should_exit = True
            # uvicorn doesn't come to its own when it ends this early.
            await self.shutdown(sockets=sockets)
            return
        shown = f"[{host}]" if ":" in host else host
        scheme = "http" if self.config.ssl is None else "https"
        print(f"keyturn-verifier: ready on {scheme}://{shown}:{port}", file=sys.stderr, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Whoever waits for news is answered now: the drain would wait for them.
        self._draining()
        await super().shutdown(sockets)

    def _say_port(self, port: int) -> None:
        if self._port_file is not None:
            temporary = self._port_file.with_name(self._port_file.name + ".new")
            temporary.write_text(f"{port}\n")
            temporary.replace(self._port_file)


def _protocol(limits: config.Limits) -> type[HttpToolsProtocol]:
    """uvicorn's protocol with limits that it lacks: connections, and time and size of a request around its content.

    A route that answers before it has read a body leaves the rest to this: what follows is thrown away, for so long.
    """

    class Protocol(HttpToolsProtocol):
        _in_head = True
        _in_body = False
        _head_bytes = 0
        _body_bytes = 0
        """Content, and what was sent around it: chunk sizes with their extensions, trailers."""
        _sent_bytes = 0
        _deadline: asyncio.TimerHandle | None = None
        _over = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            over = len(self.connections) - limits.connections
            if over > _TURNED_AWAY:
                transport.abort()
                return
            self._over = over > 0
            self._by(_TURN_AWAY_S if self._over else limits.head_timeout_s)

        def data_received(self, data: bytes) -> None:
            if self._over:
                self._refuse(Refusal(ProblemCode.OVERLOADED, "this server has as many connections as it may have"))
                return
            super().data_received(data)
            if self._in_head:
                self._head_bytes += len(data)
                if self._head_bytes > limits.head_bytes:
                    self.transport.abort()
                elif self._deadline is None:
                    self._by(limits.head_timeout_s)
            elif self._in_body:
                self._sent_bytes += len(data)
                if self._sent_bytes > _AROUND_BYTES + _AROUND_FACTOR * self._body_bytes:
                    self.transport.abort()

        def on_message_begin(self) -> None:
            self._in_head, self._head_bytes = True, 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._in_head = False
            self._in_body, self._body_bytes, self._sent_bytes = True, 0, 0
            # A route that reads the body gives up first, and says so.
            self._by(limits.body_timeout_s + _TURN_AWAY_S)
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._body_bytes += len(body)
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._in_body = False
            self._on_time()
            super().on_message_complete()

        def send_400_response(self, msg: str) -> None:
            # What is no HTTP never reaches the application: the same shape of answer, from here.
            self._refuse(Refusal(ProblemCode.BAD_REQUEST, msg))

        def _refuse(self, refusal: Refusal) -> None:
            if self.transport.is_closing():
                return
            status, headers, body = answer(refusal)
            headers |= {"content-length": str(len(body)), "connection": "close"}
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{lines}\r\n"
            self.transport.write(head.encode() + body)
            self.transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            self._on_time()
            super().connection_lost(exc)

        def _by(self, seconds: float) -> None:
            """From now on this connection has so long to go on."""
            self._on_time()
            self._deadline = self.loop.call_later(seconds, self.transport.abort)

        def _on_time(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return Protocol
