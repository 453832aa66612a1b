"""The evidence bundle: a folder from which a stranger recomputes every number, offline.

    bundle.json                                     the manifest: what is in here and under which hashes
    logs/<node_id>/<incarnation>/<start>-<end>.segment      decoded bytes as received
    logs/<node_id>/<incarnation>/<start>-<end>.receipt      the verifier's cosignature line
    verifier-log/checkpoint, verifier-log/tile/…    the verifier's own log, as C2SP tlog-tiles
    evidence/<sha256>.segment                       segments that froze a log
    statements/<sha256>.json                        what people signed, named by its payload's hash
    leases/<sha256>.lease                           leases that were issued, named by their text's hash
    totals.json                                     usage rows and gaps, compared as bytes

JSON files are canonical JSON without a newline. Keys in the manifest are claims: an auditor brings their own.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Protocol

import msgspec

from keyturn_protocol.api import OperatorKey, Trust, TrustWithOperators
from keyturn_protocol.canonical import Hex32, Record, Text, UInt, decode, parse
from keyturn_protocol.dsse import key_set
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import LogName, deployment, log_origin, parse_origin, receipt_name
from keyturn_protocol.keys import SignatureType, VerifierKey, parse_vkey
from keyturn_protocol.leaves import ExportBody
from keyturn_protocol.limits import MANIFEST_BYTES, MAX_INT, TRUST_BYTES
from keyturn_protocol.public_keys import PublicKey, parse_public_key

MANIFEST: Final = "bundle.json"
TOTALS: Final = "totals.json"
VERIFIER_LOG: Final = "verifier-log/"
EVIDENCE: Final = "evidence/"
STATEMENTS: Final = "statements/"
LEASES: Final = "leases/"

_SEGMENT: Final = re.compile(r"(?P<start>0|[1-9][0-9]{0,15})-(?P<end>[1-9][0-9]{0,15})\.segment", re.ASCII)
_PATH: Final = re.compile(r"[a-z0-9][a-z0-9._-]*(?:/[a-z0-9][a-z0-9._-]*)*", re.ASCII)


class LogRef(Record, frozen=True, kw_only=True):
    """One log in the bundle: ``size`` entries, under the key that the exporter claims for it."""

    origin: str
    vkey: str
    organisation: Text
    site: Text
    size: UInt


class Manifest(Record, frozen=True, kw_only=True):
    """``bundle.json``. ``export`` repeats the body of the ``export`` leaf at ``export_index`` of the verifier's log,
    appended by the export itself, so that no field of a manifest can be changed unseen.
    """

    v: Literal[1]
    deployment: str
    export_index: UInt
    export: ExportBody
    verifier: Trust
    logs: list[LogRef]
    files: dict[Annotated[str, msgspec.Meta(max_length=400)], Hex32]
    """Every file but this one, by path, with the SHA-256 of its bytes."""


class BundleReader(Protocol):
    """Where a bundle's bytes come from; picklable, so that logs can be audited side by side."""

    def paths(self) -> Iterable[str]:
        """Every file's path, with ``/`` between its elements, in no particular order."""
        ...

    def read(self, path: str) -> bytes:
        """The bytes of one file; raises :class:`ProtocolError` (``bad_bundle``) if it isn't there or over its cap."""
        ...


def log_folder(name: LogName) -> str:
    """The folder of one log's segments, with a slash at its end."""
    return f"logs/{name.node_id}/{name.incarnation}/"


def segment_path(name: LogName, start: int, end: int) -> str:
    """Where a segment lies; its receipt has :func:`receipt_path`."""
    return f"{log_folder(name)}{start}-{end}.segment"


def receipt_path(segment: str) -> str:
    """The receipt beside a segment's path."""
    return segment.removesuffix(".segment") + ".receipt"


def evidence_path(sha256: str) -> str:
    """Where the segment that froze a log is kept."""
    return f"{EVIDENCE}{sha256}.segment"


def statement_path(sha256: str) -> str:
    """Where a statement's envelope is kept."""
    return f"{STATEMENTS}{sha256}.json"


def lease_path(sha256: str) -> str:
    """Where a lease's note is kept."""
    return f"{LEASES}{sha256}.lease"


def parse_segment_name(name: str) -> tuple[int, int]:
    """``<start>-<end>.segment`` → (start, end)."""
    match = _SEGMENT.fullmatch(name)
    if match is None or not int(match["start"]) < int(match["end"]) <= MAX_INT:
        raise ProtocolError(Code.BAD_BUNDLE, "not a segment's file name", expected="<start>-<end>.segment", got=name)
    return int(match["start"]), int(match["end"])


def parse_manifest(data: bytes) -> Manifest:
    """Parse and check a manifest; its keys are well-formed, but still only claims.

    :raises ProtocolError: ``bad_bundle``, ``not_canonical``, ``bad_key`` or ``bad_identifier``.
    """
    manifest: Manifest = decode(data, Manifest, limit=MANIFEST_BYTES)
    check_trust(manifest.verifier)
    if manifest.verifier.deployment != manifest.deployment:
        raise ProtocolError(
            Code.BAD_BUNDLE,
            "verifier of another deployment",
            expected=manifest.deployment,
            got=manifest.verifier.deployment,
        )
    origins = [*(ref.origin for ref in manifest.logs), *(left.origin for left in manifest.export.left_out)]
    if any(list(part) != sorted(part) for part in (origins[: len(manifest.logs)], origins[len(manifest.logs) :])):
        raise ProtocolError(Code.BAD_BUNDLE, "logs are listed in the order of their origins")
    if len(set(origins)) != len(origins):
        raise ProtocolError(Code.BAD_BUNDLE, "a log is named twice")
    for origin in origins:
        if parse_origin(origin).deployment != manifest.deployment:
            raise ProtocolError(Code.BAD_BUNDLE, "log of another deployment", expected=manifest.deployment, got=origin)
    for ref in manifest.logs:
        key = parse_vkey(ref.vkey)
        if key.name != ref.origin or key.kind is not SignatureType.ED25519:
            raise ProtocolError(Code.BAD_BUNDLE, "log with a key of another name", expected=ref.origin, got=key.name)
    for path in manifest.files:
        if not _PATH.fullmatch(path) or path == MANIFEST:
            raise ProtocolError(Code.BAD_BUNDLE, "not a path of a bundle", got=path)
    return manifest


@dataclass(frozen=True, slots=True)
class Anchor:
    """What a trust file pins."""

    trust: Trust
    operators: tuple[OperatorKey, ...] | None
    """None: a file of version 1, which says nothing about operators."""


def parse_trust(data: bytes) -> Trust:
    """The verifier's keys in a trust file of any version.

    :raises ProtocolError: as :func:`parse_anchor`.
    """
    return parse_anchor(data).trust


def parse_anchor(data: bytes) -> Anchor:
    """Parse ``trust.json``.

    :raises ProtocolError: ``too_large``, ``bad_trust``, ``not_canonical``, ``bad_key`` or ``bad_identifier``.
    """
    anchor = decode_anchor(data)
    check_trust(anchor.trust)
    return anchor


def decode_anchor(data: bytes) -> Anchor:
    """:func:`parse_anchor` without the check of the verifier's keys."""
    if len(data) > TRUST_BYTES:
        raise ProtocolError(Code.TOO_LARGE, "trust file over its cap", expected=f"<= {TRUST_BYTES}", got=len(data))
    try:
        version: _Version = parse(data, _Version)
        newer = version.v == 2
    except ProtocolError:
        newer = False
    if not newer:
        old: Trust = decode(data, Trust, limit=TRUST_BYTES)
        return Anchor(old, None)
    file: TrustWithOperators = decode(data, TrustWithOperators, limit=TRUST_BYTES)
    operator_keys(file.operators)
    return Anchor(file.verifier, tuple(file.operators))


class _Version(msgspec.Struct):
    v: int


def operator_keys(operators: Iterable[OperatorKey], at_us: int | None = None) -> dict[str, PublicKey]:
    """The keys of operators by their ids; those that are good at a time, if one is given.

    :raises ProtocolError: ``bad_key``, also for a key that is listed twice, in whatever form.
    """
    return key_set(
        parse_public_key(one.key) for one in operators if at_us is None or one.until_us is None or at_us < one.until_us
    )


def check_trust(trust: Trust) -> tuple[VerifierKey, VerifierKey]:
    """The verifier's log key and receipt key, with the names and types that they must have.

    :raises ProtocolError: ``bad_trust``; also when both are one key, since a cosigner's key signs nothing else.
    """
    name = deployment(trust.deployment)
    log, receipt = parse_vkey(trust.log_vkey), parse_vkey(trust.receipt_vkey)
    wanted = (
        (log, log_origin(name), SignatureType.ED25519),
        (receipt, receipt_name(name), SignatureType.COSIGNATURE_ED25519),
    )
    for key, expected, kind in wanted:
        if key.name != expected or key.kind is not kind:
            raise ProtocolError(
                Code.BAD_TRUST,
                "key of another name or type",
                expected=f"{expected} ({kind.name})",
                got=f"{key.name} ({key.kind.name})",
            )
    if log.public_key == receipt.public_key:
        raise ProtocolError(Code.BAD_TRUST, "log and receipts have one key", expected="a key for each purpose")
    return log, receipt
