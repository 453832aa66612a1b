"""``GET /v1/bundle``: an evidence bundle as a tar stream, made while it is sent."""

import asyncio
import logging
import threading
from collections.abc import Generator
from typing import Annotated, Final, Literal

from backports import zstd
from fastapi import APIRouter, Query, Response
from sqlalchemy.exc import DBAPIError
from starlette.types import Receive, Scope, Send

from keyturn_protocol.api import ProblemCode
from keyturn_protocol.api_read import BUNDLE, TAR_TYPE, TAR_ZSTD_TYPE
from keyturn_protocol.canonical import fit_text
from keyturn_protocol.limits import TEXT_CHARS
from keyturn_protocol.tar import END, format_member
from keyturn_verifier.auth import Right
from keyturn_verifier.db.engine import reading
from keyturn_verifier.errors import OutcomeUnknown, VerifierError
from keyturn_verifier.export import File, bundle_files
from keyturn_verifier.problems import Refusal
from keyturn_verifier.routes.body import gone
from keyturn_verifier.routes.pages import Authorization, allow
from keyturn_verifier.service import Service

log = logging.getLogger(__name__)

CHUNK: Final = 256 * 1024


def router(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter()
    limits = service.config.limits
    slots = threading.BoundedSemaphore(limits.bundle_streams)

    @routes.get(BUNDLE)
    def bundle(
        authorization: Authorization = None,
        case: Annotated[str | None, Query(max_length=TEXT_CHARS, description="a note for the manifest")] = None,
        format: Annotated[Literal["tar", "tar.zst"], Query(description="compressed or not")] = "tar",
    ) -> Response:
        """A new evidence bundle: everything stored, and a leaf of the verifier's log that says it was exported.

        ``bundle.json`` comes last: a stream without it was cut.
        """
        with reading(service.engine) as connection:
            allow(service, connection, authorization, Right.BUNDLE)
        if case is not None and case != fit_text(case):
            raise Refusal(ProblemCode.BAD_REQUEST, "case: one line of text without control characters")
        if not slots.acquire(blocking=False):
            raise Refusal(ProblemCode.OVERLOADED, f"{limits.bundle_streams} bundles are being sent; ask again")
        files = bundle_files(service.config, service.engine, service.keys, case, service.clock)
        chunks = _chunks(files, compressed=format == "tar.zst")
        stream = _Stream(chunks, files, slots, limits.send_timeout_s)
        try:
            # The snapshot is opened here: what fails now is still answered with a problem.
            stream.first = next(chunks)
        except BaseException as error:
            stream.end()
            if isinstance(error, VerifierError):
                log.error("bundle: %s", error)
                raise Refusal(ProblemCode.OVERLOADED, "what is stored is damaged; see the server's log") from None
            raise
        stream.headers["content-type"] = TAR_ZSTD_TYPE if format == "tar.zst" else TAR_TYPE
        stream.headers["content-disposition"] = f'attachment; filename="evidence.{format}"'
        return stream

    return routes


def _chunks(files: Generator[File, None, None], *, compressed: bool) -> Generator[bytes, None, None]:
    """The stream in pieces of about :data:`CHUNK` bytes."""
    packer = zstd.ZstdCompressor(level=3) if compressed else None
    pieces: list[bytes] = []
    size = 0
    for part in _tar(files):
        data = part if packer is None else packer.compress(part)
        pieces.append(data)
        size += len(data)
        if size >= CHUNK:
            yield b"".join(pieces)
            pieces, size = [], 0
    yield b"".join(pieces) if packer is None else b"".join([*pieces, packer.flush()])


def _tar(files: Generator[File, None, None]) -> Generator[bytes, None, None]:
    for file in files:
        yield format_member(file.path, file.size)
        yield from file.chunks
        yield bytes(-file.size % 512)
    yield END


class _Stream(Response):
    """Sends the pieces as fast as the client takes them; a client that takes none for long is left."""

    first = b""

    def __init__(
        self,
        chunks: Generator[bytes, None, None],
        files: Generator[File, None, None],
        slots: threading.BoundedSemaphore,
        timeout_s: float,
    ) -> None:
        super().__init__(headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._chunks = chunks
        self._files = files
        self._slots = slots
        self._timeout_s = timeout_s
        self._ended = False

    def end(self) -> None:
        """Give the snapshot and the slot back, once."""
        if not self._ended:
            self._ended = True
            try:
                for made in (self._chunks, self._files):
                    made.close()
            finally:
                self._slots.release()

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        left = asyncio.ensure_future(gone(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            chunk: bytes | None = self.first
            while chunk is not None and not left.done():
                async with asyncio.timeout(self._timeout_s):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                chunk = await asyncio.to_thread(next, self._chunks, None)
            if chunk is None:
                await send({"type": "http.response.body", "body": b""})
        except (DBAPIError, OutcomeUnknown, VerifierError) as error:
            # Too late for another answer: without its end, the connection is closed and the bundle is none.
            log.error("bundle: cut in mid-stream: %s", error.orig if isinstance(error, DBAPIError) else error)
        finally:
            left.cancel()
            await asyncio.to_thread(self.end)
