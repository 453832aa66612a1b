"""What can go wrong in the agent. Types say what to do about it, codes and messages say what it was."""

from typing import Final

LOST: Final = "restore it from a backup; without one, enrol this host anew in another folder, and keep this one"
"""The hint about a file that can't be made again."""


class AgentError(Exception):
    """Root of the agent's own errors.

    :param code: stable, for programs.
    :param hint: what the reader can do about it, or None.
    """

    def __init__(self, code: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


class UsageError(AgentError):
    """The caller gave something that can't be used: a flag, a recording, a trust file.

    The service that ends with one is not started again, so that nothing is one that may pass by itself.
    """


class RefusedError(AgentError):
    """The verifier, or this state folder, says no; trying again changes nothing."""


class UnreachableError(AgentError):
    """The network or the verifier didn't answer; trying again later may help."""


class UnavailableError(AgentError):
    """An address or a path that this host has to listen on can't be had now; another process may have it, or no
    interface yet. It may be there later.
    """


class StoreError(AgentError):
    """The disk didn't do what was asked. The process has to end: only a fresh start knows what is on disk."""


class NoSpaceError(StoreError):
    """The disk is full. Nothing is wrong with what is on it; there may be room later."""


class DamagedError(StoreError):
    """Bytes under a signed head are not what was signed: this log can't go on."""
