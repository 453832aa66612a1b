"""The HTTP interface between agents, verifier and readers: routes, bodies and problem codes.

    POST /v1/join                            JoinRequest (JSON) → JoinResponse
    POST /v1/segments                        a segment, zstd → its receipt (text/plain)
    POST /v1/statements                      a statement by people, in its envelope → StatementItem
    GET  /v1/logs/<node_id>/<inc>/head       the node's own checkpoint with its receipt (text/plain)
    GET  /v1/nodes, /v1/workloads, /v1/findings      Page of NodeLog, WorkloadTotal, FindingItem; bearer token
    GET  /v1/usage                           Page of UsageRow; bearer token
    GET  /log/checkpoint, /log/tile/<L>/…    the verifier's own log (C2SP tlog-tiles), public
    GET  /log/tile/entries/…                 its leaves; bearer token
    GET  /healthz                            liveness

Errors are RFC 9457 ``application/problem+json`` bodies with a stable ``code`` out of :class:`ProblemCode`.
"""

from enum import StrEnum
from typing import Annotated, Final, Generic, Literal, TypeVar

import msgspec

from keyturn_protocol.canonical import Decimal, Record, Text, UInt
from keyturn_protocol.entry_log import Source
from keyturn_protocol.entry_usage import ShareClass

JOIN: Final = "/v1/join"
SEGMENTS: Final = "/v1/segments"
STATEMENTS: Final = "/v1/statements"
NODES: Final = "/v1/nodes"
WORKLOADS: Final = "/v1/workloads"
USAGE: Final = "/v1/usage"
FINDINGS: Final = "/v1/findings"
HEALTH: Final = "/healthz"
LOG: Final = "/log"
ENTRY_BUNDLES: Final = LOG + "/tile/entries"


def head_path(node_id: str, incarnation: int) -> str:
    """Where a log's newest receipted checkpoint is served."""
    return f"/v1/logs/{node_id}/{incarnation}/head"


SEGMENT_TYPE: Final = "application/vnd.keyturn.segment+zstd"
"""A zstd frame of a segment's bytes. ``text/plain`` is the same bytes uncompressed."""
RECEIPT_HEADER: Final = "Keyturn-Receipt"
"""With a segment that is sent again: the receipt line that the node holds for exactly this segment, in base64."""
PLAIN_TYPE: Final = "text/plain; charset=utf-8"
PROBLEM_TYPE: Final = "application/problem+json"


class ProblemCode(StrEnum):
    """Why a request was refused. Codes are stable; the HTTP status of each is :data:`STATUS`."""

    BAD_REQUEST = "bad_request"
    BAD_SEGMENT = "bad_segment"
    DAMAGED_SEGMENT = "damaged_segment"
    """Entries that don't hash to the signed root: a damaged copy, nothing is frozen."""
    BAD_SIGNATURE = "bad_signature"
    UNAUTHORIZED = "unauthorized"
    TOKEN_UNKNOWN = "token_unknown"  # noqa: S105
    TOKEN_EXPIRED = "token_expired"  # noqa: S105
    TOKEN_USED = "token_used"  # noqa: S105
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    UNKNOWN_LOG = "unknown_log"
    """No such log is enrolled or expected here; also another deployment's."""
    METHOD_NOT_ALLOWED = "method_not_allowed"
    TIMEOUT = "timeout"
    """The body took too long to arrive; send it again."""
    BEHIND = "behind"
    """The segment doesn't start at the known size; ``checkpoint`` holds the known head."""
    ALREADY_ENROLLED = "already_enrolled"
    TOO_LARGE = "too_large"
    UNSUPPORTED_TYPE = "unsupported_type"
    FORK = "fork"
    """Two signed heads of one size: both are kept and the log is frozen."""
    LOG_FROZEN = "log_frozen"
    LOG_CLOSED = "log_closed"
    """The log ended, by its own last entry or because signed entries broke the format."""
    INVALID_ENTRIES = "invalid_entries"
    """Signed and hashed correctly, but not canonical or not following from the log: kept, log closed."""
    BAD_STATEMENT = "bad_statement"
    """Not a statement, or one for another deployment or root."""
    STATEMENT_REFUSED = "statement_refused"
    """Signed by those who may, and against what was said before."""
    LEASE_REFUSED = "lease_refused"
    """The start switch grants no lease for this entry; the detail begins with its reason's code."""
    WAITING = "waiting"
    """Hosts that start together: fewer have asked than there are to be. Ask again."""
    BUSY = "busy"
    """A segment of this log is still being worked on."""
    OVERLOADED = "overloaded"
    UNKNOWN_OUTCOME = "unknown_outcome"
    """The database didn't say whether it committed; the retry finds out."""
    INTERNAL = "internal"


STATUS: Final[dict[ProblemCode, int]] = {
    ProblemCode.BAD_REQUEST: 400,
    ProblemCode.BAD_SEGMENT: 400,
    ProblemCode.DAMAGED_SEGMENT: 400,
    ProblemCode.BAD_STATEMENT: 400,
    ProblemCode.UNAUTHORIZED: 401,
    ProblemCode.BAD_SIGNATURE: 403,
    ProblemCode.TOKEN_UNKNOWN: 403,
    ProblemCode.TOKEN_EXPIRED: 403,
    ProblemCode.TOKEN_USED: 403,
    ProblemCode.FORBIDDEN: 403,
    ProblemCode.NOT_FOUND: 404,
    ProblemCode.UNKNOWN_LOG: 404,
    ProblemCode.METHOD_NOT_ALLOWED: 405,
    ProblemCode.TIMEOUT: 408,
    ProblemCode.BEHIND: 409,
    ProblemCode.ALREADY_ENROLLED: 409,
    ProblemCode.TOO_LARGE: 413,
    ProblemCode.UNSUPPORTED_TYPE: 415,
    ProblemCode.FORK: 422,
    ProblemCode.LOG_FROZEN: 422,
    ProblemCode.LOG_CLOSED: 422,
    ProblemCode.INVALID_ENTRIES: 422,
    ProblemCode.STATEMENT_REFUSED: 422,
    ProblemCode.LEASE_REFUSED: 422,
    ProblemCode.WAITING: 409,
    ProblemCode.BUSY: 429,
    ProblemCode.INTERNAL: 500,
    ProblemCode.OVERLOADED: 503,
    ProblemCode.UNKNOWN_OUTCOME: 503,
}


class Problem(Record, frozen=True, kw_only=True):
    """An RFC 9457 problem. ``checkpoint``: the known head as a cosigned note, with ``behind``."""

    type: str
    title: str
    status: UInt
    code: str
    detail: str
    checkpoint: str | None


def problem(code: ProblemCode, detail: str, checkpoint: str | None = None) -> Problem:
    """The body for ``code``, with its status and title."""
    return Problem(
        type=f"urn:keyturn:problem:{code}",
        title=code.replace("_", " "),
        status=STATUS[code],
        code=code,
        detail=detail,
        checkpoint=checkpoint,
    )


class JoinRequest(Record, frozen=True, kw_only=True):
    """Announce a node: its log's vkey (whose name is the origin) and a join token.

    The token is used up with the first valid genesis segment of that log, not by this call.
    """

    token: Annotated[str, msgspec.Meta(max_length=256)]
    vkey: Annotated[str, msgspec.Meta(max_length=512)]


class JoinResponse(Record, frozen=True, kw_only=True):
    origin: str
    organisation: Text
    site: Text


class Trust(Record, frozen=True, kw_only=True):
    """``trust.json``: the verifier's keys, taken out of band; what agents and auditors pin before a root exists."""

    v: Literal[1]
    deployment: str
    log_vkey: str
    receipt_vkey: str


class OperatorKey(Record, frozen=True, kw_only=True):
    """Who may sign an operator's statements: a public key's text, a name for people, and when it ended, or null."""

    key: Annotated[str, msgspec.Meta(max_length=1_024)]
    name: Annotated[Text, msgspec.Meta(min_length=1)]
    until_us: UInt | None


class TrustWithOperators(Record, frozen=True, kw_only=True):
    """``trust.json``, version 2: the verifier's keys and those of its operators."""

    v: Literal[2]
    deployment: str
    log_vkey: str
    receipt_vkey: str
    operators: Annotated[list[OperatorKey], msgspec.Meta(max_length=256)]

    @property
    def verifier(self) -> Trust:
        """The verifier's keys alone, as a bundle claims them."""
        return Trust(v=1, deployment=self.deployment, log_vkey=self.log_vkey, receipt_vkey=self.receipt_vkey)


T = TypeVar("T")

PAGE_ITEMS: Final = 1_000
"""The most items of a page; ``?limit=`` asks for fewer."""
PAGE_BYTES: Final = 8 * 1024 * 1024


class Page(Record, Generic[T], frozen=True, kw_only=True):
    """A part of a list. ``next`` is what ``?after=`` takes to go on, opaque to the reader; null: this is the end."""

    items: list[T]
    next: str | None


class NodeLog(Record, frozen=True, kw_only=True):
    """One log in the list of nodes. Times are UTC µs; null where nothing was receipted yet."""

    origin: str
    node_id: str
    incarnation: UInt
    organisation: str
    site: str
    vkey: str
    source: Source | None
    size: UInt
    chips: UInt
    last_entry_us: UInt | None
    last_receipt_s: UInt | None
    state: Literal["open", "frozen", "closed"]
    reason: str | None


class FlopInterval(Record, frozen=True, kw_only=True):
    """FLOP as decimal strings; ``high`` null means unbounded."""

    low: Decimal
    best: Decimal
    high: Decimal | None


class WorkloadTotal(Record, frozen=True, kw_only=True):
    """What one workload, or a pool, used. ``undeclared`` rests on counters; ``declared`` also on its data type."""

    workload: str
    class_: ShareClass | None = msgspec.field(name="class")
    declared_dtype: str | None
    logs: UInt
    chips: UInt
    time_us: UInt
    gap_us: UInt
    energy_mj: Decimal | None
    from_s: UInt | None
    to_s: UInt | None
    undeclared: FlopInterval
    declared: FlopInterval | None


class FindingItem(Record, frozen=True, kw_only=True):
    """A finding as listed; see :mod:`keyturn_protocol.findings`."""

    code: str
    severity: str
    origin: str
    seq: UInt | None
    from_us: UInt | None
    to_us: UInt | None
    detail: str
