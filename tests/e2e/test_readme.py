"""The commands that README gives, run as a stranger would: in one shell, one after the other."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.documents import tracked_files
from tests.support.optional import require_program
from tests.support.paths import REPO

pytestmark = pytest.mark.timeout(400)

END = "status=$?; kill $!; wait $!; exit $status"


def commands() -> str:
    """The block under *By hand*."""
    found = re.search(r"^### By hand\n.*?```\n(.*?)```", (REPO / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def test_by_hand(tmp_path: Path) -> None:
    """In the checkout, as README says: what the commands make must not collide with what is there."""
    checkout = tmp_path / "main"
    for file in tracked_files():
        copied = checkout / file.relative_to(REPO)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copied)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    script = commands().replace("8642", port).replace("serve ", f"serve --port {port} ")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # Whatever fails, the trap ends the server.
    done = subprocess.run(
        [require_program("bash"), "-c", f"set -e; trap '{END}' EXIT\n{script}"],
        cwd=checkout,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "slurm:fixture:1" in done.stdout
    assert re.search(r"^INTEGRITY +PASS  1 of 1 log", done.stdout, re.MULTILINE)
