"""The only map from errors to HTTP: RFC 9457 problem+json with the codes of :mod:`keyturn_protocol.api`."""

import logging
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from keyturn_protocol.api import PROBLEM_TYPE, STATUS, ProblemCode, problem
from keyturn_protocol.canonical import encode_record
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_verifier.errors import DamagedError, OutcomeUnknown
from keyturn_verifier.metrics import Metrics
from keyturn_verifier.patterns import IN_WORDS

log = logging.getLogger(__name__)

RETRY_AFTER_S: Final = 2
_SHOWN: Final = 80
"""Characters of a wrong value."""
_AGAIN: Final = frozenset({ProblemCode.BUSY, ProblemCode.WAITING, ProblemCode.OVERLOADED, ProblemCode.UNKNOWN_OUTCOME})
_CLOSING: Final = frozenset({ProblemCode.TOO_LARGE, ProblemCode.TIMEOUT, ProblemCode.INTERNAL})
"""The connection isn't used again: the rest of the body isn't read, or uvicorn closes it after an error."""
_STATUS_CODES: Final = {
    400: ProblemCode.BAD_REQUEST,
    401: ProblemCode.UNAUTHORIZED,
    403: ProblemCode.FORBIDDEN,
    404: ProblemCode.NOT_FOUND,
    405: ProblemCode.METHOD_NOT_ALLOWED,
    413: ProblemCode.TOO_LARGE,
    415: ProblemCode.UNSUPPORTED_TYPE,
}


class Refusal(Exception):
    """A request is refused with a code and a sentence for a person.

    :param checkpoint: with ``behind``: the known head as a cosigned note.
    :param retry_after_s: with a code that asks to try again: after how long, if that is known.
    """

    def __init__(
        self, code: ProblemCode, detail: str, *, checkpoint: bytes | None = None, retry_after_s: int = RETRY_AFTER_S
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.checkpoint = checkpoint
        self.retry_after_s = retry_after_s


def refusal_of(error: BaseException) -> Refusal:
    """What a client is told about an error. What is not known here is ``internal`` and says nothing of itself."""
    match error:
        case Refusal():
            return error
        case OutcomeUnknown():
            return Refusal(
                ProblemCode.UNKNOWN_OUTCOME, "the database did not say whether this was stored; send it again"
            )
        case DamagedError():
            log.error("%s", error)
            return Refusal(
                ProblemCode.OVERLOADED, "what is stored is damaged, its operator has to look; nothing was stored"
            )
        case DBAPIError() | PoolTimeout():
            log.error("database: %s", error.orig if isinstance(error, DBAPIError) else error)
            return Refusal(ProblemCode.OVERLOADED, "the database is not available; nothing was stored")
        case ProtocolError(code=Code.TOO_LARGE):
            return Refusal(ProblemCode.TOO_LARGE, str(error))
        case ProtocolError():
            return Refusal(ProblemCode.BAD_REQUEST, str(error))
        case ClientDisconnect():
            # Nobody reads this answer. As an error that nobody caught it would be a trace in the log for each.
            return Refusal(ProblemCode.BAD_REQUEST, "the client left before the end of its request")
        case _:
            # uvicorn logs it, with its trace, when the framework raises it again after the answer.
            return Refusal(ProblemCode.INTERNAL, "an error of the verifier; its operator finds it in the server's log")


def answer(refusal: Refusal) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body."""
    headers = {"content-type": PROBLEM_TYPE, "cache-control": "no-store"}
    if refusal.code in _AGAIN:
        headers["retry-after"] = str(refusal.retry_after_s)
    if refusal.code in _CLOSING:
        headers["connection"] = "close"
    if refusal.code is ProblemCode.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    checkpoint = None if refusal.checkpoint is None else refusal.checkpoint.decode()
    body = problem(refusal.code, refusal.detail, checkpoint)
    return STATUS[refusal.code], headers, encode_record(body)


def response(refusal: Refusal, more: Mapping[str, str] | None = None) -> Response:
    """The same as a response of the web framework."""
    status, headers, body = answer(refusal)
    return Response(body, status, {**(more or {}), **headers})


def _invalid(first: Mapping[str, Any]) -> str:
    """What is wrong with a parameter, in the words of whoever made its pattern where that isn't matched."""
    where = ".".join(str(part) for part in first["loc"])[:200]
    expected = IN_WORDS.get(first.get("ctx", {}).get("pattern"))
    if expected is None:
        return f"{where}: {first['msg']}"
    return f"{where}: must be {expected} (got {ascii(first['input'])[:_SHOWN]})"


def install(app: FastAPI, metrics: Metrics) -> None:
    """Route every error of ``app`` through :func:`refusal_of`, and count it.

    The handlers are asynchronous, though they wait for nothing: the framework would give each refusal a thread, and
    under overload there are hundreds at once.
    """

    async def known(_request: Request, error: Exception) -> Response:
        return refused(refusal_of(error))

    def refused(refusal: Refusal, more: Mapping[str, str] | None = None) -> Response:
        metrics.refused(refusal.code)
        return response(refusal, more)

    async def http(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            return await known(request, error)
        code = _STATUS_CODES.get(error.status_code, ProblemCode.BAD_REQUEST)
        return refused(Refusal(code, f"{request.method} {request.url.path[:200]}: {error.detail}"), error.headers)

    async def invalid(request: Request, error: Exception) -> Response:
        if not isinstance(error, RequestValidationError):
            return await known(request, error)
        return refused(Refusal(ProblemCode.BAD_REQUEST, _invalid(error.errors()[0])))

    for kind in (
        Refusal,
        DamagedError,
        ProtocolError,
        DBAPIError,
        PoolTimeout,
        OutcomeUnknown,
        ClientDisconnect,
        Exception,
    ):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
