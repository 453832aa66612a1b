"""Reading a request's body within a cap and a time."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from keyturn_protocol.api import ProblemCode
from keyturn_verifier.budget import Budget
from keyturn_verifier.problems import Refusal
from keyturn_verifier.service import Service

_SMALL_BYTES: Final = 64 * 1024
"""Compressed: a quarter of an hour of an 8-GPU host or more."""


def content_length(headers: Mapping[bytes, bytes], cap: int) -> None:
    """Refuse a body that says it is too long, before it is read."""
    text = headers.get(b"content-length")
    if text is not None and (not text.isdigit() or len(text) > 15 or int(text) > cap):
        raise _too_large(cap)


def body_of(service: Service, cap: int) -> Callable[[Request], AsyncIterator[bytes]]:
    """A dependency: the body of a request, within a cap, a time and the budget of all bodies.

    Its bytes are in the budget until the request is answered: a body that was read may wait long for a thread, and any
    number of clients send some.
    """
    timeout_s, budget = service.config.limits.body_timeout_s, service.ingest.intake.budget

    async def body(request: Request) -> AsyncIterator[bytes]:
        content_length(dict(request.scope["headers"]), cap)
        raw = await read_body(request.receive, cap, timeout_s, budget)
        size = len(raw)
        try:
            yield raw
        finally:
            budget.give(size)

    return body


async def read_body(receive: Receive, cap: int, timeout_s: float, budget: Budget) -> bytes:
    """The whole body. Its bytes are in ``budget`` when it is returned, and the caller's to give back.

    :raises Refusal: ``too_large``, ``timeout`` for a client that is too slow, ``overloaded``.
    """
    taken = 0

    def take(count: int) -> None:
        nonlocal taken
        budget.take(count, big=taken + count > _SMALL_BYTES)
        taken += count

    try:
        return await _read(receive, cap, timeout_s, take)
    except BaseException:
        budget.give(taken)
        raise


async def _read(receive: Receive, cap: int, timeout_s: float, take: Callable[[int], None]) -> bytes:
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunk: bytes = message.get("body", b"")
                size += len(chunk)
                if size > cap:
                    raise _too_large(cap)
                take(len(chunk))
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return b"".join(chunks) if len(chunks) > 1 else chunk
    except TimeoutError:
        raise Refusal(ProblemCode.TIMEOUT, f"the request's body took longer than {timeout_s} s") from None


async def gone(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _too_large(cap: int) -> Refusal:
    return Refusal(ProblemCode.TOO_LARGE, f"the body is over {cap} bytes")
