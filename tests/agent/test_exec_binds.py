"""What was approved stays bound to what runs: against a real agent, a real gate and real commands."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from keyturn_protocol.entries import Permit
from keyturn_protocol.policy import Stop
from tests.agent.leasing import LOOP, Leasing, enforced_host
from tests.support.gates import until
from tests.support.parties import tier

PEOPLE = ("lab-a/bob", "operator-b/eve", "office/ivy")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for sockets in it."""
    with tempfile.TemporaryDirectory(prefix="kt-binds-") as name:
        yield Path(name)


def test_a_program_that_an_amendment_replaced_is_not_renewed_and_stops(folder: Path, library: Path) -> None:
    """It has the notice of a suspension, also from an agent that is started again; what was approved instead starts."""
    verifier = Leasing(stop=Stop(notice_s=8, alone_s=3600, kill_s=1), tiers=[tier(verified=["argv"])])
    verifier.terms = {"renew_s": 1}
    with enforced_host(folder, library, verifier) as host:
        openings, spec = host.openings(LOOP)
        run = verifier.approved(spec=spec)
        words = ["--run", run, "--openings", openings, "--", *LOOP]
        process = host.exec(*words)
        until(lambda: len([entry for entry in host.entries() if isinstance(entry, Permit)]) > 2)
        argv = ["echo", "the next one"]
        other, amended = host.openings(argv)
        verifier.say(lambda hall: hall.amend(run, *PEOPLE, spec=amended))
        why = "an amendment replaced what was started: argv"
        until(lambda: why in (host.state / "leases.json").read_text())
        asked = len([entry for entry in host.entries() if isinstance(entry, Permit)])
        host.kill()
        host.start()
        assert host.gate is not None
        (notice,) = until(lambda: list(host.gate.notices.iterdir()))  # type: ignore[union-attr]
        assert json.loads(notice.read_bytes())["why"] == why
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (9, "begun\nterm\n"), err
        assert why in err
        until(lambda: host.leases()[-1].body.event == "final")
        assert host.leases()[-1].body.reason == why
        assert len([entry for entry in host.entries() if isinstance(entry, Permit)]) <= asked + 1
        status, out, err = host.ran(*words)
        assert (status, out) == (1, ""), err
        assert "bad_openings" in err or "the openings are not this run's" in err
        status, out, err = host.ran("--run", run, "--openings", other, "--", *argv)
        assert (status, out) == (0, "the next one\n"), err
