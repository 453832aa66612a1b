"""How calls are read from a trace: they must be counted as strace counts them when it looks at one file."""

from pathlib import Path

import pytest

from tests.faults.strace import Call, Fault, calls

TRACE = """\
7 openat(AT_FDCWD</srv>, "/state/a.tmp", O_WRONLY|O_CREAT|O_CLOEXEC, 0600) = 3</state/a.tmp>
7 write(3</state/a.tmp>, "\\"/state/b\\" is only said", 24) = 24
7 write(1</dev/null>, "/state/c", 8) = 8
7 rename("/state/a.tmp", "/state/a") = 0
7 fsync(4</state> <unfinished ...>
8 fsync(5</state>) = 0
7 <... fsync resumed>) = 0
7 rename("/state/b.tmp", "/state/a") = 0
7 fsync(4</state>) = 0
7 newfstatat(3</elsewhere>, "", {st_mode=S_IFREG|0600, st_size=0, ...}, AT_EMPTY_PATH) = 0
7 unlink("/state/a") = 0
7 rename("/state/a", "/state/d") = -1 ENOENT (No such file or directory)
"""


def test_calls_are_counted_by_thread_and_by_every_path_they_name(tmp_path: Path) -> None:
    (tmp_path / "trace").write_text(TRACE)
    assert calls(tmp_path / "trace", Path("/state")) == {
        Call("a.tmp", 1, "openat", makes=True),
        Call("a.tmp", 1, "write"),
        Call("a.tmp", 1, "rename"),
        Call("b.tmp", 1, "rename"),
        Call(".", 1, "fsync"),
        Call(".", 2, "fsync"),
        Call("a", 1, "unlink"),
        # The two renames before it named this path as well.
        Call("a", 3, "rename"),
    }


@pytest.mark.parametrize(
    ("call", "faults"),
    [
        (Call("a", 1, "openat", makes=True), {Fault.EIO, Fault.ENOSPC, Fault.KILL}),
        (Call("a", 1, "openat"), {Fault.EIO}),
        (Call("a", 1, "read"), {Fault.EIO}),
        (Call("a", 1, "flock"), {Fault.EIO, Fault.KILL}),
        (Call("a", 1, "unlink"), {Fault.EIO, Fault.KILL}),
        (Call("a", 1, "fdatasync"), {Fault.EIO, Fault.ENOSPC, Fault.KILL}),
    ],
)
def test_which_faults_a_call_can_meet(call: Call, faults: set[Fault]) -> None:
    assert {fault for fault in Fault if call.takes(fault)} == faults
