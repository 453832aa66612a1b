"""A verifier's SQLite file that was changed while nothing served it: bytes flipped, cut, zeroed, its WAL torn or gone.

An export either shows what is wrong, names the database and what to do, or is as good as before: a bundle that passes
the audit holds every receipt that was given.
"""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.after import stored_receipts
from tests.faults.table import LONG, record
from tests.support.verifier import Verifier, call

Change = Callable[[Path, random.Random], None]
FLIPS = 120 if LONG else 6


@dataclass
class Site:
    """A verifier's folder at rest, with a WAL that isn't in the database yet, and what it receipted."""

    folder: Path
    given: dict[tuple[str, int], bytes]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("site")
    given: dict[tuple[str, int], bytes] = {}
    with Verifier(folder / "live") as verifier:
        nodes = [verifier.enrolled(seed=seed, at=seed, usage=40) for seed in range(3)]
        for node in nodes:
            for _ in range(3):
                answer = verifier.client.post(node.segment(node.usage(30)))
                assert answer.status == 200
                given[node.origin, node.size] = answer.body
        # As kill -9 leaves it: what was committed last is in the WAL.
        shutil.copytree(folder / "live" / "state", folder / "state")
    assert (folder / "state" / "verifier.db-wal").stat().st_size > 0
    return Site(folder / "state", given)


def flip(path: Path, dice: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


def cut(path: Path, dice: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: dice.randrange(path.stat().st_size)])


def zero_page(path: Path, dice: random.Random) -> None:
    data = bytearray(path.read_bytes())
    at = dice.randrange(max(1, len(data) // 4096)) * 4096
    data[at : at + 4096] = bytes(len(data[at : at + 4096]))
    path.write_bytes(data)


def garbage(path: Path, dice: random.Random) -> None:
    path.write_bytes(dice.randbytes(path.stat().st_size))


def gone(path: Path, _: random.Random) -> None:
    path.unlink()


def empty(path: Path, _: random.Random) -> None:
    path.write_bytes(b"")


CASES: list[tuple[str, str, Change, int]] = [
    (name, what, change, times)
    for name in ("verifier.db", "verifier.db-wal")
    for what, change, times in (
        ("a bit flipped", flip, FLIPS),
        ("cut short", cut, 12 if LONG else 2),
        ("a page zeroed", zero_page, 40 if LONG else 2),
        ("random bytes", garbage, 1),
        ("empty", empty, 1),
        ("taken away", gone, 1),
    )
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "what", "change", "times"), CASES, ids=[f"{c[0]} {c[1]}" for c in CASES])
def test_a_database_that_was_changed(
    site: Site, tmp_path: Path, name: str, what: str, change: Change, times: int
) -> None:
    for number in range(times):
        folder = tmp_path / str(number)
        shutil.copytree(site.folder, folder / "state")
        change(folder / "state" / name, random.Random(f"{what} {number}"))
        seen = outcome(site, folder)
        expected = "an error that names it, a failed audit, or all of it"
        record("faults", "verifier (SQLite)", f"{name}: {what}", expected=expected, seen=seen)
        shutil.rmtree(folder)


def outcome(site: Site, folder: Path) -> str:
    """What an export of it says; `call` lets through what would be a trace."""
    done = call("export", "--state", folder / "state", "--out", folder / "out")
    if done.returncode:
        assert done.returncode == 1, done.stderr
        assert str(folder / "state") in done.stderr, done.stderr
        assert "hint: " in done.stderr, done.stderr
        return "refuses and names the database"
    verifier = Verifier.__new__(Verifier)
    verifier.state = folder / "state"
    report = verifier.audit(folder / "out")
    if report.outcome != "pass":
        assert report.reasons
        return "the audit says what is wrong"
    exported = stored_receipts(folder / "out")
    lost = [key for key, receipt in site.given.items() if exported.get(key) != receipt]
    # Without its WAL, or the end of it, a database is one from a little earlier, and consistent.
    return f"as of a moment before, {len(lost)} of {len(site.given)} receipts" if lost else "all of it"
