"""Bundles as one file: reading ``.tar`` and ``.tar.zst``, and taking one from a stream while checking it."""

import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO, BinaryIO, Final

from backports import zstd

from keyturn_cli.errors import CliError, Exit
from keyturn_cli.reader import FolderReader, cap_of
from keyturn_protocol.bundle import MANIFEST, BundleReader, Manifest, parse_manifest
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.tar import BLOCK, parse_member

MOST_BYTES: Final = 1 << 42
"""What a compressed bundle may unpack to: 4 TiB."""
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_OPTIONS: Final[dict[int, int]] = {zstd.DecompressionParameter.window_log_max: 27}
_PIECE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class TarReader:
    """A :class:`~keyturn_protocol.bundle.BundleReader` over a tar file; picklable."""

    file: str
    index: dict[str, tuple[int, int]]
    """Path → where its bytes begin, and how many."""

    def paths(self) -> Iterator[str]:
        """Every file."""
        yield from self.index

    def read(self, path: str) -> bytes:
        """One file's bytes.

        :raises ProtocolError: ``bad_bundle`` if it isn't there, ``too_large`` over the cap of its kind.
        """
        if path not in self.index:
            raise ProtocolError(Code.BAD_BUNDLE, f"can't read {path}: it is not in the bundle")
        at, size = self.index[path]
        if size > cap_of(path):
            raise ProtocolError(Code.TOO_LARGE, "file over its cap", expected=f"at most {cap_of(path)} bytes", got=path)
        with Path(self.file).open("rb") as file:
            file.seek(at)
            data = file.read(size)
        if len(data) != size:
            raise ProtocolError(Code.BAD_BUNDLE, "the bundle was cut while it was read", got=path)
        return data


@contextmanager
def open_bundle(path: Path) -> Iterator[BundleReader]:
    """A bundle in a folder, a ``.tar`` or a ``.tar.zst``.

    :raises CliError: there is nothing of the kind.
    :raises ProtocolError: ``bad_bundle``: not a bundle's tar.
    """
    if path.is_dir():
        yield FolderReader(str(path))
        return
    try:
        with path.open("rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise CliError(f"{path} is neither a folder nor a file", exit=Exit.USAGE)
            if file.read(4) != _ZSTD:
                yield TarReader(str(path), _index(file))
                return
            file.seek(0)
            with tempfile.NamedTemporaryFile(prefix="keyturn-bundle-") as plain:
                for piece in _unpacked(file):
                    plain.write(piece)
                plain.flush()
                yield TarReader(plain.name, _index(plain))
    except OSError as error:
        raise CliError(
            f"{path} is not a folder or file: {error.strerror}",
            exit=Exit.USAGE,
            hint="BUNDLE is what the verifier exported",
        ) from None


def _unpacked(file: BinaryIO) -> Iterator[bytes]:
    decoder, size = zstd.ZstdDecompressor(options=_OPTIONS), 0
    try:
        while piece := file.read(_PIECE):
            while True:
                data = decoder.decompress(piece, max_length=_PIECE)
                size += len(data)
                if size > MOST_BYTES:
                    raise ProtocolError(Code.TOO_LARGE, "bundle unpacks to more", expected=f"at most {MOST_BYTES}")
                yield data
                if decoder.needs_input or decoder.eof:
                    break
                piece = b""
            if decoder.eof:
                break
    except (zstd.ZstdError, EOFError) as error:
        raise ProtocolError(Code.BAD_BUNDLE, f"not a zstd frame: {error}") from None
    if not decoder.eof or decoder.unused_data or file.read(1):
        raise ProtocolError(Code.BAD_BUNDLE, "the zstd frame is cut, or something follows it")


def _index(file: IO[bytes]) -> dict[str, tuple[int, int]]:
    """Where each file of a tar lies."""
    end = file.seek(0, os.SEEK_END)
    found: dict[str, tuple[int, int]] = {}
    at = 0
    while True:
        file.seek(at)
        member = parse_member(file.read(BLOCK))
        at += BLOCK
        if member is None:
            break
        if member.path in found:
            raise ProtocolError(Code.BAD_BUNDLE, "a file is there twice", got=member.path)
        found[member.path] = (at, member.size)
        file.seek(at + member.size)
        if file.read(member.padding) != bytes(member.padding):
            raise ProtocolError(Code.BAD_BUNDLE, "cut, or padding that is not zeros", got=member.path)
        at += member.size + member.padding
    if file.read(BLOCK + 1) != bytes(BLOCK) or at + BLOCK != end:
        raise ProtocolError(Code.BAD_BUNDLE, "the tar is cut, or something follows it")
    return found


@dataclass(slots=True)
class Taken:
    """What came through :func:`take`."""

    size: int = 0
    hashes: dict[str, str] = field(default_factory=dict)
    manifest: Manifest | None = None


def take(chunks: Iterable[bytes], out: BinaryIO) -> Taken:
    """Write a tar stream to ``out`` and hold every file's hash against the manifest, which comes last.

    :raises ProtocolError: ``bad_bundle``: cut, or other files than the manifest lists.
    """
    taken = Taken()
    buffer = bytearray()
    stream = iter(chunks)

    def pull(count: int) -> bytes:
        """The next bytes, ``count`` of them; fewer at the end."""
        while len(buffer) < count:
            chunk = next(stream, None)
            if chunk is None:
                break
            buffer.extend(chunk)
        data = bytes(buffer[:count])
        del buffer[:count]
        out.write(data)
        taken.size += len(data)
        return data

    while True:
        head = pull(BLOCK)
        if len(head) != BLOCK:
            raise ProtocolError(Code.BAD_BUNDLE, "the stream was cut")
        member = parse_member(head)
        if member is None:
            break
        if member.path in taken.hashes or taken.manifest is not None:
            raise ProtocolError(Code.BAD_BUNDLE, "a file is there twice, or after the manifest", got=member.path)
        digest, left, kept = sha256(), member.size, list[bytes]()
        if left > cap_of(member.path):
            raise ProtocolError(Code.TOO_LARGE, "file over its cap", got=member.path)
        while left:
            piece = pull(min(left, _PIECE))
            if not piece:
                raise ProtocolError(Code.BAD_BUNDLE, "the stream was cut", got=member.path)
            digest.update(piece)
            left -= len(piece)
            if member.path == MANIFEST:
                kept.append(piece)
        if pull(member.padding) != bytes(member.padding):
            raise ProtocolError(Code.BAD_BUNDLE, "padding that is not zeros", got=member.path)
        if member.path == MANIFEST:
            taken.manifest = parse_manifest(b"".join(kept))
        else:
            taken.hashes[member.path] = digest.hexdigest()
    if pull(BLOCK) != bytes(BLOCK) or pull(1):
        raise ProtocolError(Code.BAD_BUNDLE, "the stream was cut, or something follows its end")
    if taken.manifest is None:
        raise ProtocolError(Code.BAD_BUNDLE, "the stream has no manifest")
    for path in sorted(taken.manifest.files.keys() | taken.hashes.keys()):
        if taken.manifest.files.get(path) != taken.hashes.get(path):
            raise ProtocolError(Code.BAD_BUNDLE, "not what the manifest lists", got=path)
    return taken
