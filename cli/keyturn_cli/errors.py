"""What a command ends with when it can't do what it was asked for."""

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of every command."""

    FINE = 0
    REJECTED = 1
    """The verifier refused, or evidence contradicts evidence."""
    USAGE = 2
    UNDECIDED = 3
    """Could not decide: something is missing or out of reach."""


class CliError(Exception):
    """The message says what is wrong, with what was expected and got; the hint what to try."""

    def __init__(self, message: str, *, exit: Exit, hint: str | None = None) -> None:
        super().__init__(message)
        self.exit = exit
        self.hint = hint
