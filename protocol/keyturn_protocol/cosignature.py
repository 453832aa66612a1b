"""C2SP tlog-cosignature: a timestamped statement that a checkpoint is consistent with all seen before.

The message under an Ed25519 cosignature::

    cosignature/v1
    time 1679315147
    example.com/behind-the-sofa
    20852163
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

A verifier's receipt is one such line over a node's checkpoint. The Ed25519 message doesn't commit to its
signer's name, so a cosigner's key signs nothing else.
"""

import struct
from dataclasses import dataclass
from typing import Final, assert_never

from keyturn_protocol.checkpoint import Checkpoint, parse_checkpoint
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.keys import (
    ED25519_SIGNATURE_BYTES,
    MLDSA44_SIGNATURE_BYTES,
    SignatureType,
    VerifierKey,
    verify_ed25519,
    verify_mldsa44,
)
from keyturn_protocol.limits import COSIGNATURE_V1, MAX_INT, NOTE_BYTES, SUBTREE_V1
from keyturn_protocol.note import Note, Signature, find, parse_signature

_TIME: Final = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class Cosignature:
    """A parsed timestamped signature: POSIX seconds and the signature's bytes."""

    time_s: int
    signature: bytes

    def to_bytes(self) -> bytes:
        """``timestamped_signature``: u64 big-endian, then the signature."""
        return _TIME.pack(self.time_s) + self.signature


def parse_cosignature(data: bytes, kind: SignatureType) -> Cosignature:
    """Parse a ``timestamped_signature`` of the Ed25519 (0x04) or ML-DSA-44 (0x06) type.

    :raises ProtocolError: ``bad_signature`` for a wrong length, a wrong type or a time beyond 2^53-1.
    """
    match kind:
        case SignatureType.COSIGNATURE_ED25519:
            size = ED25519_SIGNATURE_BYTES
        case SignatureType.COSIGNATURE_MLDSA44:
            size = MLDSA44_SIGNATURE_BYTES
        case SignatureType.ED25519:
            raise ProtocolError(Code.BAD_SIGNATURE, "not a cosignature key", expected="0x04 or 0x06", got="0x01")
        case _:
            assert_never(kind)
    if len(data) != _TIME.size + size:
        raise ProtocolError(
            Code.BAD_SIGNATURE, "cosignature of the wrong length", expected=_TIME.size + size, got=len(data)
        )
    time_s: int = _TIME.unpack_from(data)[0]
    if time_s > MAX_INT:
        raise ProtocolError(Code.BAD_SIGNATURE, "cosignature time out of range", expected="<= 2^53-1", got=time_s)
    return Cosignature(time_s, data[_TIME.size :])


def ed25519_message(text: bytes, time_s: int) -> bytes:
    """What an Ed25519 cosigner signs: header, time, and the whole checkpoint text."""
    return COSIGNATURE_V1 + b"time %d\n" % time_s + text


def mldsa44_message(cosigner: str, checkpoint: Checkpoint, time_s: int) -> bytes:
    """What an ML-DSA-44 cosigner signs: the ``cosigned_message`` of a whole tree (start 0)."""
    name, origin = cosigner.encode(), checkpoint.origin.encode()
    return b"".join(
        (
            SUBTREE_V1,
            bytes([len(name)]),
            name,
            _TIME.pack(time_s),
            bytes([len(origin)]),
            origin,
            _TIME.pack(0),
            _TIME.pack(checkpoint.size),
            checkpoint.root,
        )
    )


def cosignature_line(key: VerifierKey, cosignature: Cosignature) -> Signature:
    """The signature line for a cosignature by ``key``."""
    return Signature(key.name, key.id, cosignature.to_bytes())


def verify_cosignature(text: bytes, line: Signature, key: VerifierKey) -> int:
    """Check that ``line`` is ``key``'s cosignature of the checkpoint ``text``; returns its POSIX seconds.

    :raises ProtocolError: ``unknown_key``, ``bad_signature``, or ``bad_checkpoint``.
    """
    if line.name != key.name or line.key_id != key.id:
        raise ProtocolError(
            Code.UNKNOWN_KEY,
            "cosignature by another key",
            expected=f"{key.name}+{key.id.hex()}",
            got=f"{line.name}+{line.key_id.hex()}",
        )
    cosignature = parse_cosignature(line.signature, key.kind)
    checkpoint = parse_checkpoint(text)
    if key.kind is SignatureType.COSIGNATURE_MLDSA44:
        verify_mldsa44(key.public_key, cosignature.signature, mldsa44_message(key.name, checkpoint, cosignature.time_s))
    else:
        verify_ed25519(key.public_key, cosignature.signature, ed25519_message(text, cosignature.time_s))
    return cosignature.time_s


def open_cosigned(note: Note, key: VerifierKey) -> int:
    """Find and check ``key``'s cosignature in a note; returns its POSIX seconds."""
    line = find(note, key)
    if line is None:
        raise ProtocolError(Code.UNKNOWN_KEY, "no cosignature by this key", expected=f"{key.name}+{key.id.hex()}")
    return verify_cosignature(note.text, line, key)


def parse_receipt(data: bytes) -> Signature:
    """Parse a receipt file: one signature line with its newline, nothing else."""
    if len(data) > NOTE_BYTES:
        raise ProtocolError(Code.TOO_LARGE, "receipt over its cap", expected=f"<= {NOTE_BYTES} bytes", got=len(data))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ProtocolError(Code.BAD_NOTE, "receipt is not UTF-8") from None
    if not text.endswith("\n") or text.count("\n") != 1:
        raise ProtocolError(Code.BAD_NOTE, "receipt is not one line", got=text)
    return parse_signature(text[:-1])
