"""The part of the HTTP interface that auditors and operators read, and what operators answer findings with.

    GET  /v1/nodes/<node_id>                                Page of NodeLog: every log of one node
    GET  /v1/logs, /v1/logs/<node_id>/<inc>                 Page of NodeLog; one NodeLog
    GET  /v1/logs/<node_id>/<inc>/segments                  Page of SegmentItem
    GET  /v1/logs/<node_id>/<inc>/segments/<start>          the segment's bytes (text/plain); …/receipt its receipt
    GET  /v1/logs/<node_id>/<inc>/proof/inclusion           InclusionProof of an entry, by index and size
    GET  /v1/logs/<node_id>/<inc>/proof/consistency         ConsistencyProof between two sizes
    GET  /v1/log/proof/inclusion, …/consistency             the same of the verifier's own log
    GET  /v1/usage/buckets                                  Page of UsageBucket
    GET  /v1/findings/groups                                Page of FindingGroup
    POST /v1/findings/close                                 CloseRequest → Closing
    GET, POST /v1/maintenance                               Page of Maintenance; MaintenanceRequest → Maintenance
    POST /v1/maintenance/<id>/cancel                        → Maintenance
    GET  /v1/statements, /v1/statements/<sha256>            Page of StatementItem; a statement's envelope
    GET  /v1/replacements                                   Page of ReplacementItem
    GET  /v1/bundle                                         an evidence bundle as a tar stream
    GET  /readyz, /metrics, /openapi.json                   readiness, Prometheus text, this interface

Closings and maintenance windows are an operator's words about findings. They are no evidence: they remove no finding
from ``/v1/findings``, from a bundle or from an audit.
"""

from typing import Annotated, Final, Literal

import msgspec

from keyturn_protocol.api import FlopInterval
from keyturn_protocol.canonical import Decimal, Hex32, Positive, Record, Text, UInt
from keyturn_protocol.findings import FindingCode

LOGS: Final = "/v1/logs"
VERIFIER_PROOFS: Final = "/v1/log/proof"
BUCKETS: Final = "/v1/usage/buckets"
GROUPS: Final = "/v1/findings/groups"
CLOSE: Final = "/v1/findings/close"
MAINTENANCE: Final = "/v1/maintenance"
REPLACEMENTS: Final = "/v1/replacements"
BUNDLE: Final = "/v1/bundle"
READY: Final = "/readyz"
METRICS: Final = "/metrics"
OPENAPI: Final = "/openapi.json"

TAR_TYPE: Final = "application/x-tar"
TAR_ZSTD_TYPE: Final = "application/zstd"

Bucket = Literal["hour", "day", "month"]
By = Literal["workload", "organisation", "site", "node", "chip"]
GroupState = Literal["open", "closed", "maintenance"]
NodeIdText = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
Reason = Annotated[Text, msgspec.Meta(min_length=1)]

QUIET: Final = frozenset(
    {
        FindingCode.GAP,
        FindingCode.UNMEASURED,
        FindingCode.CLOCK_STEP,
        FindingCode.RECOVERED,
        FindingCode.DEGRADED,
        FindingCode.PAUSED,
        FindingCode.NEW_INCARNATION,
    }
)
"""What a maintenance window may explain: what reboots do. Evidence against evidence is never among it."""


class SegmentItem(Record, frozen=True, kw_only=True):
    """Entries ``start`` … ``end - 1`` as they were received; ``sha256`` is of the segment's bytes."""

    start: UInt
    end: Positive
    sha256: Hex32


class StatementItem(Record, frozen=True, kw_only=True):
    """A statement by people: leaf ``index`` of the verifier's log, made at ``time_us``; ``sha256`` of its payload."""

    index: UInt
    time_us: UInt
    kind: str
    sha256: Hex32


class ReplacementItem(Record, frozen=True, kw_only=True):
    """Node ``new`` replaces node ``old``, says the statement ``sha256``, which is leaf ``index``."""

    index: UInt
    time_us: UInt
    sha256: Hex32
    old: str
    new: str
    reason: Text


class InclusionProof(Record, frozen=True, kw_only=True):
    """RFC 9162 §2.1.3: that the leaf at ``index`` is in the tree of ``size`` leaves; ``hashes`` from the leaf up."""

    origin: str
    index: UInt
    size: Positive
    leaf_hash: Hex32
    root: Hex32
    hashes: list[Hex32]


class ConsistencyProof(Record, frozen=True, kw_only=True):
    """RFC 9162 §2.1.4: that the tree of ``size`` leaves begins with that of ``old_size`` leaves."""

    origin: str
    old_size: Positive
    size: Positive
    old_root: Hex32
    root: Hex32
    hashes: list[Hex32]


class UsageBucket(Record, frozen=True, kw_only=True):
    """What one group used in a span of time, all its workloads and pools together; POSIX seconds, UTC."""

    from_s: UInt
    to_s: UInt
    by: By
    key: str
    logs: UInt
    chips: UInt
    time_us: UInt
    gap_us: UInt
    energy_mj: Decimal | None
    undeclared: FlopInterval
    declared: FlopInterval | None


class FindingGroup(Record, frozen=True, kw_only=True):
    """All findings of one code on one node, as one line; or of one code within one maintenance window.

    ``node_id`` is null for a window, which can have many ``nodes``. ``reason`` and ``by`` are those of the closing
    or window.
    """

    node_id: str | None
    nodes: Positive
    code: FindingCode
    severity: str
    state: GroupState
    count: Positive
    from_us: UInt | None
    to_us: UInt | None
    detail: str
    window: UInt | None
    reason: str | None
    by: str | None


class CloseRequest(Record, frozen=True, kw_only=True):
    """Close what is found of ``code`` on a node so far; what begins later opens it again."""

    node_id: NodeIdText
    code: FindingCode
    reason: Reason


class Closing(Record, frozen=True, kw_only=True):
    """A closing as recorded. ``by`` is the id of the token that was used; ``count`` how many findings there were."""

    node_id: str
    code: FindingCode
    reason: str
    by: str
    closed_us: UInt
    count: Positive


class MaintenanceRequest(Record, frozen=True, kw_only=True):
    """Announce work: on one node, on a site (as nodes enrolled with it), or, both null, everywhere."""

    node_id: NodeIdText | None
    site: Text | None
    from_us: UInt
    to_us: UInt
    reason: Reason


class Maintenance(Record, frozen=True, kw_only=True):
    """A window as recorded. A cancelled one explains nothing."""

    id: Positive
    node_id: str | None
    site: str | None
    from_us: UInt
    to_us: UInt
    reason: str
    by: str
    created_us: UInt
    cancelled_us: UInt | None
