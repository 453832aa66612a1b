"""What the running agent is asked to do, through two files in its state folder.

``request.json`` is put there by ``keyturn-agent pause``, ``resume``, ``key-roll`` or ``retire``, taken away by the
daemon, and answered in ``reply.json``. Both are for the folder's owner alone (mode 0600): whoever can write there can
do all of it anyway.
"""

import os
import time
from pathlib import Path
from typing import Annotated, Final

import msgspec

from keyturn_agent import files
from keyturn_agent.errors import RefusedError, UnreachableError
from keyturn_agent.store import holder
from keyturn_protocol.canonical import Record, Text, UInt, decode, encode
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.values import Slug

MOST_US: Final = 24 * 3_600_000_000
"""A pause is for maintenance; what takes longer is a shutdown."""
_BYTES: Final = 64 * 1024

RequestId = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f-]{36}\Z")]


class PauseRequest(Record, frozen=True, kw_only=True, tag="pause"):
    """Close the driver for so long."""

    id: RequestId
    for_us: Annotated[int, msgspec.Meta(gt=0, le=MOST_US)]
    reason: Annotated[Text, msgspec.Meta(min_length=1)]


class ResumeRequest(Record, frozen=True, kw_only=True, tag="resume"):
    """Open it again before that."""

    id: RequestId


class KeyRollRequest(Record, frozen=True, kw_only=True, tag="key_roll"):
    """End the log with the announcement of a new key, and go on in the next one under it."""

    id: RequestId


class RetireRequest(Record, frozen=True, kw_only=True, tag="retire"):
    """Say that chips (by uuid) won't report any more; null retires the host, and the agent ends."""

    id: RequestId
    chips: Annotated[list[Annotated[str, msgspec.Meta(max_length=128)]], msgspec.Meta(min_length=1)] | None
    reason: Annotated[Text, msgspec.Meta(min_length=1)]


Request = PauseRequest | ResumeRequest | KeyRollRequest | RetireRequest

NO_RECEIPT: Final[Slug] = "no_receipt"
"""The refusal of a request that may be made again once the verifier answers."""


class Reply(Record, frozen=True, kw_only=True):
    """What became of a request. ``refused`` is the code of an error, or null. ``until_us`` (UTC): paused until then."""

    id: RequestId
    refused: Slug | None
    detail: Text
    hint: Text | None
    until_us: UInt | None


def take(folder: Path) -> Request | None:
    """The request that waits, if any; it is taken away, whatever it is."""
    path = folder / "request.json"
    data = b""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError:
        fd = -1
    try:
        if fd >= 0:
            try:
                data = os.read(fd, _BYTES)
            finally:
                os.close(fd)
        path.unlink(missing_ok=True)
    except OSError:
        # What can't be taken away would be done again and again.
        return None
    try:
        request: Request = decode(data, Request)
    except ProtocolError:
        return None
    return request


def runs(folder: Path) -> bool:
    """Whether an agent runs on a state folder, so that it is the one to ask."""
    return holder(folder) is not None


def answer(folder: Path, reply: Reply) -> None:
    """Tell whoever asked."""
    with files.doing(f"writing {folder}/reply.json"):
        files.publish(folder / "reply.json", encode(reply))


def ask(folder: Path, request: Request, patience_s: float) -> Reply:
    """Put a request to the running agent and wait for what it says.

    :raises RefusedError: no agent runs here, or it refused.
    :raises UnreachableError: it didn't answer, and the request is taken back; or the verifier didn't answer it.
    """
    if holder(folder) is None:
        raise RefusedError("not_running", f"no agent runs on {folder}")
    path = folder / "request.json"
    with files.doing(f"asking in {folder}"):
        _put(path, encode(request))
    deadline = time.monotonic() + patience_s
    while (reply := _read_reply(folder)) is None or reply.id != request.id:
        if time.monotonic() > deadline:
            path.unlink(missing_ok=True)
            raise UnreachableError("no_answer", f"the agent didn't answer within {patience_s:g} s")
        time.sleep(0.05)
    if reply.refused == NO_RECEIPT:
        raise UnreachableError(reply.refused, reply.detail, hint=reply.hint)
    if reply.refused is not None:
        raise RefusedError(reply.refused, reply.detail, hint=reply.hint)
    return reply


def _put(path: Path, data: bytes) -> None:
    """As a whole, and readable by the folder's owner also when root asks."""
    owner = path.parent.stat()
    temporary = path.with_name(path.name + files.TEMPORARY)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, files.PRIVATE_FILE)
    try:
        if os.geteuid() != owner.st_uid:
            os.fchown(fd, owner.st_uid, owner.st_gid)
        files.write_all(fd, data)
    finally:
        os.close(fd)
    temporary.rename(path)


def _read_reply(folder: Path) -> Reply | None:
    try:
        reply: Reply = decode((folder / "reply.json").read_bytes(), Reply, limit=_BYTES)
    except (OSError, ProtocolError):
        return None
    return reply
