"""A recording that plays only while something runs under a lease: its work is that of the command."""

from keyturn_agent.ports import COUNTERS, Reading, Sample
from keyturn_agent.recording import read_recording
from keyturn_agent.sources.replay import ReplaySource
from tests.support.paths import REPO

FIXTURE = REPO / "hardware_fixtures" / "derived_8gpu_host" / "recording.jsonl"
SECOND = 1_000_000


def test_chips_idle_before_after_and_between() -> None:
    playing = [False]
    source = ReplaySource(read_recording(FIXTURE), 0, until_end=False, label="a", plays=lambda: playing[0])
    now_us, samples, played = 0, list[tuple[bool, Sample]](), 0
    for turn in range(30):
        playing[0] = turn // 5 % 2 == 1
        due_us = source.due_us(now_us)
        assert due_us is not None
        now_us = max(now_us, due_us)
        samples.append((playing[0], source.read(now_us)))
        played += playing[0]
    readings: list[Reading] = []
    for work, sample in samples:
        reading = sample.chips[0]
        assert reading is not None
        assert work or (reading.busy_ppm or 0, reading.power_mw, sample.shares) == (0, 60_000, ())
        readings.append(reading)
    times = [sample.mono_us for _, sample in samples]
    assert times == sorted(set(times))
    for name in COUNTERS:
        values = [getattr(reading, name) for reading in readings if getattr(reading, name) is not None]
        assert values == sorted(values), name
    # What was played is what the recording has, in its order: nothing is skipped or played twice.
    recorded = read_recording(FIXTURE).samples[1 : played + 1]
    seen = [reading.tensor_kcycles for (work, _), reading in zip(samples, readings, strict=True) if work]
    assert seen == [sample.chips[0].tensor_kcycles for sample in recorded if sample.chips[0] is not None]
    # An idle chip takes a little energy, and does nothing.
    idle = [reading for (work, _), reading in zip(samples[:5], readings[:5], strict=True) if not work]
    assert idle[0].energy_mj is not None
    assert idle[-1].energy_mj == idle[0].energy_mj + 4 * 60_000
    assert {reading.elapsed_kcycles for reading in idle} == {idle[0].elapsed_kcycles}
