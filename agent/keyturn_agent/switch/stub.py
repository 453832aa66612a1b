"""What a run begins as: it stands in its place, says so to the agent, and becomes the command when the chips are open.

    python -m keyturn_agent.switch.stub <socket> <token> <group or -> <session: 0 or 1> <command> …

The agent learns its pid from the kernel, and with it the group or the session that the gate is to stop. Nothing of
the agent's is loaded: the command inherits this process's id, and the environment as it was.
"""

import json
import os
import signal
import socket
import sys

REFUSED = 125
"""As ``timeout`` and ``docker run`` have it: the command itself didn't start."""
NOT_FOUND, NOT_EXECUTABLE = 127, 126


def main(argv: list[str]) -> int:
    path, token, group, session, *command = argv
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Ctrl-C ends this as it would end the command: without a trace.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if session == "1":
        os.setsid()
    if group != "-":
        with open(f"{group}/cgroup.procs", "w") as procs:  # noqa: PTH123 -- pathlib would be loaded for this
            procs.write("0")
    try:
        answer = _ask(path, json.dumps({"token": token, "type": "begin"}, separators=(",", ":")).encode() + b"\n")
    except OSError as error:
        sys.stderr.write(f"keyturn-agent: error: the agent went away before the command began: {error.strerror}\n")
        return REFUSED
    if not answer or json.loads(answer)["type"] != "go":
        return REFUSED
    try:
        os.execvp(command[0], command)  # noqa: S606 -- to become the command is what this is for
    except OSError as error:
        sys.stderr.write(f"keyturn-agent: error: {command[0]}: {error.strerror}\n")
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE


def _ask(path: str, request: bytes) -> bytes:
    """The agent's line; nothing where it went away instead."""
    with socket.socket(socket.AF_UNIX) as agent:
        agent.connect(path)
        agent.sendall(request)
        answer = b""
        while not answer.endswith(b"\n"):
            part = agent.recv(65_536)
            if not part:
                return b""
            answer += part
        return answer


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
