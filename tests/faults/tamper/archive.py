"""A bundle as one file: what can be done to a tar, to a zstd frame around it, and to a folder."""

import io
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from backports import zstd

from keyturn_protocol.bundle import MANIFEST
from keyturn_protocol.tar import BLOCK, END, Member, format_member
from tests.faults.tamper.forgery import Forgeries
from tests.faults.tamper.world import World

forgery = Forgeries()
"""Operators that yield the bytes of a file."""
folders = Forgeries()
"""Operators that are given the bundle's folder and change it."""
REFUSED = "tar|zstd|twice|padding|zeros|follows it|header"


def packed(files: dict[str, bytes], order: Callable[[str], object] = lambda path: (path == MANIFEST, path)) -> bytes:
    return b"".join(member(path, files[path]) for path in sorted(files, key=order)) + END  # type: ignore[arg-type]


def member(path: str, data: bytes) -> bytes:
    return format_member(path, len(data)) + data + bytes(Member(path, len(data)).padding)


def header(path: str, data: bytes, **fields: object) -> bytes:
    """A member as Python's tarfile writes it, with any fields."""
    info = tarfile.TarInfo(path)
    info.size = len(data)
    info.mode = 0o644
    for name, value in fields.items():
        setattr(info, name, value)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(data))
    return _members(out.getvalue())


def _members(tar: bytes) -> bytes:
    """A tar without the zeros at its end."""
    end = len(tar)
    while tar[end - BLOCK : end] == bytes(BLOCK):
        end -= BLOCK
    return tar[:end]


def _both(stream: bytes) -> Iterable[bytes]:
    yield stream
    yield zstd.compress(stream)


def _with(w: World, more: bytes) -> Iterable[bytes]:
    """More members before the others, between them, and after them."""
    stream = packed(w.bundle.files)
    first = len(member(sorted(w.bundle.files)[1], w.bundle.files[sorted(w.bundle.files)[1]]))
    for at in (0, first, len(stream) - len(END)):
        yield from _both(stream[:at] + more + stream[at:])


@forgery("anyone", "tar: the files in another order, the manifest first", outcome="pass", says="^$")
def reordered(w: World) -> Iterable[bytes]:
    """The same files: a stream must end with its manifest, a file at rest is whole anyway."""
    yield from _both(packed(w.bundle.files, lambda path: (path != MANIFEST, path)))
    yield from _both(packed(w.bundle.files, lambda path: path[::-1]))


@forgery("anyone", "tar: a name twice", says="a file is there twice")
def twice(w: World) -> Iterable[bytes]:
    for path in (MANIFEST, "totals.json", sorted(w.bundle.files)[1]):
        yield from _with(w, member(path, w.bundle.files[path]))
        yield from _with(w, member(path, b"x"))


@forgery("anyone", "tar: a path out of the folder", says=REFUSED)
def traversal(w: World) -> Iterable[bytes]:
    for path in ("../evil", "/etc/evil", "logs/../../evil", "./totals.json", "logs//x", ".hidden", "C:evil", "a\\b"):
        yield from _with(w, header(path, b"x"))


@forgery("anyone", "tar: a name that ends early, or in other letters", says=REFUSED)
def odd_name(w: World) -> Iterable[bytes]:
    for path in ("Totals.json", "totals.json ", "tötals.json", "totals.json/"):
        yield from _with(w, header(path, b"x"))
    head = bytearray(format_member("totals.json", 1))
    head[20] = ord("x")  # after the name's end
    yield from _with(w, bytes(head) + b"x" + bytes(511))


@forgery("anyone", "tar: a link, hard or symbolic", says=REFUSED)
def link(w: World) -> Iterable[bytes]:
    for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE):
        yield from _with(w, header("logs/link", b"", type=kind, linkname="/etc/passwd"))
        yield from _with(w, header("logs/link", b"", type=kind, linkname="totals.json"))


@forgery("anyone", "tar: a device, a pipe, a folder", says=REFUSED)
def device(w: World) -> Iterable[bytes]:
    for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.CONTTYPE):
        yield from _with(w, header("logs/odd", b"", type=kind))


@forgery("anyone", "tar: a sparse file", says=REFUSED)
def sparse(w: World) -> Iterable[bytes]:
    yield from _with(w, header("logs/sparse", b"x", type=tarfile.GNUTYPE_SPARSE))
    yield from _with(w, header("logs/sparse", b"x", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}))


@forgery("anyone", "tar: extended headers that rename or resize", says=REFUSED)
def extended(w: World) -> Iterable[bytes]:
    totals = w.bundle.files["totals.json"]
    yield from _with(w, header("other.json", totals, pax_headers={"path": "totals.json"}))
    yield from _with(w, header("other.json", totals, pax_headers={"size": "1"}))
    yield from _with(w, header("x" * 150, b"x"))


@forgery("anyone", "tar: other owners, modes or times", says=REFUSED)
def owned(w: World) -> Iterable[bytes]:
    path = "totals.json"
    rest = packed({p: d for p, d in w.bundle.files.items() if p != path})
    for field, value in {"uid": 1, "mode": 0o4755, "mtime": 1, "uname": "root", "devmajor": 7}.items():
        yield from _both(header(path, w.bundle.files[path], **{field: value}) + rest)


@forgery("anyone", "tar: a size that lies", says=REFUSED + "|manifest|segment|missing")
def sizes(w: World) -> Iterable[bytes]:
    path = "totals.json"
    data = w.bundle.files[path]
    rest = packed({p: d for p, d in w.bundle.files.items() if p != path})
    for size in (0, len(data) - 1, len(data) + 1, len(data) + 512, 8**11 - 1):
        if size < 1024**3:
            yield from _both(format_member(path, size) + data + bytes(-len(data) % 512) + rest)
    yield from _both(format_member(path, 1).replace(b"%011o" % 1, b"7" * 11) + data + rest)


@forgery("anyone", "tar: bytes hidden in the padding", says="padding that is not zeros|something follows it")
def padding(w: World) -> Iterable[bytes]:
    for path in ("totals.json", MANIFEST):
        rest = packed({p: d for p, d in w.bundle.files.items() if p != path})
        data = w.bundle.files[path]
        if -len(data) % 512:
            yield from _both(format_member(path, len(data)) + data + b"\x01" * (-len(data) % 512) + rest)
    yield from _both(packed(w.bundle.files)[:-1] + b"\x01")


@forgery("anyone", "tar: cut, or something after its end", says=REFUSED + "|cut")
def trailing(w: World) -> Iterable[bytes]:
    stream = packed(w.bundle.files)
    for changed in (
        *(stream[:-512], stream[:-1], stream + b"x", stream + bytes(512), stream + END, stream[: len(stream) // 2]),
        *(stream[:-1024] + bytes(512) + stream[-1536:], b"", b"\n" + stream),
    ):
        yield from _both(changed)


@forgery("anyone", "tar: two archives, one after the other", says=REFUSED)
def two(w: World) -> Iterable[bytes]:
    yield from _both(packed(w.bundle.files) + packed(w.older.files))
    yield from _both(packed(w.older.files) + packed(w.bundle.files))
    yield zstd.compress(packed(w.older.files)) + zstd.compress(packed(w.bundle.files))


@forgery("anyone", "zstd: frames appended, in front, skippable, or cut", says=REFUSED + "|frame")
def frames(w: World) -> Iterable[bytes]:
    frame = zstd.compress(packed(w.bundle.files))
    skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"evil"
    half = packed(w.bundle.files)
    yield from (frame + zstd.compress(b"x"), frame + zstd.compress(b""), frame + skippable, skippable + frame)
    yield from (frame[:-1], frame[:4], frame + b"\0", zstd.compress(b"") + frame, zstd.compress(frame))
    yield zstd.compress(half[:2048]) + zstd.compress(half[2048:])


@forgery("anyone", "zip in place of a tar", says=REFUSED)
def zipped(w: World) -> Iterable[bytes]:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for path, data in w.bundle.files.items():
            file.writestr(path, data)
    yield out.getvalue()
    yield packed(w.bundle.files) + out.getvalue()


# -- folders


@folders("anyone", "folder: a link in place of a file", says="neither a file nor a folder|can't read")
def file_link(folder: Path) -> Iterable[Path]:
    for name in ("totals.json", MANIFEST, "verifier-log/checkpoint"):
        path = folder / name
        outside = folder.parent / f"outside-{path.name}"
        path.rename(outside)
        path.symlink_to(outside)
        yield folder
        path.unlink()
        outside.rename(path)


@folders("anyone", "folder: a link in place of a folder", says="neither a file nor a folder|can't read")
def folder_link(folder: Path) -> Iterable[Path]:
    outside = folder.parent / "outside"
    (folder / "logs").rename(outside)
    (folder / "logs").symlink_to(outside)
    yield folder
    (folder / "logs").unlink()
    outside.rename(folder / "logs")
    (folder / "around").symlink_to(folder)
    yield folder


@folders("anyone", "folder: a pipe, a socket", says="neither a file nor a folder")
def pipe(folder: Path) -> Iterable[Path]:
    os.mkfifo(folder / "pipe")
    yield folder


@folders("anyone", "folder: a hard link to a file outside", outcome="pass", says="^$")
def hard_link(folder: Path) -> Iterable[Path]:
    """A file with another name elsewhere is the same file: its bytes count."""
    os.link(folder / "totals.json", folder.parent / "elsewhere.json")
    yield folder


@folders("anyone", "folder: names that aren't paths of a bundle", says="not printable|not in the manifest|too deep")
def names(folder: Path) -> Iterable[Path]:
    for name in (b"x\ny", b"x\xff", "Ünder".encode(), b" ", b"-", b"totals.json~", b".git"):
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
        path.write_bytes(b"x")
        yield folder
        path.unlink()


@folders("anyone", "folder: empty folders put in", outcome="pass", says="^$")
def empty_folders(folder: Path) -> Iterable[Path]:
    """A folder without a file has nothing to vouch for."""
    (folder / "roots").mkdir()
    yield folder
