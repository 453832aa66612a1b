"""``keyturn`` for scripts with many commands: its ``main``, each call in a process of its own, forked from one that has
imported everything: fifty calls don't import it fifty times."""

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# -I -S: nothing is imported that the few lines don't need.
_CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as s:
    s.connect({path!r})
    call = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(s, [len(call).to_bytes(4, "big")], [0, 1, 2])
    s.sendall(call)
    sys.exit(s.recv(1)[0])
"""


@contextmanager
def preforked(folder: Path) -> Iterator[Path]:
    """A folder with a program ``keyturn``, to be put before others in PATH.

    The server is a child of its own: it has no thread when it forks.
    """
    path = folder / "keyturn.socket"
    (folder / "bin").mkdir()
    client = folder / "bin" / "keyturn"
    client.write_text(_CLIENT.format(python=sys.executable, path=str(path)))
    client.chmod(0o755)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(8)
    import keyturn_cli.main  # noqa: F401 -- imported before the fork

    assert threading.current_thread() is threading.main_thread()
    server = os.fork()
    if server == 0:
        _serve(listener)
    listener.close()
    try:
        yield folder / "bin"
    finally:
        os.kill(server, 9)
        os.waitpid(server, 0)


def _serve(listener: socket.socket) -> None:
    """One call after the other, for ever."""
    while True:
        connection, _ = listener.accept()
        with connection:
            head, descriptors, _, _ = socket.recv_fds(connection, 4, 3)
            data = bytearray()
            while len(data) < int.from_bytes(head, "big"):
                data += connection.recv(65_536)
            arguments, cwd, environment = json.loads(data)
            child = os.fork()
            if child == 0:
                _call(arguments, cwd, environment, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            connection.sendall(bytes([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF]))


def _call(arguments: list[str], cwd: str, environment: dict[str, str], descriptors: list[int]) -> None:
    code = 70
    try:
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(environment)
        for name, target in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
            setattr(sys, name, open(target, "r" if target == 0 else "w", closefd=False))  # noqa: SIM115
        from keyturn_cli import output
        from keyturn_cli.main import main

        # Consoles that a test before this one made write to where that test read.
        output.results.cache_clear()
        output.talk.cache_clear()
        code = main(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
