"""C2SP signed-note: text, a blank line, and a line for each signature.

This is an example message.

— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=
"""

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.keys import SignatureType, VerifierKey, b64decode, check_key_name, verify_ed25519
from keyturn_protocol.limits import NOTE_BYTES, NOTE_SIGNATURES

_DASH: Final = "— "
_CONTROL: Final = re.compile(r"[\x00-\x09\x0b-\x1f]")
KEY_ID_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line: the key's name, its 4-byte id and the signature's bytes."""

    name: str
    key_id: bytes
    signature: bytes

    def __str__(self) -> str:
        """The line, without its newline."""
        return f"{_DASH}{self.name} {base64.b64encode(self.key_id + self.signature).decode()}"

    def to_bytes(self) -> bytes:
        """The line with its newline, as a note and a receipt hold it."""
        return f"{self}\n".encode()


@dataclass(frozen=True, slots=True)
class Note:
    """A parsed note. Nothing in ``text`` may be believed before :func:`open_note` has returned."""

    text: bytes
    """Everything that is signed, with the final newline."""
    signatures: tuple[Signature, ...]

    def to_bytes(self) -> bytes:
        return self.text + b"\n" + b"".join(s.to_bytes() for s in self.signatures)

    def with_signature(self, *more: Signature) -> "Note":
        """The same note with further signature lines at its end."""
        return Note(self.text, self.signatures + more)


def parse_note(data: bytes) -> Note:
    """Take a note apart, strictly; ``parse_note(x).to_bytes() == x`` for everything that it accepts.

    :raises ProtocolError: ``bad_note``; also for two signatures that claim one key.
    """
    if len(data) > NOTE_BYTES:
        raise ProtocolError(Code.TOO_LARGE, "note over its cap", expected=f"at most {NOTE_BYTES} bytes", got=len(data))
    try:
        whole = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ProtocolError(Code.BAD_NOTE, "note is not UTF-8", got=data[:32]) from None
    if _CONTROL.search(whole):
        raise ProtocolError(Code.BAD_NOTE, "note with a control character")
    text, blank, tail = whole.rpartition("\n\n")
    if not blank or not text or not tail.endswith("\n"):
        raise ProtocolError(Code.BAD_NOTE, "not a signed note", expected="text, a blank line, signature lines")
    if (count := tail.count("\n")) > NOTE_SIGNATURES:
        raise ProtocolError(Code.BAD_NOTE, "too many signatures", expected=f"at most {NOTE_SIGNATURES}", got=count)
    lines = tail[:-1].split("\n")
    signatures = tuple(parse_signature(line) for line in lines)
    seen: set[tuple[str, bytes]] = set()
    for signature in signatures:
        key = (signature.name, signature.key_id)
        if key in seen:
            raise ProtocolError(Code.BAD_NOTE, "two signatures by one key", got=f"{key[0]}+{key[1].hex()}")
        seen.add(key)
    return Note((text + "\n").encode(), signatures)


def parse_signature(line: str) -> Signature:
    """Parse one signature line, given without its newline."""
    name, space, encoded = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not space:
        raise ProtocolError(Code.BAD_NOTE, "not a signature line", expected="— <key name> <base64>", got=line)
    try:
        check_key_name(name)
    except ProtocolError as error:
        raise ProtocolError(Code.BAD_NOTE, f"signature line: {error}") from None
    raw = b64decode(encoded, Code.BAD_NOTE)
    if len(raw) <= KEY_ID_BYTES:
        raise ProtocolError(Code.BAD_NOTE, "signature is too short", expected="more than 4 bytes", got=len(raw))
    return Signature(name, raw[:KEY_ID_BYTES], raw[KEY_ID_BYTES:])


def find(note: Note, key: VerifierKey) -> Signature | None:
    """The signature line that claims ``key``, unverified."""
    return next((s for s in note.signatures if s.name == key.name and s.key_id == key.id), None)


def open_note(note: Note, keys: Iterable[VerifierKey]) -> tuple[VerifierKey, ...]:
    """Verify every signature by a known Ed25519 key (type 0x01) and return those keys; unknown ones are ignored.

    :raises ProtocolError: ``bad_signature`` if a known key's signature fails; ``unknown_key`` if there is none.
    """
    verified = []
    for key in keys:
        signature = find(note, key)
        if key.kind is not SignatureType.ED25519 or signature is None:
            continue
        verify_ed25519(key.public_key, signature.signature, note.text)
        verified.append(key)
    if not verified:
        raise ProtocolError(
            Code.UNKNOWN_KEY,
            "note is not signed by any known key",
            got=", ".join(f"{s.name}+{s.key_id.hex()}" for s in note.signatures),
        )
    return tuple(verified)
