"""What is said on the gate's socket: a JSON object a line, and one line in answer to each.

    {"verb":"grant","v":1,"job":"6f0c…","lease":"71a3…","subject":"…","boot_id":"0c6b…","chips":["GPU-…"],
     "stop_at_us":81000000,"grace_s":600,"kill_s":60,"signal":10,"why":"the lease ends","target":{…}}   (one line)
    {"ok":true}                                                 or  {"ok":false,"code":"other_boot","detail":"…"}

Times ending in ``_us`` are on CLOCK_BOOTTIME unless they say ``time``. Who may say what is decided by the socket's
peer, see :mod:`~keyturn_gate.server`.
"""

from typing import Annotated, Any, Final, Literal

import msgspec

from keyturn_gate.errors import GateError

LINE_BYTES: Final = 256 * 1024
"""A request. One that names every chip of the largest host takes 50 kB."""
ANSWER_BYTES: Final = 4 * 1024 * 1024
MOST_US: Final = 400 * 86_400 * 1_000_000
"""No grant lasts longer: what asks for more is a mistake of units."""

Id = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Text = Annotated[str, msgspec.Meta(max_length=1_024)]
Uuid = Annotated[str, msgspec.Meta(pattern=r"\A[!-~]{1,128}\Z")]
UInt = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
Seconds = Annotated[int, msgspec.Meta(ge=0, le=86_400)]
State = Literal["locked", "open", "prohibited", "cannot_lock", "unknown"]


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request: what isn't known may be what matters, and is refused."""


class _Said(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an answer: whoever asks a newer gate reads over the fields that came later."""


class Target(_Record, frozen=True, kw_only=True):
    """The processes of a run: those of a cgroup, or of a session where it has none of its own.

    ``pid`` is the run's first process and ``start`` its start time (field 22 of ``/proc/<pid>/stat``), without which
    a pid means nothing. ``cgroup`` is a folder under a mounted cgroup file system.
    """

    pid: Annotated[int, msgspec.Meta(ge=2, le=2**31 - 1)]
    start: UInt
    cgroup: Annotated[str, msgspec.Meta(pattern=r"\A/[^\x00]{1,4000}\Z")] | None
    session: Annotated[int, msgspec.Meta(ge=2, le=2**31 - 1)] | None


class Grant(_Record, frozen=True, kw_only=True, tag_field="verb", tag="grant"):
    """Open these chips until ``stop_at_us``, when the run is stopped and they are locked. Said again, it replaces.

    ``job`` names one start of a command; ``lease`` the lease that it runs under now. ``signal``, if any, is sent to
    the run's first process ``grace_s`` before the stop, when the notice file is written.
    """

    v: Literal[1]
    job: Id
    lease: Id
    subject: Text
    boot_id: Text
    chips: Annotated[list[Uuid], msgspec.Meta(min_length=1, max_length=1_024)]
    stop_at_us: UInt
    grace_s: Seconds
    kill_s: Seconds
    signal: Annotated[int, msgspec.Meta(ge=1, le=64)] | None
    why: Text
    target: Target | None


class Stop(_Record, frozen=True, kw_only=True, tag_field="verb", tag="stop"):
    """End a grant now: what still runs of it is stopped, and its chips are locked."""

    v: Literal[1]
    job: Id
    why: Text


class Status(_Record, frozen=True, kw_only=True, tag_field="verb", tag="status"):
    """How it stands, and what happened after event ``after``."""

    v: Literal[1]
    after: UInt


class Release(_Record, frozen=True, kw_only=True, tag_field="verb", tag="release"):
    """Root's way out: every chip is opened and nothing is stopped, until ``lock`` or the next boot."""

    v: Literal[1]
    reason: Annotated[Text, msgspec.Meta(min_length=1)]


class Lock(_Record, frozen=True, kw_only=True, tag_field="verb", tag="lock"):
    """The end of a release."""

    v: Literal[1]


Request = Grant | Stop | Status | Release | Lock


class Event(_Said, frozen=True, kw_only=True):
    """Something that happened, numbered without holes; the last few hundred are kept over restarts and reboots."""

    seq: UInt
    boot_id: str
    boot_us: UInt
    time_us: UInt
    kind: str
    job: str | None
    detail: str


class Chip(_Said, frozen=True, kw_only=True):
    """A chip as the gate last saw it. ``found`` is the compute mode that opening it restores.

    ``prohibited``: that mode is the one in which nobody may compute, so a lease can't open the chip. ``cannot_lock``:
    the driver refuses for good (MIG). ``unknown``: it failed, and is asked again.
    """

    uuid: str
    state: State
    found: UInt | None
    contexts: UInt
    detail: str | None


class Granted(_Said, frozen=True, kw_only=True):
    """A grant that is going on."""

    job: str
    lease: str
    subject: str
    chips: list[str]
    stop_at_us: UInt
    phase: str
    why: str
    processes: UInt


class Released(_Said, frozen=True, kw_only=True):
    """A release that is going on."""

    reason: str
    uid: UInt
    time_us: UInt


class Standing(_Said, frozen=True, kw_only=True):
    """The answer to ``status``. ``trouble``: why the driver doesn't answer, or null."""

    ok: Literal[True]
    v: Literal[1]
    driver: Literal["observe", "compute_mode"]
    boot_id: str
    now_us: UInt
    seq: UInt
    released: Released | None
    trouble: str | None
    chips: list[Chip]
    grants: list[Granted]
    events: list[Event]


def parse(line: bytes) -> Request:
    """:raises GateError: ``bad_request``."""
    try:
        request: Request = msgspec.json.decode(line, type=Request)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise GateError("bad_request", f"not a request: {error}") from None
    return request


def understood(line: bytes) -> dict[str, Any]:
    """The answer of a gate that did what it was asked.

    :raises GateError: with the gate's code where it refuses; ``no_gate``: it is none.
    """
    try:
        found = msgspec.json.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise GateError("no_gate", f"not a gate's answer: {error}") from None
    match found:
        case {"ok": True}:
            return dict(found)
        case {"ok": False, "code": str(code), "detail": str(detail)}:
            raise GateError(code, detail)
        case _:
            raise GateError("no_gate", "not a gate's answer: expected an object with ok, and with code and detail")


def standing_of(line: bytes) -> Standing:
    """The answer to ``status``.

    :raises GateError: as :func:`understood`; ``no_gate`` also where it is a gate of a version that says other things.
    """
    try:
        standing: Standing = msgspec.convert(understood(line), Standing)
    except msgspec.ValidationError as error:
        raise GateError("no_gate", f"not a gate's answer, or of another version of it: {error}") from None
    return standing


def answer(**fields: Any) -> bytes:
    """A line that says that it was done."""
    return msgspec.json.encode({"ok": True, **fields}) + b"\n"


def refusal(error: GateError) -> bytes:
    """A line that says why it wasn't."""
    return msgspec.json.encode({"ok": False, "code": error.code, "detail": str(error)[:1_000]}) + b"\n"
