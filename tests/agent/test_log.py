"""One log on disk: what was acknowledged survives, and there is one head of each size, whatever happens."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from keyturn_agent.errors import DamagedError, StoreError
from keyturn_agent.log import SEAL_BYTES, NodeLog
from keyturn_protocol.entries import Recovered
from keyturn_protocol.entry_log import DegradedBody
from keyturn_protocol.errors import ProtocolError
from tests.agent.logs import BEAT, Recorder, check_log, make_log, name_of, reopen, stamp


class Crash(BaseException):
    """The process is gone."""


@contextmanager
def crash_at(monkeypatch: pytest.MonkeyPatch, number: int, *, half: bool) -> Iterator[list[str]]:
    """End the process at the n-th call that changes a file: before it, or (`half`) in the middle of a write."""
    seen: list[str] = []

    def wrap(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                return real(*args, **kwargs)
            if len(seen) >= number:
                raise Crash
            seen.append(name)
            if len(seen) == number:
                if half and name == "write":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                raise Crash
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("write", "fsync", "fdatasync", "ftruncate", "rename", "unlink"):
            patch.setattr(os, name, wrap(name))
        yield seen


def story(log: NodeLog, acknowledged: list[int]) -> None:
    """Entries and seals, as a run has them. After each step, how many entries the log has promised to keep."""
    for second, step in enumerate([3, 0, 2, 0, 1, 1, 0, 2], start=1):
        if step:
            log.append([BEAT] * step, stamp(second))
        else:
            log.seal()
        acknowledged.append(log.size)


@pytest.mark.parametrize("half", [False, True])
def test_a_crash_at_any_step_loses_nothing_and_signs_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: bool
) -> None:
    for number in count(1):
        folder = tmp_path / str(number)
        signer = Recorder()
        log = make_log(folder, signer)
        acknowledged = [log.size]
        ended = True
        with crash_at(monkeypatch, number, half=half):
            try:
                story(log, acknowledged)
            except Crash:
                ended = False
        log.close()

        after = reopen(folder, signer)
        after.append([BEAT], stamp(2 * 10**9))
        after.seal()
        after.close()
        entries = check_log(folder, signer)
        assert len(entries) > acknowledged[-1]
        assert entries[0].seq == 0
        signer.check_one_head_a_size()
        if ended:
            assert number > 30
            return


@pytest.mark.parametrize("half", [False, True])
def test_a_crash_while_a_log_is_made_leaves_it_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: bool
) -> None:
    for number in count(1):
        folder = tmp_path / str(number) / "1"
        folder.parent.mkdir()
        signer = Recorder()
        with crash_at(monkeypatch, number, half=half):
            try:
                make_log(folder, signer).close()
                return
            except Crash:
                pass
        log = reopen(folder, signer) if folder.exists() else make_log(folder, signer)
        assert log.size == 1
        log.close()


def sealed_log(folder: Path, signer: Recorder) -> NodeLog:
    log = make_log(folder, signer)
    log.append([BEAT] * 3, stamp(1))
    log.seal()
    log.append([BEAT] * 3, stamp(2))
    return log


def test_a_tail_cut_anywhere_is_dropped_with_a_word(tmp_path: Path) -> None:
    signer = Recorder()
    sealed_log(tmp_path / "whole", signer).close()
    tail = (tmp_path / "whole" / "tail").read_bytes()
    ends = [0, *(i + 1 for i, byte in enumerate(tail) if byte == 10)]
    for length in range(len(tail)):
        folder = tmp_path / "cut"
        shutil.copytree(tmp_path / "whole", folder)
        os.truncate(folder / "tail", length)
        log = reopen(folder, signer)
        log.seal()
        log.close()
        entries = check_log(folder, signer)
        good = max(end for end in ends if end <= length)
        if good == length:
            assert not isinstance(entries[-1], Recovered)
        else:
            last = entries[-1]
            assert isinstance(last, Recovered)
            assert (last.body.bytes, last.body.sha256) == (length - good, sha256(tail[good:length]).hexdigest())
        assert len(entries) == 4 + ends.index(good) + (good != length)
        shutil.rmtree(folder)


def test_a_bit_flipped_anywhere_in_the_tail_never_enters_the_log(tmp_path: Path) -> None:
    signer = Recorder()
    sealed_log(tmp_path / "whole", signer).close()
    tail = (tmp_path / "whole" / "tail").read_bytes()
    original = set(tail.split(b"\n"))
    for at in range(0, len(tail), 3):
        folder = tmp_path / "flipped"
        shutil.copytree(tmp_path / "whole", folder)
        damaged = bytearray(tail)
        damaged[at] ^= 1
        (folder / "tail").write_bytes(damaged)
        log = reopen(folder, signer)
        # The last line has no successor that its hash could contradict: it may differ and still be well formed.
        kept = (folder / "tail").read_bytes().split(b"\n")[:-1]
        unknown = [line for line in kept if line not in original and b'"type":"recovered"' not in line]
        assert not unknown or (len(unknown) == 1 and unknown[0] == kept[-1] and at >= tail.rstrip().rfind(b"\n"))
        log.close()
        shutil.rmtree(folder)


def intended_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signer: Recorder) -> Path:
    """A log that crashed between the intended head and its segment."""
    for number in count(1):
        folder = tmp_path / f"try{number}"
        log = sealed_log(folder, signer)
        before = (folder / "state").read_bytes()
        with crash_at(monkeypatch, number, half=False), pytest.raises(Crash):
            log.seal()
        log.close()
        if (folder / "state").read_bytes() != before:
            assert not (folder / "4-7.segment").exists()
            return folder
    raise AssertionError


def test_entries_under_an_intended_head_are_never_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signer = Recorder()
    folder = intended_only(tmp_path, monkeypatch, signer)
    tail = (folder / "tail").read_bytes()
    for at in range(0, len(tail), 7):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        damaged = bytearray(tail)
        damaged[at] ^= 1
        (copy / "tail").write_bytes(damaged)
        with pytest.raises(DamagedError):
            NodeLog.open(copy, name_of(signer), signer)
        assert not (copy / "4-7.segment").exists()
        shutil.rmtree(copy)
    again = NodeLog.open(folder, name_of(signer), signer)
    assert again.sealed == 7
    again.close()
    signer.check_one_head_a_size()


@pytest.mark.parametrize("missing", ["state", "opened", "tail", "1-4.segment"])
def test_a_file_that_was_taken_away_is_damage(tmp_path: Path, missing: str) -> None:
    signer = Recorder()
    log = make_log(tmp_path / "1", signer)
    log.seal()
    log.append([BEAT] * 3, stamp(1))
    log.seal()
    log.close()
    (tmp_path / "1" / missing).unlink()
    with pytest.raises(DamagedError):
        NodeLog.open(tmp_path / "1", name_of(signer), signer)


def test_segments_stay_within_their_caps(tmp_path: Path) -> None:
    signer = Recorder()
    log = make_log(tmp_path / "1", signer)
    log.append([BEAT] * 600, stamp(1))
    assert log.sealed == 512
    # The largest text in UTF-8 that an entry takes, so that bytes and not entries fill a segment.
    big = DegradedBody(cause="large", interval_us=None, detail="\U0001f600" * 1024)
    log.append([big] * 1000, stamp(2))
    log.seal()
    log.close()
    assert len(check_log(tmp_path / "1", signer)) == 1601
    assert SEAL_BYTES < 4 * 1024 * 1024


def test_an_entry_that_breaks_the_format_changes_nothing(tmp_path: Path) -> None:
    log = make_log(tmp_path / "1", Recorder())
    before = (tmp_path / "1" / "tail").read_bytes()
    with pytest.raises(ProtocolError):
        log.append([BEAT, DegradedBody(cause="Not A Slug", interval_us=None, detail=None)], stamp(1))
    assert (tmp_path / "1" / "tail").read_bytes() == before
    log.append([BEAT], stamp(1))
    log.close()


def test_after_a_failed_write_nothing_more_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signer = Recorder()
    log = make_log(tmp_path / "1", signer)

    def no_space(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", no_space)
        with pytest.raises(StoreError, match="No space left"):
            log.append([BEAT], stamp(1))
    with pytest.raises(StoreError):
        log.append([BEAT], stamp(2))
    with pytest.raises(StoreError):
        log.seal()
    log.close()
    reopen(tmp_path / "1", signer).close()
