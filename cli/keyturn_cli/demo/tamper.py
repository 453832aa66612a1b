"""Altering evidence the way a careful forger would: one digit, so that everything still parses."""

import json
import re
import shutil
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keyturn_cli.errors import CliError, Exit
from keyturn_protocol.bundle import MANIFEST, log_folder, parse_manifest, parse_segment_name, statement_path
from keyturn_protocol.canonical import encode_record
from keyturn_protocol.dsse import Envelope, pae, parse_envelope
from keyturn_protocol.ids import parse_origin


@dataclass(frozen=True, slots=True)
class Flip:
    """One byte of one entry: ``field`` was ``before`` and is ``after``."""

    path: str
    seq: int
    offset: int
    field: str
    before: int
    after: int


def flip_digit(bundle: Path, copy: Path, origin: str, field: str = "tensor_mcycles") -> Flip:
    """Copy a bundle, and in the copy lower one digit of the first measured ``field`` of a log.

    :raises CliError: the log has no such value.
    """
    shutil.copytree(bundle, copy, symlinks=True)
    folder = copy / log_folder(parse_origin(origin))
    for path in sorted(folder.glob("*.segment"), key=lambda p: parse_segment_name(p.name)):
        data = bytearray(path.read_bytes())
        start, at = parse_segment_name(path.name)[0], 0
        for i, line in enumerate(bytes(data).partition(b"\n\n")[0].split(b"\n")):
            found = re.search(rb'"%s":\[([1-9][0-9]*)' % field.encode(), line)
            if found is not None and json.loads(line)["type"] == "usage":
                digits = found.start(1)
                before = int(found[1])
                # 2 … 9 become one less; a leading 1 would leave a zero in front, so it becomes 0 in the second place.
                digit = digits if line[digits] != ord("1") else digits + 1
                if digit < found.end(1) and line[digit] != ord("0"):
                    data[at + digit] -= 1
                    path.write_bytes(data)
                    after = int(bytes(data)[at + digits : at + found.end(1)])
                    relative = path.relative_to(copy).as_posix()
                    return Flip(relative, start + i, at + digit, field, before, after)
            at += len(line) + 1
    raise CliError(f"{origin} has no {field} to alter", exit=Exit.REJECTED)


def rehash(bundle: Path, path: str) -> None:
    """Make the manifest agree with an altered file, as a forger would next."""
    manifest = parse_manifest((bundle / MANIFEST).read_bytes())
    manifest.files[path] = sha256((bundle / path).read_bytes()).hexdigest()
    (bundle / MANIFEST).write_bytes(encode_record(manifest))


def forge_approval(bundle: Path, copy: Path, sha256: str) -> str:
    """Copy a bundle, and in the copy sign a statement anew with a key of the forger's, in its signer's name.

    :returns: the path of the altered file; the manifest fits it.
    """
    shutil.copytree(bundle, copy, symlinks=True)
    path = statement_path(sha256)
    envelope = parse_envelope((copy / path).read_bytes())
    forged = Ed25519PrivateKey.generate().sign(pae(envelope.kind, envelope.payload))
    signatures = dict.fromkeys(envelope.signatures, forged)
    (copy / path).write_bytes(Envelope(envelope.kind, envelope.payload, signatures).to_bytes())
    rehash(copy, path)
    return path


def drop_statement(bundle: Path, copy: Path, sha256: str) -> str:
    """Copy a bundle, and leave a statement out of the copy as if nobody had made it; the manifest fits.

    :returns: the path of the file that is missing.
    """
    shutil.copytree(bundle, copy, symlinks=True)
    path = statement_path(sha256)
    (copy / path).unlink()
    manifest = parse_manifest((copy / MANIFEST).read_bytes())
    del manifest.files[path]
    (copy / MANIFEST).write_bytes(encode_record(manifest))
    return path
