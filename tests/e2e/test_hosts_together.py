"""``exec --hosts N`` at a real verifier, with real agents: all of a group begin, or none of it does."""

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from keyturn_agent.recording import read_recording
from keyturn_protocol.policy import Stop
from tests.agent import leasing
from tests.agent.leasing import LeasingHost
from tests.faults.table import LONG
from tests.support.office import Office
from tests.support.verifier import Verifier


def host(folder: Path, verifier: Verifier, root: str | None, patch: pytest.MonkeyPatch) -> LeasingHost:
    """An enrolled host with a chip of its own."""
    folder.mkdir()
    recording = folder / "recording.jsonl"
    uuid = read_recording(leasing.FIXTURE).header.chips[0].uuid
    recording.write_text(leasing.FIXTURE.read_text().replace(uuid, f"GPU-of-{folder.name}"))
    url: str = verifier.client.url
    hall: Any = SimpleNamespace(hall=SimpleNamespace(root=root))
    with patch.context() as only:
        only.setattr(leasing, "TOKEN", verifier.join_token())
        only.setattr(leasing, "FIXTURE", recording)
        return LeasingHost(folder, hall, url, None).start()


@pytest.mark.skipif(not LONG, reason="long: KEYTURN_FAULTS=long")
def test_two_hosts_get_their_leases_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="kt-n-") as name, Verifier(tmp_path) as verifier:
        office = Office.opened(verifier, stop=Stop(notice_s=1800, alone_s=3600, kill_s=1))
        run = office.approved(scope=office.scope(sites=None, chip_uuids=None))
        hosts: list[LeasingHost] = []
        try:
            hosts += (host(Path(name) / at, verifier, office.root, monkeypatch) for at in ("a", "b"))
            words = ("--run", run, "--hosts", "2", "--group", "g")
            status, out, err = hosts[0].ran(*words, "--wait", "6", "--", "echo", "alone")
            assert (status, out) == (3, ""), err
            waiting = [each.exec(*words, "--", "echo", "together") for each in hosts]
            for process in waiting:
                out, err = process.communicate(timeout=60)
                assert (process.returncode, out) == (0, "together\n"), err
        finally:
            for each in hosts:
                each.kill()
        # What the first host asked for alone may have got a lease as well, when the other came: nobody took it.
        assert verifier.count("lease_issued") in (2, 3)
