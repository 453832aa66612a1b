"""Recordings: what is written is read, and anything else is refused with its line."""

import re
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn_agent.errors import UsageError
from keyturn_agent.recording import Header, format_recording, parse_recording
from keyturn_agent.sampler import Span, measure
from keyturn_agent.sources.replay import ReplaySource
from keyturn_protocol.canonical import encode
from tests.agent.samples import chip, header, reading, recorded, share, steady, steady_recording


def test_what_is_written_is_read() -> None:
    data = steady_recording(5)
    recording = parse_recording(data)
    assert recording.length_us == 5_000_000
    assert format_recording(recording.header, recording.samples) == data


def test_400_days_are_a_recording() -> None:
    assert parse_recording(lines(header(), TWO[0], recorded(400 * 86_400_000_000, reading()))).length_us


def lines(*records: object) -> bytes:
    return b"".join(encode(record) + b"\n" for record in records)


def of(**changes: Any) -> Header:
    """A header with one chip that differs."""
    return msgspec.structs.replace(header(), chips=[msgspec.structs.replace(chip("GPU-0"), **changes)])


TWO = (recorded(0, reading()), recorded(10, reading()))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cut off or empty"),
        (lines(header(), *TWO)[:-1], "cut off"),
        (lines(header()), "expected at least two samples, got 0"),
        (lines(*TWO), "line 1: not canonical JSON"),
        (lines(header(), *TWO).replace(b'"t_us":10', b'"t_us":10.5'), "line 3: not canonical JSON"),
        (lines(header(), *TWO).replace(b'"t_us":10', b'"t_us": 10'), "line 3: not canonical JSON"),
        (lines(header(), *TWO).replace(b'"power_mw":null,', b"", 1), "line 2: not canonical JSON"),
        (lines(header(), TWO[1], TWO[1]), "line 2: expected t_us 0 in the first sample (got 10)"),
        (lines(header(), TWO[0], TWO[0]), "line 3: expected t_us above 0 (got 0)"),
        (
            lines(header(), TWO[0], recorded(400 * 86_400_000_000 + 1, reading())),
            "line 3: expected t_us up to 34560000000000, 400 days (got 34560000000001)",
        ),
        (lines(header(2), *TWO), "line 2: expected 2 chips, as in the header (got 1)"),
        (lines(header(), TWO[0], recorded(1, None)), "line 3: expected an error that says why"),
        (lines(header(), recorded(0, reading(), shares=(share(1, "run:w", 1),)), TWO[1]), "a chip below 1 (got 1)"),
        (
            lines(header(), recorded(0, reading(), shares=(share(0, "run:b", 1), share(0, "run:a", 1))), TWO[1]),
            "line 2: expected shares sorted",
        ),
        (
            lines(
                header(),
                recorded(0, reading(), shares=(share(0, "run:a", 600_000), share(0, "run:b", 600_000))),
                TWO[1],
            ),
            "shares of chip 0 up to 1000000 ppm (got 1200000)",
        ),
        (lines(header(), recorded(0, reading(), shares=(share(0, "gap", 1),)), TWO[1]), "line 2: not a workload id"),
        (lines(header(1, ("run:a", "run:a")), *TWO), "line 1: expected every workload once"),
        (lines(of(role="mig_instance", parent="GPU-1"), *TWO), "line 1: the parent of a MIG instance is listed beside"),
        (lines(of(role="mig_parent"), *TWO), "line 1: a MIG parent without instances is a whole GPU"),
        (lines(of(sms=0), *TWO), "line 1: a chip without SMs computes nothing"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(data: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_recording(data, "a.jsonl")


@given(st.binary(max_size=200))
def test_only_our_errors_escape(data: bytes) -> None:
    with pytest.raises(UsageError):
        parse_recording(data)


def test_a_loop_goes_on_where_it_was() -> None:
    recording = parse_recording(format_recording(header(), steady(3, None, start_mj=500)))
    source = ReplaySource(recording, 1_000, loops=3)
    samples = []
    while (due := source.due_us(0)) is not None:
        samples.append(source.read(due))
    assert [s.mono_us for s in samples] == [1_000 + s * 1_000_000 for s in range(10)]
    spans = [measure(a.chips[0], b.chips[0], 1_000_000) for a, b in pairwise(samples)]
    assert {span.sums[0] for span in spans if isinstance(span, Span)} == {300_000 * 10**6}
    assert all(isinstance(span, Span) for span in spans)


def test_a_duration_ends_within_a_loop() -> None:
    source = ReplaySource(parse_recording(steady_recording(3)), 0, loops=9, duration_us=5_000_000)
    count = 0
    while (due := source.due_us(0)) is not None:
        source.read(due)
        count += 1
    assert count == 6


def test_a_label_gives_each_host_chips_of_its_own() -> None:
    recording = parse_recording(steady_recording(1))
    assert ReplaySource(recording, 0, label="h1").inventory().chips[0].uuid == "h1-GPU-0"
    for label in ("two words", ""):
        with pytest.raises(UsageError, match="--label"):
            ReplaySource(recording, 0, label=label)


def test_a_source_that_goes_on_after_its_recording_reads_nothing() -> None:
    source = ReplaySource(parse_recording(steady_recording(1)), 0, until_end=False)
    source.read(0), source.read(1_000_000)
    assert source.due_us(1_000_000) == 2_000_000
    after = source.read(2_000_000)
    assert (after.chips, after.error) == ((None,), "recording_ended")
