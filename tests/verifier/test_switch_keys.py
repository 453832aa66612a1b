"""A server whose keys aren't those that the root in force names says so, and signs no lease that nobody believes."""

from pathlib import Path

import pytest

from keyturn_verifier import keyfiles
from keyturn_verifier.routes import health
from tests.support.office import Office
from tests.support.starter import Starter
from tests.support.verifier import DEPLOYMENT, Served, Verifier, call

SAYS = "lease.key is "


@pytest.fixture(autouse=True)
def asked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PROBE_S", 0.0)


@pytest.fixture
def stray(tmp_path: Path) -> tuple[Path, bytes]:
    """The state directory of a verifier with a root and then another lease key, and the key that the root names."""
    with Verifier(tmp_path) as verifier:
        Office.opened(verifier)
    path = verifier.state / keyfiles.LEASE_KEY
    right = path.read_bytes()
    path.unlink()
    keyfiles.with_lease(verifier.state, DEPLOYMENT)
    assert path.read_bytes() != right
    return verifier.state, right


def test_nothing_is_signed_with_a_key_that_the_root_does_not_name(tmp_path: Path, stray: tuple[Path, bytes]) -> None:
    state, right = stray
    with Verifier(tmp_path) as verifier:
        host = Starter.enrolled(verifier, 0)
        seq = host.ask(None)
        before = verifier.dump()
        answer = host.get(seq)
        assert (answer.status, answer.code) == (503, "overloaded"), answer
        assert "isn't the one that the root in force names" in answer.problem.detail
        assert verifier.dump() == before
    # Nothing was granted meanwhile: with the right key the same entry gets its lease.
    (state / keyfiles.LEASE_KEY).write_bytes(right)
    with Verifier(tmp_path) as verifier:
        host.verifier = verifier
        host.opened(host.get(seq))


def test_an_operator_hears_of_it(tmp_path: Path, stray: tuple[Path, bytes]) -> None:
    state, right = stray
    with Verifier(tmp_path) as verifier:
        ready = verifier.client.get("/readyz")
        assert ready.status == 200
        assert f'"warnings":["{SAYS}'.encode() in ready.body
    served = Served(state)
    served.start()
    assert served.terminate() == 0
    assert SAYS in served.log()
    assert "the root in force names" in served.log()
    done = call("doctor", "--state", state)
    assert (done.returncode, f"fail  keys: {SAYS}" in done.stdout) == (1, True), done
    (state / keyfiles.LEASE_KEY).unlink()
    assert "fail  keys: there is no lease.key" in call("doctor", "--state", state).stdout
    (state / keyfiles.LEASE_KEY).write_bytes(right)
    (state / keyfiles.LEASE_KEY).chmod(0o600)
    done = call("doctor", "--state", state)
    assert (done.returncode, "ok    keys: those that the root in force names" in done.stdout) == (0, True), done
    with Verifier(tmp_path) as verifier:
        assert verifier.client.get("/readyz").body == b'{"status":"ready"}'


def test_before_a_root_no_key_is_wrong(tmp_path: Path) -> None:
    with Verifier(tmp_path) as verifier:
        assert verifier.client.get("/readyz").body == b'{"status":"ready"}'
    assert "ok    keys: there is no root yet" in call("doctor", "--state", verifier.state).stdout
