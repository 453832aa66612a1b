"""Names of things: deployments, nodes, logs, workloads.

A log is one incarnation of one node, and its origin says so::

    keyturn.example.org/node/6f0c1d…e9/1
    └─ deployment ─────┘      └ node ┘ └ incarnation, from 1
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NewType

from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.limits import DEPLOYMENT_CHARS, MAX_INT, WORKLOAD_CHARS

Deployment = NewType("Deployment", str)
"""Schema-less URL that names one installation and is the prefix of all of its origins."""
NodeId = NewType("NodeId", str)
"""32 hex digits: the first 16 bytes of SHA-256 over the SPKI DER of the enrolment public key."""
Origin = NewType("Origin", str)
"""``<deployment>/node/<node_id>/<incarnation>``; also the key name of the log's signatures."""
WorkloadId = NewType("WorkloadId", str)
"""``<kind>:<name>``, or one of the pools :data:`UNATTRIBUTED` and :data:`GAP`."""
Hash = NewType("Hash", bytes)
"""32 bytes of SHA-256."""

UNATTRIBUTED: Final = WorkloadId("unattributed")
"""Measured, but by no visible workload."""
GAP: Final = WorkloadId("gap")
"""Not measured at all: the pool of what any workload might have done."""

_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DEPLOYMENT: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*(?:/[a-z0-9][a-z0-9._-]{{0,62}})*", re.ASCII)
_NODE: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_ORIGIN: Final = re.compile(
    r"(?P<deployment>.+)/node/(?P<node>[0-9a-f]{32})/(?P<incarnation>[1-9][0-9]{0,15})", re.ASCII
)
_WORKLOAD: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}:[!-~]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class LogName:
    """The parts of an origin."""

    deployment: Deployment
    node_id: NodeId
    incarnation: int

    @property
    def origin(self) -> Origin:
        return Origin(f"{self.deployment}/node/{self.node_id}/{self.incarnation}")


@lru_cache(maxsize=64)
@lru_cache(maxsize=64)
def deployment(text: str) -> Deployment:
    """Check the syntax of a deployment's name: lower-case host labels, then optional path elements."""
    if len(text) > DEPLOYMENT_CHARS or not _DEPLOYMENT.fullmatch(text):
        raise ProtocolError(
            Code.BAD_IDENTIFIER,
            "not the name of a deployment",
            expected=f"a lower-case schema-less URL such as keyturn.example.org, at most {DEPLOYMENT_CHARS} characters",
            got=text,
        )
    return Deployment(text)


def node_id(text: str) -> NodeId:
    """Check the syntax of a node id."""
    if not _NODE.fullmatch(text):
        raise ProtocolError(Code.BAD_IDENTIFIER, "not a node id", expected="32 lower-case hex digits", got=text)
    return NodeId(text)


def parse_origin(text: str) -> LogName:
    """Take an origin apart; ``parse_origin(x).origin == x`` for everything that it accepts."""
    match = _ORIGIN.fullmatch(text)
    if match is None or int(match["incarnation"]) > MAX_INT:
        raise ProtocolError(
            Code.BAD_IDENTIFIER,
            "not the origin of a node's log",
            expected="<deployment>/node/<32 hex digits>/<incarnation from 1>",
            got=text,
        )
    return LogName(deployment(match["deployment"]), NodeId(match["node"]), int(match["incarnation"]))


@lru_cache(maxsize=65_536)
def workload_id(text: str) -> WorkloadId:
    """Check the syntax of a workload's id. The pools are not workloads and are refused here."""
    if len(text) > WORKLOAD_CHARS or not _WORKLOAD.fullmatch(text):
        raise ProtocolError(
            Code.BAD_IDENTIFIER,
            "not a workload id",
            expected=f"<kind>:<name> in visible ASCII, at most {WORKLOAD_CHARS} characters",
            got=text,
        )
    return WorkloadId(text)


def log_origin(name: Deployment) -> str:
    """Origin and key name of the verifier's own log."""
    return f"{name}/log"


def receipt_name(name: Deployment) -> str:
    """Key name of the verifier's receipts, which are cosignatures."""
    return f"{name}/receipt"


def lease_name(name: Deployment) -> str:
    """Key name of the verifier's leases."""
    return f"{name}/lease"
