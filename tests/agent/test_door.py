"""Whoever knocks at the agent's socket: no user, and nothing that is said there, keeps others or the agent waiting."""

import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn_agent.errors import RefusedError, UnavailableError
from keyturn_agent.switch.asking import Begin, Ended, Refused, line, to_exec
from keyturn_agent.switch.door import Door, Heard
from keyturn_agent.switch.scope import target_of
from tests.support.gates import until
from tests.support.optional import require


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    with tempfile.TemporaryDirectory(prefix="kt-door-") as name:
        Path(name).chmod(0o755)
        made = Door(Path(name) / "exec.sock")
        yield made
        made.close()


def knock(door: Door) -> socket.socket:
    visitor = socket.socket(socket.AF_UNIX)
    visitor.settimeout(30)
    visitor.connect(str(door.path))
    return visitor


def left(door: Door, count: int) -> None:
    """Hear so many out, each of whom goes."""
    gone = 0
    while gone < count:
        gone += sum(heard.message is None for heard in door.heard())


def test_a_place_where_nothing_can_listen_may_be_there_later(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"^switch\.exec_socket: can't listen on "):
        Door(tmp_path / "none" / "exec.sock")


def test_a_visitor_that_never_stops_talking_is_heard_one_line_at_a_time(door: Door) -> None:
    with knock(door) as visitor:
        visitor.sendall(line(Begin(token="0" * 64)) * 500)
        heard: list[Heard] = []
        while len(heard) < 500:
            until(lambda: door.waiting)
            found = list(door.heard())
            assert len(found) == 1
            heard += found
    left(door, 1)


def test_one_user_keeps_no_other_out(door: Door) -> None:
    require("root", os.geteuid() == 0, "only root may be somebody else")
    visitors = [knock(door) for _ in range(64)]
    with knock(door) as refused:
        answer = to_exec(refused.makefile("rb").readline().strip())
        assert isinstance(answer, Refused)
        assert answer.code == "busy"
    os.seteuid(65534)
    try:
        other = knock(door)
    finally:
        os.seteuid(0)
    with other:
        other.sendall(line(Ended(status=7)))
        until(lambda: door.waiting)
        assert [heard.message for heard in door.heard()] == [Ended(status=7)]
    for visitor in visitors:
        visitor.close()
    left(door, 65)


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.builds(lambda cut, more: line(Ended(status=0))[:cut] + more, st.integers(0, 30), st.binary(max_size=20)),
        st.sampled_from([b"[" * 200_000, b'{"type":"ask"}', b'{"status":1e999,"type":"ended"}', b"\xed\xa0\x80"]),
    )
)
def test_whatever_is_said_the_next_visitor_is_heard(door: Door, said: bytes) -> None:
    with knock(door) as visitor:
        visitor.sendall(said + b"\n")
        visitor.shutdown(socket.SHUT_WR)
        while visitor.recv(65_536):
            list(door.heard())
    with knock(door) as visitor:
        visitor.sendall(line(Ended(status=9)))
        until(lambda: any(heard.message == Ended(status=9) for heard in door.heard()))


def test_a_process_number_that_is_another_users_by_now_is_not_a_run() -> None:
    """Who connected has died, and the kernel gave its number to somebody whom the gate would stop in its place."""
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as victim:
        try:
            until(lambda: os.getsid(victim.pid) == victim.pid)
            assert target_of(victim.pid, os.geteuid()).pid == victim.pid
            with pytest.raises(RefusedError, match="isn't user"):
                target_of(victim.pid, os.geteuid() + 1)
        finally:
            victim.kill()
