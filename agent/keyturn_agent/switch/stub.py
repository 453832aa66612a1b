"""What a run begins as: it stands in its place, says so to the agent, and becomes the command when the chips are open.

    KEYTURN_BEGIN=<token> python -m keyturn_agent.switch.stub <socket> <group or -> <session: 0 or 1> <command> …

The agent learns its pid from the kernel, and with it the group or the session that the gate is to stop. The token is in
the environment, since a command line is for everybody to read. Nothing of the agent's is loaded: the command inherits
this process's id, and the environment as it was.
"""

import json
import os
import signal
import socket
import sys

from keyturn_agent.switch import hold

REFUSED = 125
"""As ``timeout`` and ``docker run`` have it: the command itself didn't start."""
NOT_FOUND, NOT_EXECUTABLE = 127, 126
TOKEN = "KEYTURN_BEGIN"  # noqa: S105 -- its name
_LOOK_S = 20
"""So long a command is held for an agent that was told of it."""


def main(argv: list[str]) -> int:
    path, group, session, *command = argv
    token = os.environ.pop(TOKEN)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Ctrl-C ends this as it would end the command: without a trace.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if session == "1":
        os.setsid()
    if group != "-":
        with open(f"{group}/cgroup.procs", "w") as procs:  # noqa: PTH123 -- pathlib would be loaded for this
            procs.write("0")
    with socket.socket(socket.AF_UNIX) as agent:
        try:
            agent.connect(path)
            answer = _ask(agent, {"token": token, "type": "begin"})
        except OSError as error:
            sys.stderr.write(f"keyturn-agent: error: the agent went away before the command began: {error.strerror}\n")
            return REFUSED
        if answer.get("type") != "go":
            return REFUSED
        if answer["look"]:
            hold.over_exec(command[0], lambda: _seen(agent))
        # The kernel closes the connection as this becomes the command.
        try:
            os.execvp(command[0], command)  # noqa: S606 -- to become the command is what this is for
        except OSError as error:
            sys.stderr.write(f"keyturn-agent: error: {command[0]}: {error.strerror}\n")
            status = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
            agent.sendall(_line({"status": status, "type": "ended"}))
            return status


def _seen(agent: socket.socket) -> bool:
    """Have the agent look; an agent that is gone, or silent, holds nothing up."""
    agent.settimeout(_LOOK_S)
    try:
        return _ask(agent, {"type": "begun"}).get("type") != "refused"
    except OSError:
        return True


def _ask(agent: socket.socket, request: dict[str, str]) -> dict[str, object]:
    """The agent's answer; nothing where it went away instead."""
    agent.sendall(_line(request))
    answer = b""
    while not answer.endswith(b"\n"):
        part = agent.recv(65_536)
        if not part:
            return {}
        answer += part
    found: dict[str, object] = json.loads(answer)
    return found


def _line(message: dict[str, object] | dict[str, str]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
