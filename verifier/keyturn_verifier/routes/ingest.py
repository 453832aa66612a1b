"""``POST /v1/segments``: the one asynchronous write route, plain ASGI. Nothing big is decompressed on the event
loop, and nothing verified.
"""

from typing import Final

from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from keyturn_protocol.api import RECEIPT_HEADER, SEGMENT_TYPE, ProblemCode
from keyturn_protocol.limits import SEGMENT_BYTES, UPLOAD_BYTES
from keyturn_verifier.problems import Refusal
from keyturn_verifier.routes.body import content_length, read_body
from keyturn_verifier.service import Service

_SHOWN: Final = RECEIPT_HEADER.lower().encode()
_RECEIPT_HEADERS: Final = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]


class Segments:
    """The endpoint."""

    def __init__(self, service: Service) -> None:
        self._intake = service.ingest.intake
        self._metrics = service.metrics
        self._timeout_s = service.config.limits.body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            raise HTTPException(405, "segments are sent with POST", {"allow": "POST"})
        headers = dict(scope["headers"])
        plain = _is_plain(headers)
        cap = SEGMENT_BYTES if plain else UPLOAD_BYTES
        content_length(headers, cap)
        body = await read_body(receive, cap, self._timeout_s, self._intake.budget)
        size, answer = len(body), self._intake.submit(body, plain=plain, shown=headers.get(_SHOWN))
        del body  # what is refused must not be held while its client waits to be told
        receipt = await answer
        self._metrics.receipt(size)
        start = [*_RECEIPT_HEADERS, (b"content-length", b"%d" % len(receipt))]
        await send({"type": "http.response.start", "status": 200, "headers": start})
        await send({"type": "http.response.body", "body": receipt})


def _is_plain(headers: dict[bytes, bytes]) -> bool:
    """Whether the body is a bare segment; refuses what is neither that nor a compressed one."""
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise Refusal(ProblemCode.UNSUPPORTED_TYPE, "no Content-Encoding: compression is a part of the type")
    if kind == SEGMENT_TYPE.encode():
        return False
    if kind == b"text/plain":
        return True
    raise Refusal(ProblemCode.UNSUPPORTED_TYPE, f"a segment is {SEGMENT_TYPE} or text/plain")
