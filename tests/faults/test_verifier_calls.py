"""Every file call of the verifier on SQLite, one by one: it fails, finds the disk full, or is the last one."""

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.cases import RUNS, choose, meet, pairs, write_down
from tests.faults.server import PHASES, PRELOAD, Phase, Site
from tests.faults.strace import Call, Fault, require_strace
from tests.faults.warm import Warm

EXPECTED = "503 with Retry-After, or it ends with an error of its own; started again, every receipt is there"


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm("keyturn_verifier.cli:run", PRELOAD) as warm:
        yield warm


class Templates:
    """Verifiers to copy: one that is new, and one that has logs."""

    def __init__(self, folder: Path, warm: Warm) -> None:
        self.new = Site(folder / "new", warm)
        self.new.make()
        self.used = self.new.copy(folder / "used")
        self.used.serve_once()


@pytest.fixture(scope="module")
def templates(quick_folder: Path, warm: Warm) -> Templates:
    return Templates(Path(tempfile.mkdtemp(dir=quick_folder)), warm)


def site_for(templates: Templates, phase: Phase, folder: Path) -> Site:
    if phase.template is None:
        folder.mkdir()
        return Site(folder, templates.new.warm)
    return (templates.new if phase.template == "new" else templates.used).copy(folder)


def calls_of(templates: Templates, phase: Phase, folder: Path) -> set[Call]:
    """The calls of a command without a fault."""
    found: set[Call] = set()
    for i in range(RUNS):
        site = site_for(templates, phase, folder / f"plain{i}")
        seen, calls = phase.watch(site)
        assert seen == "went on", seen
        phase.after(site)
        found |= calls
    return found


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("phase", "fault"), pairs(PHASES))
def test_each_file_call(quick_folder: Path, templates: Templates, phase: Phase, fault: Fault) -> None:
    folder = Path(tempfile.mkdtemp(dir=quick_folder))
    require_strace()
    count = itertools.count()

    def one(call: Call) -> str | None:
        site = site_for(templates, phase, folder / f"case{next(count)}")
        how = phase.inject(site, call, fault)
        phase.after(site)
        shutil.rmtree(site.folder)
        return how

    cases = choose(calls_of(templates, phase, folder), fault)
    part = "verifier (SQLite)"
    write_down(part, fault, meet(part, phase.name, fault, cases, one), EXPECTED)
