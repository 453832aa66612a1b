"""docs/start-switch.md, run as a lab, an operator and a regulator would: a real verifier, keys of three kinds, one of
them on a machine without a network."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.optional import require_program
from tests.support.paths import REPO
from tests.support.preforked import preforked
from tests.support.verifier import Served, run

pytestmark = pytest.mark.timeout(400)

PAGE = (REPO / "docs" / "start-switch.md").read_text()
DEPLOYMENT = "keyturn.example.org"


def blocks() -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_page_from_a_root_to_a_rehearsed_stop(tmp_path: Path) -> None:
    state = tmp_path / "verifier"
    assert run("init", "--state", state, "--deployment", DEPLOYMENT).returncode == 0
    token = run("token", "create", "--state", state, "--role", "approver")
    (tmp_path / "people.token").write_text(token.stdout)
    script = "set -euo pipefail\n" + "\n".join(f"echo '=== {at}'\n{block}" for at, block in enumerate(blocks()))
    for program in ("ssh-keygen", "sha256sum"):
        require_program(program)
    served = Served(state)
    url = served.start().url
    try:
        with preforked(tmp_path) as folder:
            path = os.pathsep.join((str(folder), str(Path(sys.executable).parent), os.environ["PATH"]))
            own = {"PATH": path, "V": url, "KEYTURN_STATE": str(tmp_path / "seen"), "XDG_CONFIG_HOME": str(tmp_path)}
            done = subprocess.run(
                [require_program("bash"), "-c", script],
                cwd=tmp_path, env=os.environ | own, capture_output=True, text=True, timeout=350, check=False,
            )  # fmt: skip
    finally:
        served.terminate()
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-6_000:] + served.log()[-2_000:]
    for shown in SHOWN:
        assert shown in said, (shown, said)
    last = json.loads((tmp_path / "last.json").read_bytes())
    kinds = [one["envelope"]["payloadType"].split(".")[-1].split("+")[0] for one in last["statements"]]
    assert kinds == KINDS


SHOWN = (
    "enough have signed: keyturn-verifier root install",
    "operator-b/eve (operator, hosting)",
    "it can approve, and it can refuse",
    "48 h 30 min at the worst",
    "operator 1 of 1",
    "requester: who asks never counts",
    "regulator 1 of 1",
    "APPROVED with this",
    "narrowed to: chips at once 96",
    "suspended",
    "with this the proposal is in force",
    "COMPLETED",
    "the verifier alone can over-lease and hide a veto",
)
KINDS = (
    ["root", "policy", "request", "decision", "decision", "decision", "suspend", "resume"]
    + ["decision"] * 3
    + ["withdraw"]
)
