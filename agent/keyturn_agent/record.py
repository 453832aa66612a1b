"""Writes a recording from any :class:`~keyturn_agent.ports.GpuSource`, sample by sample.

What was written stays readable when the process dies: a recording cut between two lines is a shorter recording.
"""

from collections.abc import Sequence
from typing import BinaryIO

from keyturn_agent.errors import UsageError
from keyturn_agent.ports import Clock, GpuSource, Stop
from keyturn_agent.recording import Header, RecordedSample, Workload
from keyturn_protocol.canonical import encode


def record(
    source: GpuSource,
    clock: Clock,
    stop: Stop,
    out: BinaryIO,
    *,
    about: str,
    duration_us: int,
    workloads: Sequence[Workload] = (),
) -> int:
    """Record for ``duration_us``, until the source ends or a stop is asked for; returns the number of samples.

    :param about: what was recorded and on what, for whoever reads it in a year.
    :param workloads: what ran meanwhile, as declared.
    :raises UsageError: ``no_chips``; or ``short_recording`` when it ended before the second sample.
    """
    inventory = source.inventory()
    if not inventory.chips:
        raise UsageError("no_chips", "nothing to record: the source shows no chips", hint="is the driver loaded?")
    header = Header(
        v=1,
        type="recording",
        about=about,
        chips=inventory.chips,
        driver_version=inventory.driver_version,
        nvml_version=inventory.nvml_version,
        cuda_version=inventory.cuda_version,
        workloads=list(workloads),
    )
    out.write(encode(header) + b"\n")
    start_us: int | None = None
    count = 0
    while not stop.requested:
        due_us = source.due_us(clock.now().mono_us)
        if due_us is None or (start_us is not None and due_us - start_us > duration_us):
            break
        clock.wait_until(due_us, stop)
        if stop.requested:
            break
        sample = source.read(clock.now().mono_us)
        start_us = sample.mono_us if start_us is None else start_us
        recorded = RecordedSample(
            t_us=sample.mono_us - start_us,
            chips=list(sample.chips),
            error=sample.error,
            shares=list(sample.shares),
        )
        out.write(encode(recorded) + b"\n")
        out.flush()
        count += 1
    if count < 2:
        raise UsageError("short_recording", f"expected at least two samples, got {count}")
    return count
