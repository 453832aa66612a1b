"""C2SP tlog-checkpoint: the head of a log as a signed note.

    keyturn.example.org/node/6f0c1d0e5ad81f0e9c7a3b5d2e4f6a81/1
    768
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

    — keyturn.example.org/node/6f0c1d0e5ad81f0e9c7a3b5d2e4f6a81/1 Az3grl…

Keyturn writes no extension lines and refuses them.
"""

import base64
import re
from dataclasses import dataclass
from typing import Final

from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import Hash
from keyturn_protocol.keys import VerifierKey, b64decode, check_key_name
from keyturn_protocol.limits import MAX_INT
from keyturn_protocol.merkle import EMPTY_ROOT, HASH_BYTES
from keyturn_protocol.note import Note, Signature, open_note, parse_note

_SIZE: Final = re.compile(r"0|[1-9][0-9]{0,15}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree head: ``size`` leaves of the log ``origin`` have the Merkle root ``root``."""

    origin: str
    size: int
    root: Hash

    def to_text(self) -> bytes:
        """The note text: three lines, each with its newline."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n".encode()

    def signed(self, key: VerifierKey, signature: bytes) -> Note:
        """The signed note, given an Ed25519 signature over :meth:`to_text`."""
        return Note(self.to_text(), (Signature(key.name, key.id, signature),))


def parse_checkpoint(text: bytes) -> Checkpoint:
    """Parse a checkpoint's text; ``parse_checkpoint(x).to_text() == x`` for everything that it accepts.

    :raises ProtocolError: ``bad_checkpoint``; also for extension lines.
    """
    try:
        lines = text.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        raise ProtocolError(Code.BAD_CHECKPOINT, "checkpoint is not UTF-8") from None
    if len(lines) != 4 or lines[3]:
        raise ProtocolError(
            Code.BAD_CHECKPOINT,
            "checkpoint with the wrong number of lines",
            expected="origin, size and root, no extension lines",
            got=len(lines) - 1,
        )
    origin, size, root = lines[:3]
    try:
        check_key_name(origin)
    except ProtocolError as error:
        raise ProtocolError(Code.BAD_CHECKPOINT, f"origin: {error}") from None
    if not _SIZE.fullmatch(size) or int(size) > MAX_INT:
        raise ProtocolError(
            Code.BAD_CHECKPOINT, "not a tree size", expected="a decimal without leading zeros, up to 2^53-1", got=size
        )
    digest = b64decode(root, Code.BAD_CHECKPOINT)
    if len(digest) != HASH_BYTES:
        raise ProtocolError(Code.BAD_CHECKPOINT, "root of the wrong length", expected=HASH_BYTES, got=len(digest))
    if size == "0" and digest != EMPTY_ROOT:
        raise ProtocolError(Code.BAD_CHECKPOINT, "an empty tree with a root of its own", expected=EMPTY_ROOT.hex())
    return Checkpoint(origin, int(size), Hash(digest))


def open_checkpoint(data: bytes | Note, key: VerifierKey) -> Checkpoint:
    """Verify a log's own signature on a checkpoint, then parse it; other signatures are ignored.

    :raises ProtocolError: ``bad_note``, ``unknown_key``, ``bad_signature``, or ``bad_checkpoint``.
    """
    note = data if isinstance(data, Note) else parse_note(data)
    open_note(note, [key])
    checkpoint = parse_checkpoint(note.text)
    if checkpoint.origin != key.name:
        raise ProtocolError(Code.BAD_CHECKPOINT, "checkpoint of another log", expected=key.name, got=checkpoint.origin)
    return checkpoint
