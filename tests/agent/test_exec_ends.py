"""How ``exec`` ends: with the agent's last word, whichever that is, or without an agent."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from keyturn_agent.switch.asking import Ended, Over, Refused, ToExec, line, to_agent
from keyturn_agent.switch.exec import Command, _Session, _signals
from keyturn_agent.switch.scope import Place
from keyturn_agent.switch.stub import REFUSED, TOKEN, main


@pytest.mark.parametrize(
    ("last", "asked"),
    [
        (Over(charged_flop="7", detail="done"), None),
        (Refused(code="gate", detail="no gate", hint=None, retry=False), None),
        (None, Ended(status=125)),
    ],
)
def test_nothing_is_waited_for_after_the_last_word(last: ToExec | None, asked: Ended | None) -> None:
    nothing: Any = None
    ours, agents = socket.socketpair()
    with ours, agents:
        session = _Session(Command(Path("/"), nothing, {}, ["true"], None, False), ours)
        if last is not None:
            agents.sendall(line(last))
            for message in session._hear(None):
                session._note(message)
        else:
            # Whoever is asked for it says it, or goes away.
            agents.shutdown(socket.SHUT_WR)
        session._last_words(125)
        session.close()
        said = agents.recv(65_536)
    assert (to_agent(said.removesuffix(b"\n")) if said else None) == asked


def test_agent_that_is_gone_starts_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN, "0" * 64)
    assert main([str(tmp_path / "no.sock"), "-", "0", "sh", "-c", "echo started"]) == REFUSED
    out, err = capfd.readouterr()
    assert (out, "the agent went away before the command began" in err) == ("", True)


def test_a_signal_before_there_is_a_command_is_passed_on_once_there_is_one() -> None:
    """Also to one that has made no session yet."""
    nothing: Any = None
    session = _Session(Command(Path("/"), nothing, {}, ["true"], None, False), None)
    session.place = Place(session=True)
    with _signals(session):
        os.kill(os.getpid(), signal.SIGINT)
        session.child = subprocess.Popen(["sleep", "1000"])
        for number in session.early:
            session.send(number)
    assert session.child.wait(30) == -signal.SIGINT


def test_what_waits_for_its_chips_ends_with_ctrl_c_without_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(path))
        agent.listen()
        process = subprocess.Popen(
            [sys.executable, "-m", "keyturn_agent.switch.stub", str(path), "-", "0", "echo", "started"],
            env=os.environ | {TOKEN: "0" * 64}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        connection, _ = agent.accept()
        with connection:
            connection.recv(65_536)
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=30) == (b"", b"")
    assert process.returncode == -signal.SIGINT
