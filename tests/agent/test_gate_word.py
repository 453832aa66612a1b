"""A gate that does something else than the agent's configuration says: what is signed is what the gate does."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from keyturn_agent.switch.gate_word import AWAY_US, Driver, GateWord
from keyturn_agent.switch.gatelink import GateStatus, Released
from tests.agent.leasing import Leasing, LeasingHost, begun, enforcing, leasing_host
from tests.support.gates import gate, until


def said(driver: Driver, released: bool = False) -> GateStatus:
    assert driver != "none"
    out = Released(reason="a test", time_us=1) if released else None
    return GateStatus(driver=driver, boot_id="b", seq=0, released=out, trouble=None, chips=[], grants=[], events=[])


@pytest.mark.parametrize(
    ("expected", "does", "enforces", "wrong"),
    [
        ("compute_mode", "compute_mode", True, None),
        ("observe", "observe", False, None),
        ("compute_mode", "observe", False, "gate_mismatch"),
        ("observe", "compute_mode", True, "gate_mismatch"),
    ],
)
def test_the_gates_own_word_counts(expected: Driver, does: Driver, enforces: bool, wrong: str | None) -> None:
    word = GateWord(expected)
    assert (word.driver, word.enforces, word.wrong) == ("none", False, None)
    word.answered(said(does))
    assert (word.driver, word.enforces, word.wrong and word.wrong[0]) == (does, enforces, wrong)
    word.answered(said(does, released=True))
    assert (word.driver, word.enforces) == (does, False)


def test_a_gate_that_is_silent_for_long_is_known_to_hold_nothing() -> None:
    word = GateWord("compute_mode")
    word.answered(said("compute_mode"))
    word.silent(10)
    word.silent(10 + AWAY_US - 1)
    assert (word.driver, word.enforces, word.wrong) == ("compute_mode", True, None)
    word.silent(10 + AWAY_US)
    assert (word.driver, word.enforces, word.wrong and word.wrong[0]) == ("none", False, "gate_away")
    word.answered(said("compute_mode"))
    assert (word.driver, word.enforces, word.wrong) == ("compute_mode", True, None)
    word.silent(20 + AWAY_US)  # counted anew
    assert word.wrong is None


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for sockets in it."""
    with tempfile.TemporaryDirectory(prefix="kt-word-") as name:
        yield Path(name)


@pytest.fixture
def verifier() -> Leasing:
    return Leasing()


def examined(host: LeasingHost) -> str:
    """What doctor says of the gate."""
    done = host.command("doctor", "--state", str(host.state), "--config", str(host.config))
    (line,) = [line for line in done.stdout.splitlines() if line.split()[1] == "gate"]
    assert (done.returncode == 1) == any(line.startswith("fail") for line in done.stdout.splitlines()), done
    return line


def suspend(verifier: Leasing, run: str, in_s: int = 0) -> None:
    """Two organisations make it soon."""
    at_us = time.time_ns() // 1000 + in_s * 1_000_000
    verifier.say(lambda hall: hall.suspend(run, "office/ivy", at_us))
    verifier.say(lambda hall: hall.suspend(run, "operator-b/eve", at_us))


def test_a_gate_that_only_observes_is_signed_as_one_and_obey_still_obeys(folder: Path, verifier: Leasing) -> None:
    with gate(folder) as served, leasing_host(folder, verifier, served, expected="compute_mode") as host:
        run = verifier.approved()
        process = begun(host, "--obey", "--run", run)
        suspend(verifier, run)
        out, err = process.communicate(timeout=60)
        # The gate stopped nothing: SIGTERM came from exec itself.
        assert (process.returncode, out) == (9, "term\n"), err
        assert "SIGTERM: suspended by" in err
        until(lambda: "would_stop" in host.causes())
        assert set(host.gates()) == {"observe"}
        assert host.causes().count("gate_mismatch") == 1
        assert "MISMATCH: switch.gate says compute_mode" in host.status()
        assert examined(host).startswith(
            "fail  gate        switch.gate says compute_mode, the gate says observe: it locks nothing and stops nothing"
        )


def test_a_gate_that_locks_where_the_configuration_says_that_it_observes(
    folder: Path, library: Path, verifier: Leasing
) -> None:
    with enforcing(folder, library) as served, leasing_host(folder, verifier, served, expected="observe") as host:
        run = verifier.approved()
        process = begun(host, "--run", run)
        suspend(verifier, run)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (9, "term\n"), err
        assert "this run stops in" in err
        assert set(host.gates()) == {"compute_mode"}
        assert host.causes() == ["gate_mismatch"]
        assert examined(host).startswith("warn  gate        switch.gate says observe, the gate says compute_mode")


def test_a_gate_that_comes_late_is_in_the_log_once_it_has_said_what_it_does(
    folder: Path, library: Path, verifier: Leasing
) -> None:
    with enforcing(folder, library) as served:
        served.stop()
        with leasing_host(folder, verifier, served) as host:
            until(lambda: host.gates() == ["none"])
            assert "gate       not known, and it does not answer" in until(host.status)
            assert examined(host).startswith("fail  gate        no gate at")
            served.start()
            until(lambda: host.gates() == ["none", "compute_mode"])
            assert host.causes() == []
            assert examined(host) == "ok    gate        compute_mode, 1 chip"


def test_a_gate_that_comes_back_with_another_driver_while_a_run_is_on(
    folder: Path, library: Path, verifier: Leasing
) -> None:
    """Whoever was told that the run stops is told that it would; and when the gate locks again, that is said, too."""
    with enforcing(folder, library) as served, leasing_host(folder, verifier, served) as host:
        run = verifier.approved()
        process = begun(host, "--run", run)
        assert process.stderr is not None
        suspend(verifier, run, in_s=600)
        assert next(text for text in process.stderr if " stop" in text).startswith("keyturn: this run stops in")
        served.kill()
        served.driver = "observe"
        served.start()
        assert next(text for text in process.stderr if " stop" in text).startswith("keyturn: this run would stop in")
        until(lambda: host.gates() == ["compute_mode", "observe"])
        assert host.causes() == ["gate_mismatch"]
        served.kill()
        served.driver = "compute-mode"
        served.start()
        assert next(text for text in process.stderr if " stop" in text).startswith("keyturn: this run stops in")
        until(lambda: host.gates() == ["compute_mode", "observe", "compute_mode"])
        assert host.causes() == ["gate_mismatch"]
        process.terminate()
        assert process.communicate(timeout=60)[0] == "term\n"


def test_another_gate_is_said_again_at_each_start(folder: Path, verifier: Leasing) -> None:
    with gate(folder) as served, leasing_host(folder, verifier, served, expected="compute_mode") as host:
        until(lambda: host.causes() == ["gate_mismatch"])
        host.stop()
        host.start()
        until(lambda: host.causes() == ["gate_mismatch"] * 2)
        assert host.gates() == ["observe"] * 2
