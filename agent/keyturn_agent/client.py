"""The verifier over HTTP: urllib3, with a limit on everything. Nothing here decides what an answer means."""

import ssl
from typing import Final

import urllib3
from urllib3.exceptions import HTTPError

from keyturn_agent import __version__
from keyturn_agent.errors import UnreachableError
from keyturn_agent.ports import Answer
from keyturn_protocol.api import JOIN, LOG, SEGMENT_TYPE, SEGMENTS, head_path
from keyturn_protocol.ids import parse_origin
from keyturn_protocol.limits import NOTE_BYTES

_ANSWER_BYTES: Final = 4 * NOTE_BYTES
"""A problem that quotes a note, escaped as JSON."""
_CHUNK: Final = 16_384


class HttpVerifier:
    """A :class:`~keyturn_agent.ports.Verifier` at a base URL.

    TLS is verified against the system's certificates; redirects are answers like any other and not followed.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._pool = urllib3.PoolManager(
            num_pools=1,
            maxsize=1,
            timeout=urllib3.Timeout(connect=min(timeout_s, 10), read=timeout_s),
            retries=False,
            cert_reqs=ssl.CERT_REQUIRED,
            headers={"User-Agent": f"keyturn-agent/{__version__}", "Accept-Encoding": "identity"},
        )

    def join(self, request: bytes) -> Answer:
        return self._exchange("POST", JOIN, request, "application/json")

    def send_segment(self, frame: bytes) -> Answer:
        return self._exchange("POST", SEGMENTS, frame, SEGMENT_TYPE)

    def head(self, origin: str) -> Answer:
        name = parse_origin(origin)
        return self._exchange("GET", head_path(name.node_id, name.incarnation))

    def log_checkpoint(self) -> Answer:
        return self._exchange("GET", f"{LOG}/checkpoint")

    def close(self) -> None:
        self._pool.clear()

    def _exchange(self, method: str, path: str, body: bytes | None = None, kind: str | None = None) -> Answer:
        headers = dict(self._pool.headers)
        if kind is not None:
            headers["Content-Type"] = kind
        try:
            response = self._pool.request(
                method, self._url + path, body=body, headers=headers, redirect=False, preload_content=False
            )
            try:
                data = b""
                while chunk := response.read(_CHUNK, decode_content=False):
                    data += chunk
                    if len(data) > _ANSWER_BYTES:
                        raise UnreachableError("answer_too_large", f"{path}: an answer over {_ANSWER_BYTES} bytes")
            except UnreachableError:
                response.close()
                raise
            response.release_conn()
        except (HTTPError, OSError) as error:
            # The request is not quoted: a join carries the token.
            raise UnreachableError("unreachable", f"{method} {self._url}{path}: {_reason(error)}") from None
        return Answer(
            response.status,
            response.headers.get("Content-Type", ""),
            _seconds(response.headers.get("Retry-After")),
            data,
        )


def _seconds(text: str | None) -> int | None:
    """``Retry-After`` in seconds; its other form, a date, is not used by the verifier."""
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 10 else None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:400]
