"""The parts of the demo that can do harm: emptying a folder, ending processes, altering evidence."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from keyturn_cli.demo import processes
from keyturn_cli.demo.place import MARK, checkout, prepare
from keyturn_cli.demo.processes import Children, program, wait_for
from keyturn_cli.demo.tamper import flip_digit, rehash
from keyturn_cli.errors import CliError, Exit
from keyturn_cli.reader import FolderReader
from keyturn_protocol.audit import audit
from keyturn_protocol.chips import chip_table
from tests.support.bundles import Bundle


class TestPlace:
    def test_a_new_folder_is_made_and_one_of_its_own_emptied(self, tmp_path: Path) -> None:
        folder = tmp_path / "a" / "b"
        prepare(folder)
        (folder / "evidence").mkdir()
        (folder / "evidence" / "file").write_text("old")
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "precious").write_text("kept")
        (folder / "link").symlink_to(outside)
        prepare(folder)
        assert [p.name for p in folder.iterdir()] == [MARK]
        assert (outside / "precious").exists()

    def test_anything_else_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "mine").write_text("precious")
        (tmp_path / "file").write_text("")
        (tmp_path / "link").symlink_to(tmp_path)
        for folder in (tmp_path, tmp_path / "file", tmp_path / "link"):
            with pytest.raises(CliError) as refused:
                prepare(folder)
            assert refused.value.exit is Exit.USAGE
        assert (tmp_path / "mine").read_text() == "precious"

    def test_without_recordings_it_says_where_to_run(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("keyturn_cli.demo.place.__file__", str(tmp_path / "a/b/c/place.py"))
        with pytest.raises(CliError, match="hardware_fixtures is not here"):
            checkout()


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any program by its path, instead of a console script by its name."""
    monkeypatch.setattr(processes, "program", lambda name: name)


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.usefixtures("programs")
class TestChildren:
    def python(self, code: str) -> tuple[str, ...]:
        return (sys.executable, "-c", code)

    def test_none_survives_a_failure(self, tmp_path: Path) -> None:
        pids = []

        def fail() -> None:
            with Children(tmp_path) as children:
                for i in range(2):
                    child = children.start(f"child {i}", *self.python("import time; time.sleep(600)"))
                    pids.append(child.process.pid)
                assert all(map(running, pids))
                raise CliError("a step failed", exit=Exit.REJECTED)

        with pytest.raises(CliError, match="a step failed"):
            fail()
        assert not any(map(running, pids))

    def test_one_that_ignores_sigterm_is_killed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(processes, "GRACE_S", 0.2)
        stubborn = "import signal, time, pathlib\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        stubborn += f"pathlib.Path({str(tmp_path / 'ready')!r}).write_text('1')\ntime.sleep(600)"
        with Children(tmp_path) as children:
            child = children.start("stubborn", *self.python(stubborn))
            assert wait_for(tmp_path / "ready", child, time.monotonic() + 30) == "1"
        assert child.process.returncode == -signal.SIGKILL

    def test_signal_handlers_are_put_back(self, tmp_path: Path) -> None:
        before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        with Children(tmp_path):
            assert signal.getsignal(signal.SIGTERM) is not before[1]
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before

    def test_a_failure_says_what_the_program_said(self, tmp_path: Path) -> None:
        code = self.python("import sys; sys.exit('no such luck')")
        with Children(tmp_path) as children:
            with pytest.raises(CliError, match="one ended with 1: no such luck"):
                children.run("one", *code)
            child = children.start("two", *code)
            with pytest.raises(CliError, match="two ended with 1: no such luck"):
                children.finish(child, time.monotonic() + 30)
            child = children.start("three", *code)
            with pytest.raises(CliError, match="three ended with 1"):
                wait_for(tmp_path / "never", child, time.monotonic() + 30)


def test_programs_are_those_beside_this_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(CliError, match="keyturn-agent is not installed beside"):
        program("keyturn-agent")


def test_one_digit_is_flipped_and_everything_still_parses(evidence: Path, made: Bundle) -> None:
    origin = made.manifest.logs[0].origin
    flip = flip_digit(evidence, evidence.parent / "copy", origin)
    assert flip.after < flip.before
    before, after = (evidence / flip.path).read_bytes(), (evidence.parent / "copy" / flip.path).read_bytes()
    assert [i for i, (x, y) in enumerate(zip(before, after, strict=True)) if x != y] == [flip.offset]
    for forged in (False, True):
        if forged:
            rehash(evidence.parent / "copy", flip.path)
        report = audit(FolderReader(str(evidence.parent / "copy")), made.trust, chip_table())
        assert (report.contradictions[0].where, report.contradictions[0].seq) == (flip.path, flip.seq)
