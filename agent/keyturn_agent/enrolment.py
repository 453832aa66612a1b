"""What a host is told once: which verifier, under which keys, and what it is called there."""

from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from keyturn_agent.errors import UsageError
from keyturn_agent.identity import __version__, code_sha256
from keyturn_protocol.api import Trust
from keyturn_protocol.bundle import decode_anchor
from keyturn_protocol.canonical import Hex32, Record, decode, encode
from keyturn_protocol.entry_log import GenesisBody, Previous, Source
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.ids import deployment, log_origin, receipt_name
from keyturn_protocol.keys import SignatureType, VerifierKey, parse_vkey
from keyturn_protocol.limits import TRUST_BYTES
from keyturn_protocol.root import Standing


class _Unrooted(Record, frozen=True, kw_only=True):
    """``config.json`` of a host that was enrolled before there was a root."""

    v: Literal[1]
    deployment: str
    node_id: str
    public_key: Hex32
    verifier: str
    source: Source
    organisation: str
    site: str
    trust_sha256: Hex32


class Enrolment(Record, frozen=True, kw_only=True):
    """The file ``config.json`` of a state folder; written last, so that it stands for all of them.

    ``root_sha256`` is the pinned root, null without one: then ``trust_sha256`` is all that the verifier's keys rest on.
    """

    v: Literal[2]
    deployment: str
    node_id: str
    public_key: Hex32
    verifier: str
    source: Source
    organisation: str
    site: str
    trust_sha256: Hex32
    root_sha256: Hex32 | None


def format_enrolment(enrolment: Enrolment) -> bytes:
    """The bytes of ``config.json``; without a root those that every version of the agent reads."""
    if enrolment.root_sha256 is not None:
        return encode(enrolment)
    return encode(_Unrooted(v=1, **{name: getattr(enrolment, name) for name in _FIELDS}))


def parse_enrolment(data: bytes, limit: int) -> Enrolment:
    """:raises ProtocolError: not an enrolment of any version."""
    if b',"root_sha256":"' not in data:
        old: _Unrooted = decode(data, _Unrooted, limit=limit)
        return Enrolment(v=2, root_sha256=None, **{name: getattr(old, name) for name in _FIELDS})
    enrolment: Enrolment = decode(data, Enrolment, limit=limit)
    return enrolment


_FIELDS: Final = tuple(name for name in _Unrooted.__struct_fields__ if name != "v")


@dataclass(frozen=True, slots=True)
class Pinned:
    """The verifier's keys, checked: out of ``trust.json``, or of the services of the newest root under a pinned one."""

    data: bytes
    deployment: str
    log_key: VerifierKey
    receipt_key: VerifierKey
    root_sha256: str | None = None

    @property
    def sha256(self) -> str:
        return sha256(self.data).hexdigest()


def parse_trust(data: bytes, name: str) -> Pinned:
    """Check a trust file: canonical, and each key named and typed for its purpose.

    :raises UsageError: ``bad_trust``.
    """
    try:
        trust = decode_anchor(data).trust
        place = deployment(trust.deployment)
        log_key, receipt_key = parse_vkey(trust.log_vkey), parse_vkey(trust.receipt_vkey)
    except ProtocolError as error:
        raise UsageError("bad_trust", f"{name}: {error}") from error
    for key, key_name, kind in (
        (log_key, log_origin(place), SignatureType.ED25519),
        (receipt_key, receipt_name(place), SignatureType.COSIGNATURE_ED25519),
    ):
        if key.name != key_name or key.kind is not kind:
            raise UsageError(
                "bad_trust", f"{name}: expected an {kind.name} key called {key_name} (got {key.kind.name} {key.name})"
            )
    if log_key.public_key == receipt_key.public_key:
        raise UsageError("bad_trust", f"{name}: log and receipts have one key; each purpose has its own")
    return Pinned(data, place, log_key, receipt_key)


def pinned_by_root(standing: Standing, root_sha256: str) -> Pinned:
    """The keys of the services that a root names, as a trust file would have them.

    :param standing: the newest root.
    :param root_sha256: the root that was pinned, from which it follows.
    """
    services, name = standing.root.services, standing.root.deployment
    trust = Trust(v=1, deployment=name, log_vkey=services.log_vkey, receipt_vkey=services.receipt_vkey)
    return replace(parse_trust(encode(trust), f"root {standing.hash}"), root_sha256=root_sha256)


def read_trust(path: Path) -> Pinned:
    """:func:`parse_trust` of a file."""
    try:
        with path.open("rb") as file:
            data = file.read(TRUST_BYTES + 1)
    except OSError as error:
        raise UsageError("no_trust", f"reading the trust file: {error}") from error
    return parse_trust(data, str(path))


def check_url(text: str) -> str:
    """A verifier's base URL, without a slash at its end.

    :raises UsageError: ``bad_url``; also for credentials in it, which would end up in logs.
    """
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise UsageError("bad_url", f"--verifier: expected a URL such as https://verifier.example.org (got {text})")
    if parts.username is not None or parts.password is not None:
        raise UsageError("bad_url", "--verifier: a URL with a user or password in it is not accepted")
    return text.rstrip("/")


def genesis(
    public_key: bytes, source: Source, trust_sha256: str, root_sha256: str | None, previous: Previous | None
) -> GenesisBody:
    """The first entry of a log by this code."""
    return GenesisBody(
        agent_version=__version__,
        agent_sha256=code_sha256(),
        source=source,
        public_key=public_key.hex(),
        trust_sha256=trust_sha256,
        root_sha256=root_sha256,
        previous=previous,
    )
