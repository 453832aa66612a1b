"""Which source the command line means, for every command that reads chips."""

import argparse
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

from keyturn_agent.cli_values import duration, moment_us, positive
from keyturn_agent.clock import StopFlag
from keyturn_agent.errors import UsageError
from keyturn_agent.ports import Clock, GpuSource
from keyturn_agent.procs import Attribution, Procs, slurm_cluster
from keyturn_agent.recording import Recording
from keyturn_agent.sources.replay import ReplaySource
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.ids import WorkloadId, workload_id

_REPLAY_ONLY: Final = ("recording", "fast", "speed", "start", "until_end", "duration", "on_lease")
_NVML_ONLY: Final = ("period", "slurm_cluster")
_PERIOD_US: Final = 1_000_000


def add_source(parser: argparse.ArgumentParser) -> None:
    """``--source`` and what it reads."""
    parser.add_argument("--source", choices=["replay", "nvml"], default="replay", help="where readings come from")
    parser.add_argument("--recording", type=Path, metavar="FILE", help="what --source replay plays")


def add_label(parser: argparse.ArgumentParser) -> None:
    """``--label``, which means something else for each source."""
    parser.add_argument(
        "--label",
        metavar="ID",
        help="nvml: every process on the chips is this workload's (kind:name); replay: put before each chip's uuid",
    )


def add_nvml(parser: argparse.ArgumentParser) -> None:
    """What only ``--source nvml`` takes."""
    nvml = parser.add_argument_group("nvml")
    nvml.add_argument("--period", type=duration, metavar="TIME", help="between samples, at least 100ms; 1s")
    nvml.add_argument("--slurm-cluster", metavar="NAME", help="of slurm:<cluster>:<job>; default: as slurm.conf says")


def add_replay(parser: argparse.ArgumentParser) -> None:
    """What only ``--source replay`` takes."""
    replay = parser.add_argument_group("replay")
    pace = replay.add_mutually_exclusive_group()
    pace.add_argument("--fast", action="store_true", help="simulated time, as fast as it goes; ends with the recording")
    pace.add_argument("--speed", type=positive, metavar="N", help="simulated time, N seconds in one")
    replay.add_argument(
        "--start", type=moment_us, metavar="TIME", help="simulated time starts here (ISO 8601 or epoch)"
    )
    replay.add_argument("--until-end", action="store_true", help="end with the recording")
    replay.add_argument("--loop", type=positive, default=1, metavar="N", help="play the recording N times")
    replay.add_argument(
        "--on-lease",
        action="store_true",
        help="the recording plays while a command runs under a lease; else chips idle",
    )
    replay.add_argument("--duration", type=positive, metavar="SECONDS", help="end after so much recorded time")


def check_source(arguments: argparse.Namespace) -> None:
    """Refuse flags that this source doesn't take.

    :raises UsageError: naming the flag.
    """
    if arguments.source == "nvml":
        for name in _REPLAY_ONLY:
            if getattr(arguments, name):
                raise UsageError("bad_flag", f"--{name.replace('_', '-')}: only with --source replay")
        _label(arguments.label)
        return
    if arguments.recording is None:
        raise UsageError("no_recording", "--recording: needed with --source replay")
    for name in _NVML_ONLY:
        if getattr(arguments, name) is not None:
            raise UsageError("bad_flag", f"--{name.replace('_', '-')}: only with --source nvml")
    if arguments.on_lease and (arguments.fast or arguments.speed is not None):
        raise UsageError("bad_flag", "--on-lease: only in real time; a simulated clock takes no leases")
    if arguments.start is not None and not arguments.fast and arguments.speed is None:
        raise UsageError("bad_flag", "--start: only in simulated time (--fast or --speed)")


def make_source(
    arguments: argparse.Namespace,
    recording: Recording | None,
    clock: Clock,
    plays: Callable[[], bool] = lambda: True,
) -> GpuSource:
    """The source that the command line asks for, opened as far as it goes.

    :param plays: see :class:`~keyturn_agent.sources.replay.ReplaySource`.
    """
    if recording is None:
        # Loads the binding, which a replay doesn't need.
        from keyturn_agent.sources.nvml_source import NvmlSource

        attribution = attribution_of(arguments.label, arguments.slurm_cluster)
        return NvmlSource(clock, period_us=arguments.period or _PERIOD_US, attribution=attribution)
    return ReplaySource(
        recording,
        clock.now().mono_us,
        loops=arguments.loop,
        duration_us=None if arguments.duration is None else arguments.duration * 1_000_000,
        label=arguments.label,
        until_end=arguments.until_end or arguments.fast,
        plays=plays,
    )


def attribution_of(label: str | None, cluster: str | None) -> Attribution:
    """Whose this host's processes are."""
    return Attribution(Procs(label=_label(label), cluster=cluster or slurm_cluster()))


def _label(text: str | None) -> WorkloadId | None:
    try:
        return None if text is None else workload_id(text)
    except ProtocolError as error:
        raise UsageError("bad_flag", f"--label: {error}") from error


def stop_on_signals() -> StopFlag:
    """A wish to end that SIGTERM and SIGINT set."""
    stop = StopFlag()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.request())
    return stop
