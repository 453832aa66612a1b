"""The part of the HTTP interface that the start switch is worked with, by hosts and by people.

    GET  /v1/authority                      every root and policy, as a permit bundle of no run; public
    GET  /v1/runs/<run>/permit              the permit bundle of a run; who knows its hash may have it
           ?after=INDEX&wait_s=25           204, unless there is something in a leaf after INDEX within that time
    POST /v1/leases                         LeaseRequest → a lease, a signed note (text/plain); the entry is signed
    GET  /v1/leases?run=…                   Page of LeaseItem; bearer token
    GET  /v1/leases/<sha256>                a lease; bearer token
    GET  /v1/allowance                      Page of AllowanceItem; bearer token
    GET  /v1/runs                           Page of RunItem; bearer token
    GET  /v1/runs/<run>                     RunView; bearer token
    GET  /v1/runs/<run>/openings            what the commitments of a run open to, as far as it was given; bearer token
    POST /v1/runs/<run>/openings            the same, from whoever has it: each value must open its commitment

A run is named by the hash of its request. What is shown here is for people: hosts and auditors compute it from what
was signed (:mod:`keyturn_protocol.permit`, :mod:`keyturn_protocol.audit`).
"""

from typing import Annotated, Final, Literal

import msgspec

from keyturn_protocol.allowance import By
from keyturn_protocol.api import FindingItem
from keyturn_protocol.canonical import Hex32, Positive, Record, Text, UInt
from keyturn_protocol.entry_switch import Checked, LeaseKind
from keyturn_protocol.lifecycle import State
from keyturn_protocol.root import Class
from keyturn_protocol.runs import Scope
from keyturn_protocol.values import SpecPart

AUTHORITY: Final = "/v1/authority"
RUNS: Final = "/v1/runs"
LEASES: Final = "/v1/leases"
ALLOWANCE: Final = "/v1/allowance"
WAIT_S: Final = 60
"""The longest that a request waits for news."""
EVENTS: Final = 256
"""The newest statements about a run that a view of it shows; ``/v1/statements?run=`` has all of them."""
RUN_FINDINGS: Final = 256
"""The gravest findings about a run that a view of it shows; where there are so many there may be more."""


def permit_path(run: str) -> str:
    """Where the permit bundle of a run is served."""
    return f"{RUNS}/{run}/permit"


def openings_path(run: str) -> str:
    """Where the openings of a run are given and served."""
    return f"{RUNS}/{run}/openings"


class LeaseRequest(Record, frozen=True, kw_only=True):
    """Lease what the ``permit`` entry ``seq`` of a log asks for. The same entry gets the same lease, always."""

    origin: Annotated[str, msgspec.Meta(max_length=255)]
    seq: UInt


class ProposalItem(Record, frozen=True, kw_only=True):
    """A resumption, revocation or amendment that is being decided on."""

    sha256: Hex32
    kind: Literal["resume", "revoke", "amend"]
    person: str
    time_us: UInt
    decide_by_us: UInt
    tier: str


class RunItem(Record, frozen=True, kw_only=True):
    """A run in a list, as of now. ``index`` and ``time_us`` are of its request's leaf.

    ``decide_by_us`` is null once it is decided, ``start_by_us`` before that and once it has started.
    """

    run: Hex32
    index: UInt
    time_us: UInt
    label: Text
    lineage: Text
    requester: str
    tier: str
    state: State
    budget_tflop: Positive
    charged_tflop: UInt
    chips: Positive
    """At once, by its scope."""
    decide_by_us: UInt | None
    start_by_us: UInt | None
    stop_at_us: UInt | None
    proposals: list[ProposalItem]


class Signed(Record, frozen=True, kw_only=True):
    """Somebody's last word on a run's request. ``counts``: towards its approval, as things stand.

    ``organisation`` and ``class`` are null for a person that the root in force doesn't have any more.
    """

    person: str
    party: str
    organisation: str | None
    class_: Class | None = msgspec.field(name="class")
    verdict: Literal["approve", "deny", "veto"]
    narrows: bool
    time_us: UInt
    sha256: Hex32
    counts: bool


class Missing(Record, frozen=True, kw_only=True):
    """What a request lacks; nothing, once it is decided."""

    persons: UInt
    organisations: UInt
    classes: dict[Class, Positive]
    text: Text


class SuspensionItem(Record, frozen=True, kw_only=True):
    """A suspension in force. ``stop_at_us``: when the run stops if nobody else suspends it too."""

    sha256: Hex32
    person: str
    party: str
    organisation: str
    time_us: UInt
    stop_at_us: UInt


class EndedItem(Record, frozen=True, kw_only=True):
    """How a run ended by somebody's word."""

    time_us: UInt
    sha256: Hex32
    why: Text


class RunEvent(Record, frozen=True, kw_only=True):
    """A statement about a run. ``verdict`` is a decision's."""

    index: UInt
    time_us: UInt
    kind: str
    sha256: Hex32
    person: str
    verdict: Literal["approve", "deny", "veto"] | None


class RunView(RunItem, frozen=True, kw_only=True):
    """All of a run on one screen. TFLOP are the high end; ``left`` is what can still be leased.

    ``notice_s`` after a suspension every host stops that hears of it; ``worst_stop_s`` after it the last one that
    doesn't has no lease any more.
    """

    purpose: Text
    policy: Hex32
    policy_version: Positive
    scope: Scope
    """What is allowed; before a permit, what is asked for."""
    spec: dict[SpecPart, Hex32 | None]
    verified: list[SpecPart]
    """Parts that a host must have checked itself."""
    checked: dict[SpecPart, Checked]
    """What the hosts that hold its leases said of each part, of all of them the weakest word; empty without a lease."""
    signed: list[Signed]
    missing: Missing
    veto: list[Class]
    permit_index: UInt | None
    permit_us: UInt | None
    started_us: UInt | None
    epoch: UInt
    suspensions: list[SuspensionItem]
    after: list[Hex32]
    """Every event since the permit, oldest first: what a proposal answers."""
    ended: EndedItem | None
    committed_tflop: UInt
    left_tflop: UInt
    leases: UInt
    """Open ones."""
    leased_chips: UInt
    notice_s: UInt
    worst_stop_s: UInt
    events: list[RunEvent]
    """The newest :data:`EVENTS`, oldest first."""
    findings: list[FindingItem]
    """The gravest :data:`RUN_FINDINGS` of the logs that hold its leases, from the first of them on: what they said of
    leases, what is stored, gaps, chips that two nodes claim. ``/v1/findings`` has what only totals show."""


class LeaseItem(Record, frozen=True, kw_only=True):
    """A lease as it was issued, and what its node has said since.

    ``charged_tflop`` is the node's, under every lease of the same subject; ``heard_us`` when it was last heard of.
    """

    sha256: Hex32
    index: UInt
    time_us: UInt
    kind: LeaseKind
    run: Hex32 | None
    organisation: Text | None
    lineage: Text | None
    node_id: str
    sequence: UInt
    chips: UInt
    upto_tflop: Positive
    charged_tflop: UInt
    expires_us: UInt
    heard_us: UInt
    open: bool


class AllowanceItem(Record, frozen=True, kw_only=True):
    """What is left of an allowance: of an organisation, of a lineage, whoever runs it, or of a node's diagnostics.

    A lease of the allowance takes of its organisation's *and* of its lineage's. ``free`` is what is left of the limit
    by what was reported in the last ``window_s``, and what leases may still use, or may have used without a report.
    """

    by: By
    name: Text
    window_s: Positive
    limit_tflop: UInt
    used_tflop: UInt
    outstanding_tflop: UInt
    free_tflop: UInt
