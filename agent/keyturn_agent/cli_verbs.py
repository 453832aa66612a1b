"""``record``, ``pause``, ``resume``, ``doctor`` and ``top``: what operators do beside running the agent."""

import argparse
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import msgspec

from keyturn_agent import control
from keyturn_agent.cli_config import add_config, config_of
from keyturn_agent.cli_source import (
    add_label,
    add_nvml,
    add_replay,
    add_source,
    attribution_of,
    check_source,
    make_source,
    stop_on_signals,
)
from keyturn_agent.cli_values import duration
from keyturn_agent.client import HttpVerifier
from keyturn_agent.clock import SystemClock
from keyturn_agent.doctor import Check, Host, clock_state, describe, host_checks, mps_running, report
from keyturn_agent.doctor_allowance import allowance
from keyturn_agent.doctor_assurance import assurance
from keyturn_agent.doctor_gate import gate
from keyturn_agent.doctor_nvml import nvml_checks
from keyturn_agent.errors import AgentError, StoreError, UsageError
from keyturn_agent.procs import PROC
from keyturn_agent.record import record
from keyturn_agent.recording import Workload, read_recording
from keyturn_agent.store import read_enrolment
from keyturn_agent.top import top
from keyturn_protocol.canonical import Text, encode
from keyturn_protocol.values import Slug

if TYPE_CHECKING:
    from argparse import _SubParsersAction

FINE: Final = 0
REJECTED: Final = 1
_PATIENCE_S: Final = 30.0


def add_verbs(commands: "_SubParsersAction[argparse.ArgumentParser]", state: argparse.ArgumentParser) -> None:
    """The parsers of all of them. ``state``: the parser that has ``--state``."""
    tape = commands.add_parser("record", help="write what a source shows into a recording")
    tape.add_argument("--out", type=Path, required=True, metavar="FILE", help="a file that isn't there yet")
    tape.add_argument("--about", required=True, metavar="TEXT", help="what is recorded and on what")
    tape.add_argument("--for", dest="for_us", type=duration, required=True, metavar="TIME", help="such as 60s")
    tape.add_argument("--dtype", metavar="WORD", help="declared data type of the workload that --label names")
    add_source(tape)
    add_label(tape)
    add_nvml(tape)
    add_replay(tape)
    tape.set_defaults(command=_record, source="nvml")

    pause = commands.add_parser("pause", parents=[state], help="close NVML for a GPU reset or a driver upgrade")
    pause.add_argument(
        "--for", dest="for_us", type=duration, required=True, metavar="TIME", help="at most, such as 15m"
    )
    pause.add_argument("--reason", required=True, metavar="TEXT", help="is signed into the log")
    pause.add_argument("--json", action="store_true", help="result as JSON")
    pause.set_defaults(command=_pause)

    resume = commands.add_parser("resume", parents=[state], help="end a pause early")
    resume.add_argument("--json", action="store_true", help="result as JSON")
    resume.set_defaults(command=_resume)

    doctor = commands.add_parser("doctor", parents=[state], help="what stands in the way of metering this host")
    add_config(doctor)
    doctor.add_argument("--source", choices=["replay", "nvml"], help="default: as enrolled")
    doctor.add_argument("--json", action="store_true", help="result as JSON")
    doctor.set_defaults(command=_doctor)

    view = commands.add_parser("top", parents=[state], help="the running agent's chips, workloads and receipts, live")
    view.add_argument("--every", type=duration, default=2_000_000, metavar="TIME", help="2s")
    view.set_defaults(command=_top)


def _record(arguments: argparse.Namespace) -> int:
    check_source(arguments)
    if arguments.fast or arguments.speed is not None or arguments.start is not None:
        raise UsageError("bad_flag", "--fast, --speed, --start: a recording is made in real time")
    recording = None if arguments.recording is None else read_recording(arguments.recording)
    workloads = _declared(arguments)
    clock, stop = SystemClock(), stop_on_signals()
    source = make_source(arguments, recording, clock)
    try:
        count = _tape(
            arguments.out,
            lambda out: record(
                source, clock, stop, out, about=arguments.about, duration_us=arguments.for_us, workloads=workloads
            ),
        )
    finally:
        source.stop()
    # Whoever replays it reads it like this.
    read_recording(arguments.out)
    print(f"{count} samples in {arguments.out}")
    return FINE


def _tape(path: Path, write: Callable[[BinaryIO], int]) -> int:
    """Write a file that isn't there yet; what is no recording is not left under the name of one."""
    try:
        out = path.open("xb")
    except OSError as error:
        raise UsageError("bad_out", f"--out: {error}") from error
    with out:
        try:
            return write(out)
        except UsageError:
            path.unlink()
            raise
        except OSError as error:
            raise StoreError("disk", f"writing {path}: {error}; it ends there") from error


def _declared(arguments: argparse.Namespace) -> list[Workload]:
    if arguments.dtype is None:
        return []
    if arguments.label is None or arguments.source != "nvml":
        raise UsageError("bad_flag", "--dtype: of which workload? --label names it, with --source nvml")
    try:
        dtype = msgspec.convert(arguments.dtype, Slug)
    except msgspec.ValidationError:
        raise UsageError("bad_flag", f"--dtype: must be a lower-case word (got {arguments.dtype!r})") from None
    return [Workload(id=arguments.label, class_="exclusive", declared_dtype=dtype, chips=[])]


def _pause(arguments: argparse.Namespace) -> int:
    if arguments.for_us > control.MOST_US:
        raise UsageError(
            "bad_flag", f"--for: must be at most {control.MOST_US // 3_600_000_000}h; stop the agent instead"
        )
    reason = _reason(arguments)
    request = control.PauseRequest(id=str(uuid.uuid4()), for_us=arguments.for_us, reason=reason)
    return _asked(arguments, request)


def _reason(arguments: argparse.Namespace) -> str:
    try:
        reason = msgspec.convert(arguments.reason, Text)
    except msgspec.ValidationError as error:
        raise UsageError("bad_flag", f"--reason: {error}") from None
    if not reason.strip():
        raise UsageError("bad_flag", "--reason: must say something; it is signed into the log")
    return reason


def _resume(arguments: argparse.Namespace) -> int:
    return _asked(arguments, control.ResumeRequest(id=str(uuid.uuid4())))


def _asked(arguments: argparse.Namespace, request: control.Request) -> int:
    read_enrolment(arguments.state)
    reply = control.ask(arguments.state, request, _PATIENCE_S)
    if arguments.json:
        print(encode(reply).decode())
    elif reply.until_us is None:
        print(reply.detail)
    else:
        print(f"{reply.detail} until {datetime.fromtimestamp(reply.until_us // 10**6, UTC).isoformat()}")
    return FINE


def _doctor(arguments: argparse.Namespace) -> int:
    config = config_of(arguments)
    host = Host(
        PROC,
        clock_state,
        lambda url: HttpVerifier(url, config.timeout_s, config.proxy, config.ca_file).log_checkpoint(),
    )
    checks = [*host_checks(arguments.state, host), allowance(arguments.state), assurance(arguments.state), gate(config)]
    source = arguments.source
    if source is None:
        try:
            source = read_enrolment(arguments.state)[0].source
        except AgentError:
            source = "nvml"
    checks += _nvml() if source == "nvml" else [Check(name="chips", state="skip", detail=f"source {source}")]
    found = report(checks)
    print(encode(found).decode() if arguments.json else describe(found))
    return FINE if found.ok else REJECTED


def _nvml() -> list[Check]:
    # Loads the binding, which only this check needs.
    from keyturn_agent.sources.nvml_source import NvmlSource

    clock = SystemClock()
    source = NvmlSource(clock, attribution=attribution_of(None, None))
    try:
        inventory, trouble = source.inventory(), source.trouble
        unattributed = {} if trouble is not None else source.read(clock.now().mono_us).unattributed
        accounting = source.accounting()
    finally:
        source.stop()
    return nvml_checks(inventory, trouble, unattributed, mps_running(), accounting)


def _top(arguments: argparse.Namespace) -> int:
    read_enrolment(arguments.state)
    top(arguments.state, stop_on_signals(), arguments.every / 1e6)
    return FINE
