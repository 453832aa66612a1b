"""Configuration: one frozen value, read once from ``verifier.toml`` in the state directory.

deployment = "keyturn.example.org"
db = "sqlite:////srv/keyturn/verifier.db"

[[webhook]]
url = "https://chat.example.org/hooks/keyturn"
secret_file = "chat.secret"

[limits]
queue_bytes = 268435456
"""

import json
import tomllib
from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.ids import Deployment, deployment
from keyturn_verifier.db.engine import parse_url
from keyturn_verifier.errors import UsageError, VerifierError

FILE: Final = "verifier.toml"
DATABASE: Final = "verifier.db"
WEBHOOKS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the server allows itself and others. Every one is a positive integer."""

    queue_bytes: int = 256 * 1024 * 1024
    """Uploads that were read and not yet answered; beyond it the answer is 503."""
    batch_segments: int = 256
    batch_bytes: int = 16 * 1024 * 1024
    """Uploaded bytes of one batch."""
    batch_decoded_bytes: int = 64 * 1024 * 1024
    """Decoded bytes of one batch: what small uploads can grow to together."""
    cached_heads: int = 65_536
    body_timeout_s: int = 30
    """A request's body must have arrived after this."""
    head_timeout_s: int = 20
    """A request's head must have arrived after this, from its first byte or the connection's begin."""
    head_bytes: int = 65_536
    connections: int = 20_000
    pending_per_token: int = 4
    """Announced nodes per host that a token is good for: a mistake leaves room for the right one."""
    pending_hours: int = 24
    publish_interval_ms: int = 1_000
    rollup_interval_ms: int = 1_000
    """How often what was received is added to the sums that totals are read from."""
    publish_lag_s: int = 60
    """Leaves that no checkpoint covers for longer make the server not ready."""
    log_requests_per_minute: int = 6_000
    """Segments of one log that are stored; beyond it the answer is 429."""
    log_bytes_per_minute: int = 1024 * 1024 * 1024
    """Decoded bytes of one log that are stored."""
    bundle_streams: int = 2
    """Bundles that are sent at one time; each holds a snapshot of the database."""
    send_timeout_s: int = 60
    """A client that takes nothing of a bundle for this long is left."""
    waiting_hosts: int = 10_000
    """Requests that wait for news of a run; beyond it the answer is 503."""
    webhook_days: int = 3
    """So long a message is sent again before it is given up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Where to say what happens to runs. ``secret_file``: ``whsec_…``, readable by its owner alone."""

    url: str
    secret_file: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One verifier."""

    deployment: Deployment
    state: Path
    db: str
    """SQLAlchemy URL."""
    limits: Limits = field(default_factory=Limits)
    webhooks: tuple[Webhook, ...] = ()


def default_db(state: Path) -> str:
    """The database inside of the state directory; nothing is written down, so that the directory can be moved."""
    return f"sqlite:///{state.resolve() / DATABASE}"


def format_config(name: Deployment, db: str | None) -> str:
    """The text of a new ``verifier.toml``."""
    lines = [f'deployment = "{name}"']
    if db is not None:
        lines.append(f"db = {json.dumps(db)}")
    return "\n".join(lines) + "\n"


def load(state: Path, other_db: str | None = None) -> Config:
    """Read ``verifier.toml``.

    :param other_db: a database's URL from the command line, in place of the file's.
    :raises UsageError: this URL can't be one, or ``state`` is no state directory.
    :raises VerifierError: names the key, what it must be and what it is.
    """
    path = state / FILE
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"--state: {state} is not a verifier's state directory", hint="create one with keyturn-verifier init"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise VerifierError(f"{path}: {error}") from None
    _known(path, "", data, {"deployment", "db", "limits", "webhook"})
    name, db = data.get("deployment"), data.get("db", default_db(state))
    if not isinstance(name, str) or not isinstance(db, str):
        raise VerifierError(f"{path}: deployment and db must be strings")
    try:
        checked = deployment(name)
    except ProtocolError as error:
        raise VerifierError(f"{path}: deployment: {error}") from None
    url = db if other_db is None else other_db
    try:
        parse_url(url)
    except VerifierError as error:
        if other_db is not None:
            raise UsageError(f"--db: {error}", hint=error.hint) from None
        raise VerifierError(f"{path}: db: {error}", hint=error.hint) from None
    limits, hooks = _limits(path, data.get("limits", {})), _webhooks(path, data.get("webhook", []))
    return Config(deployment=checked, state=state, db=url, limits=limits, webhooks=hooks)


def _limits(path: Path, data: Any) -> Limits:
    if not isinstance(data, dict):
        raise VerifierError(f"{path}: limits: must be a table")
    _known(path, "limits.", data, {f.name for f in fields(Limits)})
    for key, value in data.items():
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise VerifierError(f"{path}: limits.{key}: must be an integer > 0 (got {value!r})")
    return Limits(**data)


def _webhooks(path: Path, data: Any) -> tuple[Webhook, ...]:
    if not isinstance(data, list) or not all(isinstance(one, dict) for one in data):
        raise VerifierError(f"{path}: webhook: must be tables, [[webhook]]")
    if len(data) > WEBHOOKS:
        raise VerifierError(f"{path}: webhook: at most {WEBHOOKS} (got {len(data)})")
    made = []
    for one in data:
        _known(path, "webhook.", one, {"url", "secret_file"})
        url, file = one.get("url"), one.get("secret_file")
        if not isinstance(url, str) or not isinstance(file, str):
            raise VerifierError(f"{path}: webhook: url and secret_file must be strings")
        _check_url(path, url)
        made.append(Webhook(url=url, secret_file=path.parent / file))
    if len({hook.url for hook in made}) != len(made):
        raise VerifierError(f"{path}: webhook.url: one is listed twice")
    return tuple(made)


def _check_url(path: Path, url: str) -> None:
    try:
        parts = urlsplit(url)
        host, scheme, _ = parts.hostname or "", parts.scheme, parts.port
    except ValueError:
        host = scheme = ""
    if not host or scheme not in ("https", "http") or not (url.isascii() and url.isprintable()) or " " in url:
        raise VerifierError(f"{path}: webhook.url: must be an https URL")
    if scheme == "http" and not _is_here(host):
        raise VerifierError(f"{path}: webhook.url: http only to this machine, else https (got host {host})")


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _known(path: Path, prefix: str, data: dict[str, Any], names: set[str]) -> None:
    if unknown := sorted(data.keys() - names):
        raise VerifierError(f"{path}: {prefix}{unknown[0]}: no such key")
