"""What a run of the agent can be told, as one frozen value; the names of its keys are in its fields.

    [upload]
    interval_s = 300
    proxy = "http://proxy.example.org:3128"

:mod:`~keyturn_agent.settings` reads it from TOML. Times are in µs of the log's clock where a field's name ends
in ``_us``, else in seconds of real time.
"""

from dataclasses import dataclass, field, fields
from typing import Any, Final, get_args

from keyturn_agent.errors import UsageError

LARGEST: Final = 2**53 - 1
_SECOND: Final = 1_000_000
_DAY_S: Final = 86_400
_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Key:
    """Where a field stands in the file. The file's number times ``scale`` is the field's."""

    name: str
    scale: int = 1
    least: int = 0


def _number(default: int, name: str, *, scale: int = 1, least: int = 0) -> Any:
    return field(default=default, metadata={"key": Key(name, scale, least)})


def _text(name: str) -> Any:
    return field(default=None, metadata={"key": Key(name)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of the agent."""

    interval_us: int = _number(10 * _SECOND, "usage.interval_s", scale=_SECOND, least=1)
    """Length of a usage entry."""
    clock_step_us: int = _number(500_000, "usage.clock_step_ms", scale=1000, least=1)
    """A smaller difference between the wall clock and CLOCK_BOOTTIME is not written as a step."""
    heartbeat_us: int = _number(60 * _SECOND, "heartbeat.interval_s", scale=_SECOND, least=1)

    checkpoint_us: int = _number(300 * _SECOND, "upload.interval_s", scale=_SECOND, least=1)
    """A head is signed and sent this often, and at certain events."""
    jitter_s: int = _number(30, "upload.jitter_s")
    """Each upload waits a random part of this, so that a fleet doesn't knock all at once."""
    timeout_s: int = _number(30, "upload.timeout_s", least=1)
    """For one exchange with the verifier."""
    drain_s: int = _number(30, "upload.drain_s")
    """Once the source has ended, wait this long for receipts that are still owed."""
    stop_s: int = _number(1, "upload.stop_s")
    """The same when the agent is stopped. Short: the next start sends what is owed, and a gap grows meanwhile."""
    incarnation_s: int = _number(600, "upload.incarnation_s")
    """At most one new incarnation in this time."""
    proxy: str | None = _text("upload.proxy")
    """A proxy's URL; ``direct`` for none. Without it the environment is asked (``https_proxy``, ``no_proxy``)."""
    ca_file: str | None = _text("upload.ca_file")
    """PEM certificates that the verifier's (and a proxy's) may lead to, in place of the system's."""

    spool_s: int = _number(30 * _DAY_S, "spool.days", scale=_DAY_S, least=1)
    """How long entries without a receipt may wait."""
    spool_bytes: int = _number(1024 * _MIB, "spool.mib", scale=_MIB, least=1)
    """How many bytes of them there may be."""
    free_bytes: int = _number(64 * _MIB, "spool.free_mib", scale=_MIB)
    """With less room than this on the disk no usage is written."""
    coarse_us: int = _number(60 * _SECOND, "spool.coarse_interval_s", scale=_SECOND, least=1)
    """Length of a usage entry while the spool is filling up; never shorter than the usual one."""
    keep_s: int = _number(14 * _DAY_S, "retention.days", scale=_DAY_S)
    """How long receipted segments are kept, for a verifier that was restored from a backup."""
    keep_bytes: int = _number(1024 * _MIB, "retention.mib", scale=_MIB)
    """How many bytes of them are kept at most."""

    gate: str | None = _text("switch.gate")
    """``observe`` or ``compute_mode``: which gate there is on this host; without it none."""
    gate_socket: str | None = _text("switch.gate_socket")
    """Where the gate listens; ``/run/keyturn-gate.sock``."""
    exec_socket: str | None = _text("switch.exec_socket")
    """Where ``keyturn-agent exec`` is heard; without it nowhere."""
    report_s: int = _number(60, "switch.report_s", least=1)
    """Under a lease, what was charged is reported this often, and a head signed."""

    metrics_listen: str | None = _text("metrics.listen")
    """``127.0.0.1:9464`` serves metrics there; by default nowhere."""
    metrics_file: str | None = _text("metrics.textfile")
    """A file for node_exporter's textfile collector; its name ends in ``.prom``."""

    def __post_init__(self) -> None:
        for key, name, value in ((key_of(name), name, getattr(self, name)) for name in names()):
            if isinstance(value, int):
                check_number(key, value)
            elif value is None and name not in _TEXTS:
                raise UsageError("bad_setting", f"{key.name}: must be a whole number")


def names() -> tuple[str, ...]:
    """The fields of :class:`Config`."""
    return tuple(each.name for each in fields(Config))


def key_of(name: str) -> Key:
    """Where a field stands in the file."""
    key: Key = next(each for each in fields(Config) if each.name == name).metadata["key"]
    return key


def is_text(name: str) -> bool:
    """Whether a field holds text, or nothing."""
    return name in _TEXTS


def check_number(key: Key, value: int) -> None:
    """:raises UsageError: ``bad_setting``, with the number as the file has it."""
    shown = value // key.scale if value % key.scale == 0 else value / key.scale
    if value < key.least:
        bound = "> 0" if key.least == 1 else f">= {key.least}"
        raise UsageError("bad_setting", f"{key.name}: must be {bound} (got {shown})")
    if value > LARGEST:
        raise UsageError("bad_setting", f"{key.name}: must be <= {LARGEST // key.scale} (got {shown})")


_TEXTS: Final = frozenset(each.name for each in fields(Config) if type(None) in get_args(each.type))
