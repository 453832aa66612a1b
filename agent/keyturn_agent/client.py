"""The verifier over HTTP: urllib3, with a limit on everything. Nothing here decides what an answer means."""

import os
import time
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, Final

import urllib3
from urllib3.exceptions import HTTPError

from keyturn_agent import __version__
from keyturn_agent.errors import UnreachableError
from keyturn_agent.ports import Answer
from keyturn_agent.route import proxy_for, trust_context
from keyturn_protocol.api import JOIN, LOG, RECEIPT_HEADER, SEGMENT_TYPE, SEGMENTS, STATEMENTS, head_path
from keyturn_protocol.api_switch import AUTHORITY, LEASES, LeaseRequest, permit_path
from keyturn_protocol.canonical import encode
from keyturn_protocol.ids import parse_origin
from keyturn_protocol.limits import NOTE_BYTES, PERMIT_BUNDLE_BYTES

_ANSWER_BYTES: Final = 4 * NOTE_BYTES
"""A problem that quotes a note, escaped as JSON."""
_CHUNK: Final = 16_384
_EXCHANGES: Final = 4
"""An answer may take this many time-outs as a whole."""


class HttpVerifier:
    """A :class:`~keyturn_agent.ports.Verifier` at a base URL.

    TLS is always verified; redirects are answers like any other and not followed.

    :param timeout_s: of one exchange: to connect (at most 10), and for each wait on the socket after that.
    :param proxy: ``upload.proxy``, see :func:`~keyturn_agent.route.proxy_for`.
    :param ca_file: PEM certificates in place of the system's.
    """

    def __init__(self, url: str, timeout_s: float, proxy: str | None = None, ca_file: str | None = None) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._headers = {"User-Agent": f"keyturn-agent/{__version__}", "Accept-Encoding": "identity"}
        context = trust_context(ca_file)
        way = proxy_for(url, proxy, os.environ)
        options: dict[str, Any] = {
            "num_pools": 1,
            "maxsize": 1,
            "timeout": urllib3.Timeout(connect=min(timeout_s, 10), read=timeout_s),
            "retries": False,
            "ssl_context": context,
        }
        self._pool: urllib3.PoolManager
        if way is None:
            self._pool = urllib3.PoolManager(**options)
        else:
            credentials = {} if way.credentials is None else urllib3.make_headers(proxy_basic_auth=way.credentials)
            self._pool = urllib3.ProxyManager(
                way.url, proxy_headers=credentials, proxy_ssl_context=trust_context(ca_file), **options
            )

    def join(self, request: bytes) -> Answer:
        return self._exchange("POST", JOIN, request, "application/json")

    def state(self, statement: bytes) -> Answer:
        return self._exchange("POST", STATEMENTS, statement, "application/json")

    def send_segment(self, frame: bytes, receipt: bytes | None = None) -> Answer:
        shown = {} if receipt is None else {RECEIPT_HEADER: b64encode(receipt).decode()}
        return self._exchange("POST", SEGMENTS, frame, SEGMENT_TYPE, shown)

    def head(self, origin: str) -> Answer:
        name = parse_origin(origin)
        return self._exchange("GET", head_path(name.node_id, name.incarnation))

    def log_checkpoint(self) -> Answer:
        return self._exchange("GET", f"{LOG}/checkpoint")

    def authority(self) -> Answer:
        return self.permit(None, None, 0)

    def permit(self, run: str | None, after: int | None, wait_s: int) -> Answer:
        path = AUTHORITY if run is None else permit_path(run)
        if after is not None:
            path += f"?after={after}&wait_s={wait_s}"
        return self._exchange("GET", path, most=PERMIT_BUNDLE_BYTES, more_s=wait_s)

    def lease(self, origin: str, seq: int) -> Answer:
        return self._exchange("POST", LEASES, encode(LeaseRequest(origin=origin, seq=seq)), "application/json")

    def close(self) -> None:
        self._pool.clear()

    def _exchange(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        kind: str | None = None,
        more: Mapping[str, str] | None = None,
        *,
        most: int = _ANSWER_BYTES,
        more_s: int = 0,
    ) -> Answer:
        """One exchange. ``most``: bytes of the answer; ``more_s``: how much longer it may be waited for."""
        headers = {**self._headers, **(more or {})}
        if kind is not None:
            headers["Content-Type"] = kind
        try:
            timeout = urllib3.Timeout(connect=min(self._timeout_s, 10), read=self._timeout_s + more_s)
            response = self._pool.request(
                method,
                self._url + path,
                body=body,
                headers=headers,
                redirect=False,
                preload_content=False,
                timeout=timeout,
            )
            try:
                data = b""
                # A server that sends a byte now and then would never run into the time-out of a single read.
                deadline = time.monotonic() + _EXCHANGES * self._timeout_s + more_s
                while chunk := response.read1(_CHUNK, decode_content=False):
                    data += chunk
                    if time.monotonic() > deadline:
                        raise UnreachableError("unreachable", f"{path}: the answer takes too long")
                    if len(data) > most:
                        raise UnreachableError("answer_too_large", f"{path}: an answer over {most} bytes")
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
