"""What must not get a run started, or keep it going: against a real agent, a real gate and real commands."""

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from keyturn_agent.ports import Answer
from keyturn_protocol.api import ProblemCode
from keyturn_protocol.entries import Lease, Permit
from keyturn_protocol.policy import Stop
from tests.agent.fakes import refusal
from tests.agent.leasing import Leasing, LeasingHost, begun, enforced_host, leasing_host
from tests.faults.table import LONG
from tests.support.gates import gate, until
from tests.support.parties import SECOND, scope

long = pytest.mark.skipif(not LONG, reason="long: KEYTURN_FAULTS=long")
QUICK = Stop(notice_s=1800, alone_s=3600, kill_s=1)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for sockets in it."""
    with tempfile.TemporaryDirectory(prefix="kt-attack-") as name:
        yield Path(name)


@pytest.fixture
def host(folder: Path) -> Iterator[LeasingHost]:
    with gate(folder) as served, leasing_host(folder, Leasing(stop=QUICK), served) as host:
        yield host


def note(answer: bytes) -> Answer:
    return Answer(200, "text/plain", None, answer)


def test_a_lease_that_is_another_hosts_starts_nothing(host: LeasingHost) -> None:
    """Moved to another node or boot, for other chips, with another nonce: refused, whoever hands it out."""
    verifier = host.verifier
    for changes in (
        {"node_id": "f" * 32},
        {"boot_id": "00000000-0000-4000-8000-000000000000"},
        {"nonce": "0" * 64},
        {"chips": ["GPU-other"]},
    ):
        verifier.terms = changes
        status, out, err = host.ran("--lineage", "aurora", "--", "echo", "started")
        assert (status, out) == (1, ""), err
        assert "a lease for another" in err
    assert host.leases() == []


@long
def test_verifier_that_answers_garbage_starts_nothing_and_is_asked_again(host: LeasingHost) -> None:
    answers = [
        note(b""),
        note(b"\xff\xfe"),
        note(b'{"lease":1}\n\n- x AAAA\n'),
        Answer(500, "text/html", None, b"<h1>"),
    ]
    left = list(answers)
    host.verifier.answer = lambda origin, seq: left.pop(0) if left else None
    # Every try is some seconds after the last.
    process = host.exec("--lineage", "aurora", "--", "echo", "started")
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (0, "started\n"), err
    assert (err.count("no lease yet"), left) == (len(answers), [])


def test_the_permit_of_another_run_or_of_none_starts_nothing(host: LeasingHost) -> None:
    """Approvals of one run don't start another, whatever the verifier answers, and whatever it leases."""
    verifier = host.verifier
    approved = verifier.approved()
    verifier.hall.now_us = time.time_ns() // 1000 - 60 * SECOND
    pending = verifier.hall.say(
        verifier.hall.request(scope=scope(not_after_us=verifier.hall.now_us * 2), nonce="7" * 64), "lab-a/ada"
    )
    for shown in (None, approved):
        served = Answer(200, "application/json", None, verifier.hall.bundle(shown))
        answers = {"permit": served}
        verifier.interfere = answers.get
        status, out, err = host.ran("--run", pending, "--", "echo", "started")
        assert (status, out) == (1, ""), err
        assert "not this run's permit" in err
    assert not any(isinstance(entry, Permit) for entry in host.entries())


def test_agent_killed_and_verifier_away_a_suspension_that_was_heard_stops_the_run(folder: Path, library: Path) -> None:
    verifier = Leasing(stop=QUICK)
    with enforced_host(folder, library, verifier) as host:
        run = verifier.approved()
        process = begun(host, "--run", run)
        soon = time.time_ns() // 1000 + 5 * SECOND
        verifier.say(lambda hall: hall.suspend(run, "office/ivy", soon))
        verifier.say(lambda hall: hall.suspend(run, "operator-b/eve", soon))
        until(lambda: b"suspended by office/ivy, operator-b/eve" in (host.state / "leases.json").read_bytes())
        host.kill()
        verifier.interfere = lambda call, answer: Answer(503, "text/plain", 1, b"") if call == "permit" else answer
        host.start()
        assert process.communicate(timeout=30)[0] == "term\n"
        until(lambda: host.leases()[-1].body.event == "final")
        assert "suspended by" in (host.leases()[-1].body.reason or "")


def test_verifier_away_exec_says_so_and_waits_as_long_as_it_is_told(host: LeasingHost) -> None:
    host.verifier.answer = lambda origin, seq: refusal(ProblemCode.OVERLOADED, retry_after_s=1)
    status, out, err = host.ran("--lineage", "aurora", "--wait", "3", "--", "echo", "started")
    assert (status, out) == (3, ""), err
    assert "no lease yet" in err
    assert "no lease within 3 s" in err
    # Nobody waits any more: what comes later is nobody's.
    host.verifier.answer = lambda origin, seq: None
    time.sleep(2)
    assert host.leases() == []


def test_ctrl_c_while_it_waits_is_a_line_and_130(host: LeasingHost) -> None:
    host.verifier.answer = lambda origin, seq: refusal(ProblemCode.OVERLOADED, retry_after_s=1)
    process = host.exec("--lineage", "aurora", "--", "echo", "started")
    assert process.stderr is not None
    assert any("no lease yet" in text for text in process.stderr)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "keyturn-agent: error: interrupted"
    assert "Traceback" not in err
    # Nobody waits any more: what comes later is nobody's.
    host.verifier.answer = lambda origin, seq: None
    assert host.ran("--lineage", "aurora", "--", "echo", "started")[:2] == (0, "started\n")


@long
def test_verifier_garbage_slow_or_absent_while_a_run_is_on(folder: Path, library: Path) -> None:
    """A run outlives its verifier for as long as its lease does, and no longer."""
    verifier = Leasing(stop=QUICK)
    verifier.terms = {"ttl_s": 20, "renew_s": 2}
    with enforced_host(folder, library, verifier) as host:
        run = verifier.approved()
        process = begun(host, "--run", run)
        mode = {"now": "garbage"}

        def interfere(call: str, answer: Answer) -> Answer:
            if call not in ("permit", "lease", "authority"):
                return answer
            match mode["now"]:
                case "garbage":
                    return Answer(200, "application/json", None, b'{"deployment":"x"}')
                case "slow":
                    time.sleep(3)
                    return Answer(502, "text/html", None, b"")
                case _:
                    return Answer(503, "text/plain", 1, b"")

        verifier.interfere = interfere
        for now in ("garbage", "slow", "absent"):
            mode["now"] = now
            time.sleep(4)
            assert process.poll() is None, now
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (9, "term\n"), err
        assert "the lease ends" in err
        assert host.leases()[-1].body.event == "final"


@long
def test_renewals_carry_a_run_beyond_its_first_lease(folder: Path, library: Path) -> None:
    verifier = Leasing(stop=QUICK)
    verifier.terms = {"ttl_s": 8, "renew_s": 2}
    with enforced_host(folder, library, verifier) as host:
        process = begun(host, "--lineage", "aurora")
        until(lambda: len([lease for lease in host.leases() if lease.body.event == "adopted"]) >= 6)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60)[0] == "term\n"
        asked = [entry.body.nonce for entry in host.entries() if isinstance(entry, Permit)]
        assert len(asked) == len(set(asked))


def test_replayed_lease_after_reboot(folder: Path) -> None:
    """What was leased before is void, is charged for until the boot began, and isn't taken again."""
    verifier = Leasing(stop=QUICK)
    with gate(folder) as served, leasing_host(folder, verifier, served) as host:
        process = begun(host, "--lineage", "aurora")
        until(lambda: [lease for lease in host.leases() if lease.body.event == "report"])
        old = next(iter(verifier.issued.values()))
        host.kill()
        (job,) = json.loads((host.state / "leases.json").read_bytes())["jobs"]
        os.kill(job["place"]["pid"], signal.SIGKILL)
        process.communicate(timeout=30)
        served.kill()
        before = int(host.leases()[-1].body.charged_flop)
        verifier.answer = lambda origin, seq: note(old)
        host.start(*host.rebooted())
        until(lambda: host.leases()[-1].body.event == "final")
        final = host.leases()[-1].body
        assert (final.reason, int(final.charged_flop) > before) == ("the host was booted again", True)
        served.start(*host.rebooted())
        status, out, err = host.ran("--lineage", "aurora", "--", "echo", "started")
        assert (status, out) == (1, ""), err
        assert "a lease for another boot" in err
        verifier.answer = lambda origin, seq: None
        assert host.ran("--lineage", "aurora", "--", "echo", "started")[:2] == (0, "started\n")


def test_state_folder_restored_from_a_backup(folder: Path) -> None:
    """The log is left for another one, in which the charge goes on from what the verifier has heard."""
    verifier = Leasing(stop=QUICK)
    with gate(folder) as served, leasing_host(folder, verifier, served) as host:
        assert host.ran("--lineage", "aurora", "--", "true")[0] == 0
        host.stop()
        shutil.copytree(host.state, folder / "backup")
        host.start()
        assert host.ran("--lineage", "aurora", "--", "sleep", "2")[0] == 0
        charged = -(-int(host.leases()[-1].body.charged_flop) // 10**12)
        host.stop()
        shutil.rmtree(host.state)
        shutil.move(folder / "backup", host.state)
        verifier.terms = {"charged_tflop": charged, "sequence": 0}
        host.start()
        status, out, err = host.ran("--lineage", "aurora", "--", "echo", "again")
        assert (status, out) == (0, "again\n"), err
        words = [entry for entry in verifier.entries(2) if isinstance(entry, Lease)]
        assert [word.body.event for word in words[:1]] == ["adopted"]
        assert int(words[0].body.charged_flop) == charged * 10**12


@long
def test_lease_files_restored_from_a_backup(folder: Path) -> None:
    """Only those, with the log as it is: what was charged stands in the log."""
    verifier = Leasing(stop=QUICK)
    with gate(folder) as served, leasing_host(folder, verifier, served) as host:
        assert host.ran("--lineage", "aurora", "--", "true")[0] == 0
        host.stop()
        old = {name: (host.state / name).read_bytes() for name in ("leases.json", "charge.json")}
        host.start()
        assert host.ran("--lineage", "aurora", "--", "sleep", "2")[0] == 0
        charged = int(host.leases()[-1].body.charged_flop)
        host.stop()
        for name, data in old.items():
            (host.state / name).write_bytes(data)
        host.start()
        assert host.ran("--lineage", "aurora", "--", "true")[0] == 0
        assert int(host.leases()[-1].body.charged_flop) >= charged > 0


@long
@pytest.mark.parametrize("name", ["leases.json", "charge.json", "root.json", "authority.json"])
def test_a_damaged_state_file_is_named_or_made_again(host: LeasingHost, name: str) -> None:
    assert host.ran("--lineage", "aurora", "--", "sleep", "1")[0] == 0
    charged = int(host.leases()[-1].body.charged_flop)
    host.stop()
    path = host.state / name
    path.write_bytes(path.read_bytes()[:-3])
    host.start(patience=False)
    if name == "charge.json":
        # All of it is in the log.
        assert host.ran("--lineage", "aurora", "--", "true")[0] == 0
        assert int(host.leases()[-1].body.charged_flop) >= charged
        return
    assert host.process is not None
    assert host.process.wait(30) == 3
    assert name in host.said.read_text()
