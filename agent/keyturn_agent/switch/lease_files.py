"""``leases.json``: what a host holds and has charged, on disk before anything is done by it."""

from pathlib import Path
from typing import Final

from keyturn_agent import files
from keyturn_agent.errors import LOST, StoreError
from keyturn_agent.switch.lease_state import Book
from keyturn_protocol.canonical import decode, encode
from keyturn_protocol.errors import ProtocolError

NAME: Final = "leases.json"
NOTHING: Final = Book(v=1, origin="", jobs=[], sequences={}, gate_seq=0)
_FILE_BYTES: Final = 16 * 1024 * 1024


def load(folder: Path) -> Book:
    """As it was kept; nothing on a host that never had a lease.

    :raises StoreError: ``bad_state``: it was damaged.
    """
    path = folder / NAME
    try:
        book: Book = decode(path.read_bytes(), Book, limit=_FILE_BYTES)
    except FileNotFoundError:
        return NOTHING
    except (OSError, ProtocolError) as error:
        raise StoreError("bad_state", f"reading {path}: {error}", hint=LOST) from error
    return book


def keep(folder: Path, book: Book) -> None:
    """After this it survives."""
    with files.doing(f"writing {folder}/{NAME}"):
        files.replace(folder / NAME, encode(book))
