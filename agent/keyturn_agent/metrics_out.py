"""Where metrics go: an HTTP server on an address of this host, or a file for node_exporter's textfile collector."""

import http.server
import logging
import socket
import threading
from pathlib import Path
from typing import Final

from keyturn_agent import files
from keyturn_agent.config import Config
from keyturn_agent.errors import UnavailableError
from keyturn_agent.settings import listen_address

logger = logging.getLogger(__name__)

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_TIMEOUT_S: Final = 10


class Outlet:
    """The newest text, served and written as the configuration says; nothing by default."""

    def __init__(self, config: Config) -> None:
        self._text = b""
        self._file = None if config.metrics_file is None else Path(config.metrics_file)
        self._server = None if config.metrics_listen is None else _serve(self, config.metrics_listen)

    @property
    def wanted(self) -> bool:
        return self._file is not None or self._server is not None

    @property
    def port(self) -> int | None:
        return None if self._server is None else int(self._server.server_address[1])

    @property
    def text(self) -> bytes:
        return self._text

    def put(self, text: str) -> None:
        """Let this be the newest. A file that can't be written is reported, nothing depends on it."""
        self._text = text.encode()
        if self._file is None:
            return
        try:
            files.publish(self._file, self._text)
            # node_exporter is another user.
            self._file.chmod(0o644)
        except OSError as error:
            logger.warning("writing metrics: %s", error)

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    outlet: Outlet


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    timeout = _TIMEOUT_S
    server_version = "keyturn-agent"
    sys_version = ""

    def do_GET(self) -> None:
        found = self.path.partition("?")[0] == "/metrics"
        body = self.server.outlet.text if found else b"see /metrics\n"
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", CONTENT_TYPE if found else "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        logger.debug(format, *args)


def _serve(outlet: Outlet, address: str) -> _Server:
    host, port = listen_address(address)

    class Server(_Server):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    try:
        server = Server((host, port), _Handler)
    except OSError as error:
        raise UnavailableError("no_address", f"metrics.listen: {address}: {error}") from error
    server.outlet = outlet
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server
