"""Where there is no room: the spool fills up, is full, has room again; the disk is full, and isn't any more."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from keyturn_agent.clock import SimulatedClock
from keyturn_agent.config import Config
from keyturn_agent.courier import Courier
from keyturn_agent.errors import NoSpaceError, StoreError
from keyturn_agent.pressure import DISK_FULL, FILLING, SPOOL_FULL, Level, Pressure, Room, follow
from keyturn_agent.recording import parse_recording
from keyturn_agent.sampler import Sampler
from keyturn_agent.sources.replay import ReplaySource
from keyturn_agent.status import read_status
from keyturn_agent.store import Store
from keyturn_agent.writer import Writer
from keyturn_protocol.entries import Body, Degraded, Entry, Gap, Heartbeat, Usage
from keyturn_protocol.entry_log import HeartbeatBody, ShutdownBody
from keyturn_protocol.segment import follow as follow_entries
from keyturn_protocol.segment import parse_segment, start_of
from tests.agent.fakes import Even, FakeVerifier, NoStop, unreachable
from tests.agent.hosts import START_S, START_US, Host
from tests.agent.samples import reading, sample, steady_recording
from tests.support.optional import require

CONFIG = Config(spool_bytes=1000, spool_s=1000, free_bytes=100)
ROOM, FULL, FILL = Pressure(Level.ROOM), Pressure(Level.FULL, SPOOL_FULL), Pressure(Level.FILLING, FILLING)
NO_DISK = Pressure(Level.FULL, DISK_FULL)


@pytest.mark.parametrize(
    ("before", "room", "after"),
    [
        (ROOM, Room(0, 0, 100), ROOM),
        (ROOM, Room(799, 799, 100), ROOM),
        (ROOM, Room(800, 0, 100), FILL),
        (ROOM, Room(0, 800, 100), FILL),
        (ROOM, Room(999, 0, 100), FILL),
        (ROOM, Room(1000, 0, 100), FULL),
        (ROOM, Room(0, 1000, 100), FULL),
        (ROOM, Room(0, 0, 99), NO_DISK),
        (FILL, Room(700, 0, 100), FILL),
        (FILL, Room(699, 0, 100), ROOM),
        (FULL, Room(900, 0, 100), FULL),
        (FULL, Room(899, 0, 100), FILL),
        (FULL, Room(699, 0, 100), ROOM),
        (NO_DISK, Room(0, 0, 124), NO_DISK),
        (NO_DISK, Room(0, 0, 125), ROOM),
        (NO_DISK, Room(950, 0, 125), FILL),
    ],
)
def test_levels(before: Pressure, room: Room, after: Pressure) -> None:
    assert follow(before, room, CONFIG) == after


class Desk:
    """A writer over a real store, with a disk that has as much room as a test says."""

    def __init__(self, host: Host, config: Config) -> None:
        self.clock = SimulatedClock(START_US, host.random.uuid4())
        self.store, _ = Store.open(host.folder, lambda _: self.clock, START_S)
        self.free = 10**9
        self.real_s = START_S
        self.courier = Courier(
            host.verifier, self.store.pinned.receipt_key, self.store.pinned.log_key, Even(), jitter_s=0
        )
        self.config = config
        self.writer = Writer(self.store, self.courier, self.clock, config, lambda: self.real_s, lambda _: self.free)
        self._sampler = Sampler(1, 1_000_000, START_US)

    def wait(self, seconds: float) -> None:
        self.clock.wait_until(self.clock.now().mono_us + int(seconds * 1_000_000), NoStop())

    def usage(self) -> list[Body]:
        """The usage of the next second."""
        at = self.clock.now().mono_us
        self._sampler = Sampler(1, 1_000_000, START_US)
        self._sampler.add(sample(at, reading(energy_mj=at)))
        self.wait(1)
        return [*self._sampler.add(sample(at + 1_000_000, reading(energy_mj=at + 5))).after]

    def entries(self) -> list[Entry]:
        """Everything that is sealed, checked from the first entry on."""
        log, state, entries = self.store.log, start_of(self.store.log.name.origin), list[Entry]()
        while (upload := log.spool.upload(state.size)) is not None:
            segment = parse_segment(upload.data)
            key = bytes.fromhex(self.store.enrolment.public_key)
            followed = follow_entries(log.name, key, state, segment.lines, segment.leaf_hashes())
            state, entries = followed.state, [*entries, *followed.entries]
        return entries


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path / "state", FakeVerifier())
    host.enroll()
    return host


@pytest.fixture
def desk(host: Host) -> Iterator[Desk]:
    desk = Desk(host, Config(spool_bytes=40_000, free_bytes=1000))
    desk.writer.write([inventory_of(host)])
    yield desk
    desk.store.close()


def inventory_of(host: Host) -> Body:
    return ReplaySource(parse_recording(steady_recording(5)), 0).inventory()


def beat() -> list[Body]:
    return [HeartbeatBody(verifier_checkpoint=None)]


def kinds(entries: list[Entry]) -> list[str]:
    return [type(entry).__name__ for entry in entries]


def test_a_spool_that_fills_up_coarsens_stops_and_comes_back(desk: Desk, host: Host) -> None:
    levels: list[Level] = []
    for _ in range(400):
        desk.writer.write(desk.usage())
        desk.writer.look()
        desk.writer.seal()
        if desk.writer.level not in levels:
            levels.append(desk.writer.level)
            assert desk.writer.interval_us == (10_000_000 if desk.writer.level is Level.ROOM else 60_000_000)
    assert levels == [Level.ROOM, Level.FILLING, Level.FULL]
    _, waiting = desk.store.log.spool.waiting()
    # One segment may go over the edge; then nothing grows any more, and nothing was taken back.
    assert 40_000 <= waiting < 42_000
    entries = desk.entries()
    (degraded,) = (e.body for e in entries if isinstance(e, Degraded))
    assert (degraded.cause, degraded.interval_us) == ("spool_filling", 60_000_000)
    (gap,) = (e.body for e in entries if isinstance(e, Gap))
    assert (gap.cause, gap.chips) == ("spool_full", None)
    assert entries[-1].body == gap or kinds(entries)[-1] == "Gap"
    before = len(entries)
    for _ in range(2 * 3600 // 60 + 1):
        desk.wait(60)
        desk.writer.write(beat())
        desk.writer.look()
        desk.writer.seal()
    assert kinds(desk.entries()[before:]) == ["Heartbeat"] * 3

    desk.courier.carry(desk.store.log.spool, desk.store.log.key, ask=False)
    desk.courier.start()
    assert desk.courier.drain(20)
    desk.courier.stop()
    desk.writer.look()
    assert desk.writer.level is Level.ROOM
    desk.writer.write(desk.usage())
    desk.writer.seal()
    end, usage = desk.entries()[-2:]
    assert isinstance(end, Gap)
    assert (end.body.cause, end.body.from_us, end.body.to_us) == ("spool_full", gap.from_us, end.time_us)
    assert isinstance(usage, Usage)


def test_old_segments_fill_the_spool_too(desk: Desk) -> None:
    desk.writer.write(desk.usage())
    desk.writer.seal()
    since = desk.store.log.spool.waiting_since_s()
    assert since is not None
    levels = []
    for days in (23, 25, 29, 30):
        desk.real_s = since + days * 86_400
        desk.writer.look()
        levels.append(desk.writer.level)
    assert levels == [Level.ROOM, Level.FILLING, Level.FILLING, Level.FULL]


def test_a_disk_with_hardly_any_room_stops_usage_before_it_is_full(desk: Desk) -> None:
    desk.free = 999
    desk.writer.look()
    desk.writer.write(desk.usage())
    desk.writer.write([ShutdownBody(reason="a word that is not usage")])
    desk.free = 1250
    desk.writer.look()
    desk.writer.seal()
    found = desk.entries()
    assert kinds(found) == ["Genesis", "Inventory", "Gap", "Shutdown", "Gap"]
    assert [e.body.cause for e in found if isinstance(e, Gap)] == ["disk_full", "disk_full"]


@contextmanager
def full_from(monkeypatch: pytest.MonkeyPatch, number: int) -> Iterator[list[str]]:
    """Every call from the n-th on that needs room fails; a write leaves a part of itself."""
    seen: list[str] = []

    def wrap(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            if len(seen) < number:
                return real(*args, **kwargs)
            if name == "write" and len(seen) == number:
                return real(args[0], bytes(args[1])[: len(args[1]) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

        return call

    with monkeypatch.context() as patch:
        for name in ("write", "fsync", "fdatasync"):
            patch.setattr(os, name, wrap(name))
        yield seen


def test_a_disk_that_is_full_at_any_call_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for number in count(1):
        host = Host(tmp_path / str(number), FakeVerifier())
        host.enroll()
        desk = Desk(host, Config(free_bytes=0))
        desk.writer.write([inventory_of(host)])
        words: list[Body] = [ShutdownBody(reason=f"word {n}") for n in range(12)]
        with full_from(monkeypatch, number) as calls:
            for n in range(4):
                desk.writer.write([*desk.usage(), words[3 * n], words[3 * n + 1]])
                desk.writer.write([words[3 * n + 2]])
                desk.wait(20)
                desk.writer.look()
                desk.writer.seal()
        hit = len(calls) >= number
        assert desk.writer.failed == hit
        assert not hit or "nothing is written until there is room" in caplog.text
        desk.wait(20)
        desk.writer.look()
        desk.writer.write(desk.usage())
        assert desk.writer.seal()
        entries = desk.entries()
        assert [e.body for e in entries if type(e).__name__ == "Shutdown"] == words
        assert isinstance(entries[-1], Usage)
        if hit:
            gap = entries[-2]
            assert isinstance(gap, Gap)
            assert gap.body.cause == "disk_full"
            assert gap.body.to_us - gap.body.from_us >= 20_000_000
        desk.store.close()
        caplog.clear()
        if not hit:
            assert number > 20
            return


def test_another_failure_of_the_disk_still_ends_the_process(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        with pytest.raises(StoreError) as caught:
            desk.writer.write(beat())
    assert not isinstance(caught.value, NoSpaceError)


def test_the_agent_over_a_spool_that_is_full_and_is_emptied(host: Host) -> None:
    verifier = host.verifier
    verifier.interfere = unreachable
    assert not host.run(loops=60, drain_s=0, checkpoint_s=60, spool_bytes=16_000)
    status = read_status(host.folder)
    assert 16_000 <= status.spool_bytes < 20_000
    verifier.interfere = lambda _, answer: answer
    assert host.run(spool_bytes=16_000)
    entries = verifier.entries()
    assert len(entries) == read_status(host.folder).sealed
    spans = [e.body.to_us - e.body.from_us for e in entries if isinstance(e, Usage)]
    assert max(spans) == 60_000_000
    assert [e.body.cause for e in entries if isinstance(e, Degraded)][:1] == ["spool_filling"]
    assert [e.body.cause for e in entries if isinstance(e, Gap)][:1] == ["spool_full"]
    assert sum(isinstance(e, Heartbeat) for e in entries) < 60


def test_a_real_file_system_that_is_full(host: Host, tmp_path: Path) -> None:
    """A tmpfs of 1 MiB that someone else fills up."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", place], capture_output=True, check=False
    )
    require("tmpfs", done.returncode == 0, "can't mount a tmpfs here")
    try:
        small = Host(place / "state", FakeVerifier())
        small.enroll()
        desk = Desk(small, Config(free_bytes=0))
        desk.writer.write([inventory_of(small)])
        with pytest.raises(OSError, match="No space left"):
            (place / "other").write_bytes(b"x" * 2**20)
        for _ in range(20):
            desk.writer.write(desk.usage())
            desk.writer.seal()
        assert desk.writer.failed
        (place / "other").unlink()
        desk.wait(20)
        desk.writer.look()
        desk.writer.write(desk.usage())
        assert desk.writer.seal()
        assert [e.body.cause for e in desk.entries() if isinstance(e, Gap)] == ["disk_full"]
        desk.store.close()
    finally:
        subprocess.run(["umount", place], check=True)
