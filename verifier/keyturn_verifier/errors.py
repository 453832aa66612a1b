"""Errors of the verifier outside of HTTP; for HTTP see :mod:`keyturn_verifier.problems`."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import msgspec
from backports import zstd

from keyturn_protocol.errors import ProtocolError

P = ParamSpec("P")
T = TypeVar("T")


class VerifierError(Exception):
    """Something that an operator must put right: the message says what, ``hint`` how."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class DamagedError(VerifierError):
    """What is stored contradicts itself: the request waits, an operator has to look."""

    def __init__(self, message: str) -> None:
        super().__init__(f"what is stored is damaged: {message}", hint="keyturn-verifier check names what differs")


class UsageError(VerifierError):
    """The command line asks for something that can't be."""


class OutcomeUnknown(Exception):
    """COMMIT failed in a way that leaves open whether the transaction is durable."""


class StaleHead(Exception):
    """A log moved between the decision and the transaction: decide again from what is stored."""


def stored(read: Callable[P, T]) -> Callable[P, T]:
    """For functions that are given nothing but what was checked, and the database: what can't be parsed there, or names
    what isn't there, is damage. It is nobody's request, and no reason for a node to leave its log.

    :raises DamagedError: from the function returned.
    """

    @wraps(read)
    def reading(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(*args, **kwargs)
        except (ProtocolError, LookupError, ValueError, TypeError, msgspec.MsgspecError, zstd.ZstdError) as error:
            raise DamagedError(f"{type(error).__name__}: {error}") from error

    return reading
