"""The one root of everything that the protocol refuses, with a stable code for each reason.

A parser lets no other exception escape, whatever bytes it is given.
"""

from enum import StrEnum


class Code(StrEnum):
    """Why bytes, a signature or a proof were refused. Codes are stable; messages are not."""

    NOT_CANONICAL = "not_canonical"
    """JSON that differs from its canonical re-encoding, or doesn't have the expected shape."""
    TOO_LARGE = "too_large"
    """Over one of the caps in :mod:`keyturn_protocol.limits`."""
    BAD_KEY = "bad_key"
    """A public key that is malformed, of low order or not canonically encoded."""
    BAD_SIGNATURE = "bad_signature"
    BAD_NOTE = "bad_note"
    BAD_CHECKPOINT = "bad_checkpoint"
    UNKNOWN_KEY = "unknown_key"
    """A note without a signature by any key that was asked for."""
    BAD_PROOF = "bad_proof"
    BAD_IDENTIFIER = "bad_identifier"
    BAD_ENTRY = "bad_entry"
    """Canonical, but breaks a rule of its entry type."""
    BAD_SEGMENT = "bad_segment"
    BROKEN_CHAIN = "broken_chain"
    """An entry that doesn't follow from the one before it."""
    WRONG_ROOT = "wrong_root"
    """Entries that don't hash to the root that was signed for them."""
    BAD_TILE = "bad_tile"
    BAD_CHIP_TABLE = "bad_chip_table"
    BAD_BUNDLE = "bad_bundle"
    BAD_TRUST = "bad_trust"
    BAD_SSHSIG = "bad_sshsig"
    """Not an SSH signature as it is written here, or one in another namespace."""
    BAD_STATEMENT = "bad_statement"
    """Not a signed statement, or one that breaks a rule of its kind."""
    BAD_ROOT = "bad_root"
    BAD_POLICY = "bad_policy"
    BAD_LEASE = "bad_lease"
    """Not a lease as it is written here, or one that breaks a rule."""
    BAD_PERMIT = "bad_permit"
    """A permit bundle that isn't whole, or less than one that was seen before."""
    REFUSED = "refused"
    """A statement of good form that the start switch doesn't take; the reason has a code of its own."""


class ProtocolError(Exception):
    """Something was refused: ``code`` for programs, the message for people.

    :param expected: what the format asks for, as short text.
    :param got: what was there instead, shortened for display.
    """

    def __init__(self, code: Code, message: str, *, expected: object = None, got: object = None) -> None:
        self.code = code
        self.expected = None if expected is None else _short(expected)
        self.got = None if got is None else _short(got)
        message = _printable(message, 500)
        parts = []
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        if self.got is not None:
            parts.append(f"got {self.got}")
        super().__init__(f"{message} ({', '.join(parts)})" if parts else message)

    def __reduce__(self) -> tuple[object, ...]:
        # Keeps the error picklable across the processes of a parallel audit.
        return (_rebuild, (self.code, str(self), self.expected, self.got))


def bad_entry(message: str, *, expected: object = None, got: object = None) -> ProtocolError:
    """An entry that breaks a rule of its type."""
    return ProtocolError(Code.BAD_ENTRY, message, expected=expected, got=got)


def _rebuild(code: Code, text: str, expected: str | None, got: str | None) -> ProtocolError:
    error = ProtocolError(code, text)
    error.expected, error.got = expected, got
    return error


def _short(value: object, limit: int = 120) -> str:
    """``value`` on one line, fit for a terminal or a log, cut before it is escaped."""
    match value:
        case bytes():
            text = repr(value[: limit + 1])
        case int() if value.bit_length() > 256:
            # Python refuses to print an int of thousands of digits, with an error of its own.
            text = f"an integer of {value.bit_length()} bits"
        case _:
            text = str(value)
    return _printable(text, limit)


def _printable(text: str, limit: int) -> str:
    """Cut, and without control, format and surrogate characters: parts of it may be an attacker's."""
    head = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:limit])
    return head if len(text) <= limit else f"{head}… ({len(text)} characters)"
