"""The HTTP interface as an OpenAPI document: paths and parameters from the routes themselves, bodies from the
structs that are sent, errors from the problem codes. Served, and committed as ``docs/openapi.json``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from fastapi import FastAPI

from keyturn_protocol import api, api_read, api_switch
from keyturn_protocol.api import PLAIN_TYPE, PROBLEM_TYPE, SEGMENT_TYPE, STATUS, ProblemCode, problem
from keyturn_protocol.openings import Openings
from keyturn_protocol.usage import UsageRow

C = ProblemCode
_JSON: Final = "application/json"
_ALWAYS: Final = (C.BAD_REQUEST, C.INTERNAL, C.OVERLOADED)
_READER: Final = (C.UNAUTHORIZED, C.FORBIDDEN)
_BODY: Final = (C.TOO_LARGE, C.TIMEOUT, C.UNKNOWN_OUTCOME)
_LOG: Final = api_read.LOGS + "/{node}/{incarnation}"
_ORIGIN: Final = "keyturn.example.org/node/6f0c1d2e3a4b5c6d7e8f90a1b2c3d4e9/1"
_HASH: Final = "5e" * 32
_ZERO: Final = {"low": "1419000000000000", "best": "23950000000000000", "high": "55700000000000000"}


@dataclass(frozen=True, slots=True)
class Says:
    """What a route answers and takes, beyond what its function's signature says."""

    answer: Any
    """A struct, or the name of a content type; None: nothing."""
    errors: tuple[ProblemCode, ...] = ()
    body: Any = None
    public: bool = False
    empty: bool = False
    """It may have nothing to say."""


def _page(kind: Any) -> Any:
    return api.Page[kind]


_LISTED: Final[dict[str, Says]] = {
    f"GET {api.NODES}": Says(_page(api.NodeLog)),
    f"GET {api.NODES}/{{node}}": Says(_page(api.NodeLog), (C.NOT_FOUND,)),
    f"GET {api_read.LOGS}": Says(_page(api.NodeLog)),
    f"GET {_LOG}": Says(api.NodeLog, (C.UNKNOWN_LOG,)),
    f"GET {_LOG}/head": Says(PLAIN_TYPE, (C.NOT_FOUND, C.UNKNOWN_LOG), public=True),
    f"GET {_LOG}/segments": Says(_page(api_read.SegmentItem), (C.UNKNOWN_LOG,)),
    f"GET {_LOG}/segments/{{start}}": Says(PLAIN_TYPE, (C.NOT_FOUND, C.UNKNOWN_LOG)),
    f"GET {_LOG}/segments/{{start}}/receipt": Says(PLAIN_TYPE, (C.NOT_FOUND, C.UNKNOWN_LOG)),
    f"GET {_LOG}/proof/inclusion": Says(api_read.InclusionProof, (C.UNKNOWN_LOG,)),
    f"GET {_LOG}/proof/consistency": Says(api_read.ConsistencyProof, (C.UNKNOWN_LOG,)),
    f"GET {api_read.VERIFIER_PROOFS}/inclusion": Says(api_read.InclusionProof, (C.NOT_FOUND,)),
    f"GET {api_read.VERIFIER_PROOFS}/consistency": Says(api_read.ConsistencyProof, (C.NOT_FOUND,)),
    f"GET {api.USAGE}": Says(_page(UsageRow)),
    f"GET {api_read.BUCKETS}": Says(_page(api_read.UsageBucket)),
    f"GET {api.WORKLOADS}": Says(_page(api.WorkloadTotal)),
    f"GET {api.FINDINGS}": Says(_page(api.FindingItem)),
    f"GET {api_read.GROUPS}": Says(_page(api_read.FindingGroup)),
    f"POST {api_read.CLOSE}": Says(api_read.Closing, (C.NOT_FOUND, *_BODY), api_read.CloseRequest),
    f"GET {api_read.MAINTENANCE}": Says(_page(api_read.Maintenance)),
    f"POST {api_read.MAINTENANCE}": Says(api_read.Maintenance, _BODY, api_read.MaintenanceRequest),
    f"POST {api_read.MAINTENANCE}/{{window}}/cancel": Says(api_read.Maintenance, (C.NOT_FOUND, C.UNKNOWN_OUTCOME)),
    f"GET {api.STATEMENTS}": Says(_page(api_read.StatementItem)),
    f"POST {api.STATEMENTS}": Says(
        api_read.StatementItem, (C.BAD_STATEMENT, C.BAD_SIGNATURE, C.STATEMENT_REFUSED, *_BODY), _JSON, public=True
    ),
    f"GET {api.STATEMENTS}/{{sha256}}": Says(_JSON, (C.NOT_FOUND,)),
    f"GET {api_switch.AUTHORITY}": Says(_JSON, (C.NOT_FOUND,), public=True, empty=True),
    f"GET {api_switch.RUNS}/{{run}}/permit": Says(_JSON, (C.NOT_FOUND,), public=True, empty=True),
    f"GET {api_switch.RUNS}": Says(_page(api_switch.RunItem)),
    f"GET {api_switch.RUNS}/{{run}}": Says(api_switch.RunView, (C.NOT_FOUND,)),
    f"GET {api_switch.RUNS}/{{run}}/openings": Says(Openings, (C.NOT_FOUND,)),
    f"POST {api_switch.RUNS}/{{run}}/openings": Says(None, (C.NOT_FOUND, *_BODY), Openings, public=True, empty=True),
    f"POST {api_switch.LEASES}": Says(
        PLAIN_TYPE, (C.NOT_FOUND, C.LEASE_REFUSED, C.WAITING, *_BODY), api_switch.LeaseRequest, public=True
    ),
    f"GET {api_switch.LEASES}": Says(_page(api_switch.LeaseItem)),
    f"GET {api_switch.ALLOWANCE}": Says(_page(api_switch.AllowanceItem)),
    f"GET {api_switch.LEASES}/{{sha256}}": Says(PLAIN_TYPE, (C.NOT_FOUND,)),
    f"GET {api_read.REPLACEMENTS}": Says(_page(api_read.ReplacementItem)),
    f"GET {api_read.BUNDLE}": Says(api_read.TAR_TYPE),
    f"POST {api.JOIN}": Says(
        api.JoinResponse,
        (C.TOKEN_UNKNOWN, C.TOKEN_EXPIRED, C.TOKEN_USED, C.UNKNOWN_LOG, C.ALREADY_ENROLLED, *_BODY),
        api.JoinRequest,
        public=True,
    ),
    f"POST {api.SEGMENTS}": Says(
        PLAIN_TYPE,
        (
            *(
                C.BAD_SEGMENT,
                C.DAMAGED_SEGMENT,
                C.BAD_SIGNATURE,
                C.TOKEN_EXPIRED,
                C.TOKEN_USED,
                C.UNKNOWN_LOG,
                C.BEHIND,
            ),
            *(C.ALREADY_ENROLLED, C.UNSUPPORTED_TYPE, C.FORK, C.LOG_FROZEN, C.LOG_CLOSED, C.INVALID_ENTRIES),
            C.BUSY,
            *_BODY,
        ),
        SEGMENT_TYPE,
        public=True,
    ),
    f"GET {api.LOG}/checkpoint": Says(PLAIN_TYPE, (C.NOT_FOUND,), public=True),
    f"GET {api.ENTRY_BUNDLES}/{{path}}": Says("application/octet-stream", (C.NOT_FOUND,)),
    f"GET {api.LOG}/{{path}}": Says("application/octet-stream", (C.NOT_FOUND,), public=True),
    f"GET {api.HEALTH}": Says(_JSON, public=True),
    f"GET {api_read.READY}": Says(_JSON, public=True),
    f"GET {api_read.METRICS}": Says(PLAIN_TYPE),
    f"GET {api_read.OPENAPI}": Says(_JSON, public=True),
}

_EXAMPLES: Final[dict[Any, Any]] = {
    api_read.InclusionProof: {
        **{"origin": _ORIGIN, "index": 0, "size": 2, "leaf_hash": _HASH, "root": _HASH, "hashes": [_HASH]}
    },
    api_read.ConsistencyProof: {
        **{"origin": _ORIGIN, "old_size": 1, "size": 2, "old_root": _HASH, "root": _HASH, "hashes": [_HASH]}
    },
    api_read.CloseRequest: {"code": "gap", "node_id": _ORIGIN.split("/")[2], "reason": "power supply replaced"},
    api_read.Closing: {
        **{"node_id": _ORIGIN.split("/")[2], "code": "gap", "reason": "power supply replaced"},
        **{"by": "reader-3", "closed_us": 1_790_000_000_000_000, "count": 2},
    },
    api_read.MaintenanceRequest: {
        **{"node_id": None, "site": "fra1", "reason": "new firmware"},
        **{"from_us": 1_790_000_000_000_000, "to_us": 1_790_007_200_000_000},
    },
    api_read.Maintenance: {
        **{"id": 1, "node_id": None, "site": "fra1", "reason": "new firmware", "by": "reader-3", "cancelled_us": None},
        **{"from_us": 1_790_000_000_000_000, "to_us": 1_790_007_200_000_000, "created_us": 1_789_990_000_000_000},
    },
    _page(api_read.SegmentItem): {"items": [{"start": 0, "end": 3, "sha256": _HASH}], "next": None},
    _page(api_read.UsageBucket): {
        "items": [
            {
                **{"from_s": 1_789_948_800, "to_s": 1_790_035_200, "by": "site", "key": "fra1", "logs": 1, "chips": 8},
                **{"time_us": 86_400_000_000, "gap_us": 0, "energy_mj": "12960000000"},
                **{"undeclared": _ZERO, "declared": None},
            }
        ],
        "next": None,
    },
}


def document(app: FastAPI) -> dict[str, Any]:
    """The document of an application.

    :raises KeyError: a route that :data:`_LISTED` lacks.
    """
    made: dict[str, Any] = app.openapi()
    paths: dict[str, Any] = made["paths"]
    paths[api.SEGMENTS] = {"post": {"summary": "Segments", "description": "Send a segment; its receipt comes back."}}
    kinds = [k for s in _LISTED.values() for k in (s.answer, s.body) if k is not None and not isinstance(k, str)]
    schemas, parts = msgspec.json.schema_components([*kinds, api.Problem], ref_template="#/components/schemas/{name}")
    by_kind = dict(zip([*kinds, api.Problem], schemas, strict=True))
    for path, ways in paths.items():
        for method, operation in ways.items():
            _complete(operation, _LISTED[f"{method.upper()} {path.replace('{path:path}', '{path}')}"], by_kind)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Keyturn verifier",
            "version": "1",
            "description": "What nodes, operators and auditors ask a verifier. Errors are RFC 9457 problems. Bodies "
            "that are hashed or signed, and those of /v1/join and /v1/leases, are canonical JSON (RFC 8785).",
        },
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": _plain(dict(sorted(parts.items()))),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _complete(operation: dict[str, Any], says: Says, by_kind: Mapping[Any, Any]) -> None:
    """Answers, errors, body and access of one operation."""
    operation.pop("operationId", None)
    if not says.public:
        operation["security"] = [{"token": []}]
    if says.body is not None:
        operation["requestBody"] = {"required": True, "content": _content(says.body, by_kind)}
    answers: dict[str, Any] = {}
    if says.answer is not None:
        answers["200"] = {"description": "as asked", "content": _content(says.answer, by_kind)}
    if says.empty:
        answers["204"] = {"description": "done" if says.answer is None else "nothing newer"}
    by_status: dict[int, list[ProblemCode]] = {}
    for code in (*_ALWAYS, *(() if says.public else _READER), *says.errors):
        by_status.setdefault(STATUS[code], []).append(code)
    for status, codes in sorted(by_status.items()):
        examples = {
            code: {"value": msgspec.to_builtins(problem(code, "what is wrong, for a person"))} for code in codes
        }
        answers[str(status)] = {
            "description": " or ".join(f"`{code}`" for code in codes),
            "content": {PROBLEM_TYPE: {"schema": by_kind[api.Problem], "examples": examples}},
        }
        if status in (429, 503) or C.WAITING in codes:
            answers[str(status)]["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    operation["responses"] = answers


def _content(kind: Any, by_kind: Mapping[Any, Any]) -> dict[str, Any]:
    if isinstance(kind, str):
        text = kind.startswith("text/")
        schema = {"type": "object"} if kind == _JSON else {"type": "string"} | ({} if text else {"format": "binary"})
        kinds = [kind, api_read.TAR_ZSTD_TYPE] if kind == api_read.TAR_TYPE else [kind]
        return {name.partition(";")[0]: {"schema": schema} for name in kinds}
    found = {"schema": _plain(by_kind[kind])}
    if kind in _EXAMPLES:
        found["example"] = _EXAMPLES[kind]
    return {_JSON: found}


def _plain(schema: Any) -> Any:
    """A schema whose patterns are those of ECMA 262, as JSON Schema wants them."""
    match schema:
        case dict():
            return {
                key: value.replace(r"\A", "^").replace(r"\Z", "$") if key == "pattern" else _plain(value)
                for key, value in schema.items()
            }
        case list():
            return [_plain(value) for value in schema]
        case _:
            return schema
