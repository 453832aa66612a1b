"""From a driver into the log: a recording through the binding, and recordings made from it."""

import io
import threading

import pytest

from keyturn_agent.errors import UsageError
from keyturn_agent.ports import Sample
from keyturn_agent.record import record
from keyturn_agent.recording import parse_recording, read_recording
from keyturn_agent.sources.nvml_source import NvmlSource
from keyturn_agent.sources.replay import ReplaySource
from tests.agent.conftest import Sources
from tests.agent.fakes import NoStop
from tests.agent.nvml_stub.stories import (
    SECOND_US,
    metered,
    read,
    steady_gpu,
    to_start,
)
from tests.agent.nvml_stub.stub import START_US, Script, Stub, script_of
from tests.support.paths import REPO

FIXTURES = sorted(path.parent.name for path in (REPO / "hardware_fixtures").glob("*/recording.jsonl"))


@pytest.mark.parametrize("fixture", FIXTURES)
def test_a_recording_through_the_binding_gives_the_usage_of_its_replay(stub: Stub, make: Sources, fixture: str) -> None:
    """Column by column and bit by bit: the stub tells ratios and clocks as the recording has them.

    The stub's ratios are percents as doubles and come back as the same ppm; its counters are the recording's plus a
    constant, which differences don't see. Where a recording lost its driver, the source needs a moment longer to
    come back (it opens the library again): there only what both have measured is compared.
    """
    recording = read_recording(REPO / "hardware_fixtures" / fixture / "recording.jsonl")
    replay = ReplaySource(recording, START_US)
    source = make(stub, script_of(recording), period_us=100_000)
    listed = to_start(stub, source).chips
    assert [chip.uuid for chip in listed] == [chip.uuid for chip in recording.header.chips]
    theirs, ours = [], []
    for recorded in recording.samples:
        t_us = START_US + recorded.t_us
        sample, mine = replay.read(t_us), read(stub, source, t_us)
        seen = tuple(None if b is None else a for a, b in zip(sample.chips, mine.chips, strict=True))
        theirs.append(Sample(t_us, seen, mine.error, ()))
        ours.append(mine)
    lost = [sum(None in sample.chips for sample in samples) for samples in (recording.samples, ours)]
    assert lost == [0, 0] or lost[0] < lost[1] <= lost[0] + 12
    assert metered(ours)[0] == metered(theirs)[0]


def test_what_is_recorded_is_what_was_read(stub: Stub, make: Sources) -> None:
    source = make(stub, steady_gpu().cycles())
    out = io.BytesIO()
    count = record(source, stub.clock, NoStop(), out, about="the stub", duration_us=5 * SECOND_US)
    recording = parse_recording(out.getvalue())
    assert count == len(recording.samples) == 6
    assert recording.length_us == 5 * SECOND_US
    assert recording.header.driver_version == "580.126.20"
    assert recording.header.chips[0].measured_by["tensor_mcycles"] == "cycle_counter"
    assert recording.samples[3].chips[0] is not None


def test_nothing_to_record(stub: Stub, make: Sources) -> None:
    source = make(stub, Script().fail("nvmlInitWithFlags", 9))
    with pytest.raises(UsageError, match="shows no chips"):
        record(source, stub.clock, NoStop(), io.BytesIO(), about="", duration_us=SECOND_US)


def test_threads_end_with_the_source(stub: Stub) -> None:
    stub.play(steady_gpu())
    source = NvmlSource(stub.clock)
    source.inventory()
    source.stop()
    source.worker.join()
    assert not [thread for thread in threading.enumerate() if thread.name == "keyturn-nvml"]
