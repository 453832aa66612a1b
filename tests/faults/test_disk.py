"""Disks that are full: a real file system of a few MiB under a host's folder, or under a verifier's database.

Somebody else takes the room and gives it back. Nothing receipted is lost, nothing is half there, and what was not
measured meanwhile is a gap with its cause.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from keyturn_agent.pressure import DISK_FILLING, DISK_FULL
from keyturn_agent.retention import oldest
from keyturn_agent.status import read_status
from keyturn_protocol.entries import Degraded, Entry, Gap, parse_entry
from keyturn_protocol.findings import FindingCode
from keyturn_protocol.segment import parse_segment
from tests.faults.after import SILENCE, check, receipts
from tests.faults.site import Agent
from tests.faults.table import LONG, record
from tests.support.optional import require
from tests.support.verifier import Verifier

KIB = 1024


class Disk:
    """A small file system. ``leave``: let a filler take all but so much."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "somebody-elses"

    def leave(self, size: int) -> None:
        self._filler.unlink(missing_ok=True)
        found = os.statvfs(self.folder)
        take = found.f_bavail * found.f_frsize - size
        with self._filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, take))

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Disk]:
    """Skips where this process may not mount."""
    folder.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(folder)]
    done = subprocess.run(line, capture_output=True, text=True, check=False) if os.geteuid() == 0 else None
    require("mount", done is not None and done.returncode == 0, "mounting a small file system is for root")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def entries(bundle: Path) -> list[Entry]:
    """Of an export with one log, in order."""
    paths = [path for path in bundle.rglob("*.segment") if "evidence" not in path.parts]
    found = [parse_entry(line) for path in paths for line in parse_segment(path.read_bytes()).lines]
    return sorted(found, key=lambda entry: entry.seq)


def segments(host: Agent) -> int:
    return len(list((host.folder / "logs" / "1").glob("*.segment")))


def test_receipted_segments_go_before_usage_does(tmp_path: Path) -> None:
    """The disk gets full while all is receipted: room is made, and metering never stops."""
    with Verifier(tmp_path / "site") as verifier, small_disk(tmp_path / "disk", 2048 * KIB) as disk:
        host = Agent(disk.folder / "state", verifier)
        for _ in range(3):
            assert host.run(free_bytes=64 * KIB)
        given, before = receipts(host.folder), segments(host)
        disk.leave(48 * KIB)
        assert host.run(free_bytes=64 * KIB)
        assert segments(host) < before
        disk.free()
        assert host.run(free_bytes=64 * KIB)
        after = check(verifier, tmp_path / "out", [host.folder], given=given, expect={FindingCode.DEGRADED})
    written = entries(after.bundle)
    assert {entry.body.cause for entry in written if isinstance(entry, Degraded)} == {DISK_FILLING}
    assert not [entry for entry in written if isinstance(entry, Gap)]
    record("faults", "agent", "disk fills up, much of it receipted",
           expected="the oldest receipted segments go, and no usage is lost", seen=after.seen)  # fmt: skip


@pytest.mark.parametrize("left", range(0, 64 * KIB, 8 * KIB) if LONG else [0])
@pytest.mark.parametrize("away", [True, False], ids=["verifier away", "verifier there"])
def test_a_full_disk_is_a_gap_and_ends_with_it(tmp_path: Path, left: int, away: bool) -> None:
    """With no room at all, whether or not receipts come; then there is room again."""
    with Verifier(tmp_path / "site") as verifier, small_disk(tmp_path / "disk", 1024 * KIB) as disk:
        host = Agent(disk.folder / "state", verifier)
        assert host.run(free_bytes=0)
        given = receipts(host.folder)
        nobody = "http://127.0.0.1:9" if away else verifier.client.url
        calls = 0

        def free(folder: Path) -> int:
            """The disk is taken in mid-run and given back in mid-run."""
            nonlocal calls
            calls += 1
            if calls == 3:
                disk.leave(left)
            if calls == 12:
                disk.free()
            found = os.statvfs(folder)
            return found.f_bavail * found.f_frsize

        host.run(url=nobody, loops=5, free_bytes=0, free=free, drain_s=1 if away else 20)
        disk.free()
        assert host.run()
        status = read_status(host.folder)
        assert (status.incarnation, status.receipted) == (1, status.sealed)
        allow = {FindingCode.DEGRADED, FindingCode.RECOVERED, *SILENCE}
        after = check(verifier, tmp_path / "out", [host.folder], given=given, allow=allow)
    causes = {entry.body.cause for entry in entries(after.bundle) if isinstance(entry, Gap)}
    assert causes <= {DISK_FULL}
    assert causes or left
    record("faults", "agent", f"disk full in mid-run, verifier {'away' if away else 'there'}",
           expected="a gap with its cause; the same log goes on", seen=f"audit: {after.report.outcome}")  # fmt: skip


def test_a_verifier_whose_disk_is_full_stores_nothing_and_says_so(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8192 * KIB) as disk:  # so that all that is taken in between has room
        with Verifier(disk.folder / "site") as verifier:
            nodes = [verifier.enrolled(seed=seed, at=seed) for seed in range(3)]
            given: dict[tuple[str, int], bytes] = {}
            refused = 0
            for left in range(0, 128 * KIB, 4 * KIB) if LONG else (0, 16 * KIB, 64 * KIB):
                disk.leave(left)
                for node in nodes:
                    while node.sent < node.size or not refused:
                        node.usage(20)
                        answer = verifier.client.post(node.range(node.sent, node.size))
                        if answer.status != 200:
                            assert answer.status == 503, answer
                            assert "retry-after" in answer.headers
                            refused += 1
                            break
                        given[node.origin, node.size] = answer.body
                        node.sent = node.size
                assert verifier.client.get("/healthz").status == 200
                disk.free()
                for node in nodes:
                    node.usage(1)
                    answer = verifier.client.post(node.range(node.sent, node.size))
                    assert answer.status == 200, answer
                    given[node.origin, node.size] = answer.body
                    node.sent = node.size
            assert refused
        with Verifier(disk.folder / "site") as verifier:
            after = check(verifier, tmp_path / "out", given=given)
    record("faults", "verifier (SQLite)", "disk full, then room again",
           expected="503 with Retry-After, nothing half stored; then it goes on", seen=after.seen)  # fmt: skip


def test_no_more_goes_than_is_wanted_and_the_oldest_first() -> None:
    from keyturn_agent.retention import Kept

    kept = [Kept(Path("1"), at, at + 1, 100, 0) for at in range(5)]
    assert [each.start for each in oldest(kept, 250)] == [0, 1, 2]
    assert oldest(kept, 0) == []
    assert len(oldest(kept, 10_000)) == 5
