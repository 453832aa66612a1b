"""The leaves of the verifier's own log: everything that someone might later dispute.

    {"body":{…},"index":7,"time_us":1790000081000000,"type":"node_checkpoint","v":1}

Served as C2SP tlog-tiles under the origin ``<deployment>/log``.
"""

from typing import Annotated, Any, Final, Literal, get_args

import msgspec

from keyturn_protocol.canonical import Hex32, Positive, Record, Text, UInt, decode, encode_record
from keyturn_protocol.entry_switch import LeaseKind


class InitBody(Record, frozen=True, kw_only=True):
    """The first leaf: who this log belongs to and with which keys it began."""

    deployment: str
    log_vkey: str
    receipt_vkey: str


class EnrolmentBody(Record, frozen=True, kw_only=True):
    """A node's log was opened. ``token_sha256`` is of the join token; null for a later incarnation."""

    origin: str
    node_id: str
    incarnation: Positive
    public_key: Hex32
    organisation: Text
    site: Text
    token_sha256: Hex32 | None


class NodeCheckpointBody(Record, frozen=True, kw_only=True):
    """Entries ``start`` … ``size - 1`` were received under this root and receipted at ``receipt_s``."""

    origin: str
    start: UInt
    size: Positive
    root: Hex32
    segment_sha256: Hex32
    receipt_s: UInt


class LogFrozenBody(Record, frozen=True, kw_only=True):
    """A node signed what it must not; ``evidence_sha256`` is of the segment that is kept."""

    origin: str
    reason: Literal["fork", "invalid_entries"]
    size: UInt
    signed_root: Hex32
    evidence_sha256: Hex32


class StatementBody(Record, frozen=True, kw_only=True):
    """Somebody signed something, and it counts from here on; ``sha256`` is of its payload."""

    kind: Annotated[str, msgspec.Meta(pattern=r"\A[a-z][a-z0-9_]{0,31}\Z")]
    sha256: Hex32


class LeaseBody(Record, frozen=True, kw_only=True):
    """A node was granted a lease; ``sha256`` is of its text (:mod:`keyturn_protocol.lease`)."""

    kind: LeaseKind
    sha256: Hex32


class LeftOut(Record, frozen=True, kw_only=True):
    """An enrolled log that is not in a bundle, and why."""

    origin: str
    reason: Text


class ExportBody(Record, frozen=True, kw_only=True):
    """An evidence bundle was exported: all of its manifest that nothing else in the bundle fixes.

    ``until_us`` is the moment of export: silence is counted up to it. The bundle's manifest names this leaf's
    index and must repeat its fields.
    """

    until_us: UInt
    case: Text | None
    exporter: Text
    root_sha256: Hex32 | None
    chip_table: Text
    left_out: list[LeftOut]


class _Leaf(Record, frozen=True, kw_only=True, tag_field="type"):
    v: Literal[1]
    index: UInt
    time_us: UInt


class Init(_Leaf, frozen=True, kw_only=True, tag="init"):
    body: InitBody


class Enrolment(_Leaf, frozen=True, kw_only=True, tag="enrolment"):
    body: EnrolmentBody


class NodeCheckpoint(_Leaf, frozen=True, kw_only=True, tag="node_checkpoint"):
    body: NodeCheckpointBody


class LogFrozen(_Leaf, frozen=True, kw_only=True, tag="log_frozen"):
    body: LogFrozenBody


class Statement(_Leaf, frozen=True, kw_only=True, tag="statement"):
    body: StatementBody


class Lease(_Leaf, frozen=True, kw_only=True, tag="lease"):
    body: LeaseBody


class Export(_Leaf, frozen=True, kw_only=True, tag="export"):
    body: ExportBody


Leaf = Init | Enrolment | NodeCheckpoint | LogFrozen | Statement | Lease | Export
LeafBody = InitBody | EnrolmentBody | NodeCheckpointBody | LogFrozenBody | StatementBody | LeaseBody | ExportBody


_LEAF_OF_BODY: Final[dict[type, Any]] = {kind.__annotations__["body"]: kind for kind in get_args(Leaf)}


def format_leaf(index: int, time_us: int, body: LeafBody) -> bytes:
    """The canonical bytes of a leaf."""
    leaf: Leaf = _LEAF_OF_BODY[type(body)](v=1, index=index, time_us=time_us, body=body)
    return encode_record(leaf)


def parse_leaf(data: bytes) -> Leaf:
    """Parse a leaf; raises ``too_large`` or ``not_canonical``."""
    leaf: Leaf = decode(data, Leaf)
    return leaf
