"""Errors of the verifier outside of HTTP; for HTTP see :mod:`keyturn_verifier.problems`."""


class VerifierError(Exception):
    """Something that an operator must put right: the message says what, ``hint`` how."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(VerifierError):
    """The command line asks for something that can't be."""


class OutcomeUnknown(Exception):
    """COMMIT failed in a way that leaves open whether the transaction is durable."""


class StaleHead(Exception):
    """A log moved between the decision and the transaction: decide again from what is stored."""
