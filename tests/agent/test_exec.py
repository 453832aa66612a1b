"""``exec`` end to end: a real agent, a real gate, real commands, and a verifier that leases."""

import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest

from keyturn_agent.switch import lease_files
from keyturn_agent.switch.asking import Attach, Refused, line, to_exec
from keyturn_agent.switch.spec import NOTHING
from keyturn_protocol.api import ProblemCode
from keyturn_protocol.entries import Lease, Permit
from keyturn_protocol.policy import Stop
from tests.agent.fakes import refusal
from tests.agent.leasing import Leasing, LeasingHost, begun, enforcing, leasing_host
from tests.support.gates import Gate, gate, until
from tests.support.parties import scope, tier


def sha256_of(path: Path) -> str:
    return f"sha256:{sha256(path.read_bytes()).hexdigest()}"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for sockets in it."""
    with tempfile.TemporaryDirectory(prefix="kt-exec-") as name:
        yield Path(name)


@pytest.fixture
def verifier() -> Leasing:
    return Leasing()


@pytest.fixture
def host(folder: Path, verifier: Leasing) -> Iterator[LeasingHost]:
    with gate(folder) as served, leasing_host(folder, verifier, served) as host:
        yield host


def test_a_run_under_its_permit(host: LeasingHost, verifier: Leasing) -> None:
    argv = ["sh", "-c", "echo hello $KEYTURN_LEASE; sleep 2; exit 7"]
    openings, spec = host.openings(argv)
    run = verifier.approved(spec=spec)
    status, out, err = host.ran("--run", run, "--openings", openings, "--", *argv)
    assert (status, out.split()[0]) == (7, "hello"), err
    assert host.causes() == []
    events = [lease.body.event for lease in host.leases()]
    assert (events[0], events[-1]) == ("adopted", "final")
    assert int(host.leases()[-1].body.charged_flop) > 0


def test_small_work_under_the_allowance_needs_nobody(host: LeasingHost) -> None:
    status, out, err = host.ran("--lineage", "aurora", "--", "sh", "-c", "echo small; sleep 1")
    assert (status, out) == (0, "small\n"), err
    assert "allowance  none" not in host.status()
    assert "ok    allowance   acme is an organisation of root version 1" in (
        host.command("doctor", "--state", str(host.state)).stdout
    )
    assert host.told == ""
    (permit,) = [entry.body for entry in host.entries() if isinstance(entry, Permit)]
    assert (permit.kind, permit.lineage, permit.spec) == ("allowance", "aurora", NOTHING)


def test_a_host_of_an_organisation_that_is_not_in_the_root_has_no_allowance(folder: Path, verifier: Leasing) -> None:
    """Its verifier would give it one; it says so itself, and asks for none."""
    verifier.organisation = "\N{CYRILLIC SMALL LETTER A}cme"
    said = "expected acme, hosting or state, got '\\u0430cme'"
    with leasing_host(folder, verifier) as host:
        assert "keyturn-agent: hint: no allowance: the host isn't of an organisation in the root" in host.told
        for kind in (["--lineage", "aurora"], ["--diagnostics"]):
            status, out, err = host.ran(*kind, "--", "echo", "started")
            assert (status, out) == (1, ""), err
            assert "no allowance: " in err
            assert said in err
            assert "hint: keyturn explain organisation" in err
        assert not any(isinstance(entry, Permit) for entry in host.entries())
        assert f"allowance  none: the host isn't of an organisation in the root in force, root version 1 ({said})" in (
            host.status()
        )
        examined = host.command("doctor", "--state", str(host.state)).stdout.splitlines()
        (line,) = [line for line in examined if " allowance " in line]
        assert line.startswith("warn  allowance   no allowance: the host isn't of an organisation in the root")
        assert said in line
        argv = ["sh", "-c", "echo started"]
        openings, spec = host.openings(argv)
        status, out, err = host.ran("--run", verifier.approved(spec=spec), "--openings", openings, "--", *argv)
        assert (status, out) == (0, "started\n"), err


def test_a_run_that_nobody_approved_is_refused(host: LeasingHost, verifier: Leasing) -> None:
    verifier.hall.now_us = time.time_ns() // 1000 - 60_000_000
    run = verifier.hall.say(verifier.hall.request(scope=scope(not_after_us=verifier.hall.now_us * 2)), "lab-a/ada")
    status, out, err = host.ran("--run", run, "--", "echo", "started")
    assert (status, out) == (1, ""), err
    assert "quorum isn't met" in err
    assert host.ran("--run", "0" * 64, "--", "echo", "started")[0] == 1
    assert not any(isinstance(entry, Permit) for entry in host.entries())


def test_another_program_image_or_config_than_the_approved_one(
    host: LeasingHost, verifier: Leasing, folder: Path
) -> None:
    image, config = folder / "image.sif", folder / "config.yaml"
    image.write_bytes(b"an image")
    config.write_bytes(b"lr: 3e-4\n")
    argv = ["sh", "-c", "echo started"]
    openings, spec = host.openings(argv, image=sha256_of(image), config=sha256_of(config))
    run = verifier.approved(spec=spec)
    common = ["--run", run, "--openings", openings]
    other = folder / "other"
    other.write_bytes(b"another")
    for what, words in {
        "another program": ["--", "sh", "-c", "echo another"],
        "another image": ["--image", str(other), "--", *argv],
        "another config": ["--config", str(other), "--", *argv],
    }.items():
        status, out, err = host.ran(*common, *words)
        assert (status, out) == (1, ""), err
        assert what in err
    told = host.ran(*common, "--image-digest", "sha256:" + "0" * 64, "--", *argv)
    assert (told[0], "another image" in told[2]) == (1, True)
    assert not any(isinstance(entry, Permit) for entry in host.entries())
    status, out, err = host.ran(*common, "--image", str(image), "--config", str(config), "--", *argv)
    assert (status, out) == (0, "started\n"), err
    assert "argv, config, image verified" in err
    (permit,) = [entry.body for entry in host.entries() if isinstance(entry, Permit)]
    assert permit.spec.verified() == {"argv", "config", "image"}


def test_what_the_policy_wants_verified_and_cannot_be_is_refused(folder: Path) -> None:
    verifier = Leasing(tiers=[tier(verified=["argv", "image"])])
    with gate(folder) as served, leasing_host(folder, verifier, served) as host:
        argv = ["echo", "started"]
        openings, spec = host.openings(argv, image="sha256:" + "1" * 64)
        run = verifier.approved(spec=spec)
        status, out, err = host.ran("--run", run, "--openings", openings, "--", *argv)
        assert (status, out, "wants verified here: image" in err) == (1, "", True)


@pytest.fixture
def served(folder: Path, library: Path) -> Iterator[Gate]:
    with enforcing(folder, library) as served:
        yield served


@pytest.fixture
def enforced(folder: Path, verifier: Leasing, served: Gate) -> Iterator[LeasingHost]:
    with leasing_host(folder, verifier, served) as host:
        yield host


def test_one_veto_holder_stops_a_run(enforced: LeasingHost, verifier: Leasing) -> None:
    """Two organisations make it soon: the first alone gives notice of half an hour."""
    run = verifier.approved()
    process = begun(enforced, "--run", run)
    shown = until(lambda: (text := enforced.status()) and "stops in" in text and " open\n" in text and text)
    for word in ("gate       compute_mode", f"of run {run[:16]}, 1 chip, running", "%, high end"):
        assert word in shown
    soon = time.time_ns() // 1000
    verifier.say(lambda hall: hall.suspend(run, "office/ivy", soon))
    verifier.say(lambda hall: hall.suspend(run, "operator-b/eve", soon))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (9, "term\n"), err
    assert "suspended by office/ivy, operator-b/eve" in err
    assert enforced.leases()[-1].body.event == "final"
    # Nobody starts it again, until the quorum resumes it.
    status, _, err = enforced.ran("--run", run, "--", "echo", "again")
    assert (status, "suspended" in err) == (1, True)
    verifier.say(lambda hall: hall.resume(run, "lab-a/bob", "operator-b/eve", "office/ivy"))
    assert enforced.ran("--run", run, "--", "echo", "again")[:2] == (0, "again\n")


def test_a_lease_that_is_used_up_stops_the_run_before_it_has_spent_more(folder: Path, served: Gate) -> None:
    verifier = Leasing(stop=Stop(notice_s=1800, alone_s=3600, kill_s=1))
    verifier.terms = {"upto_tflop": 10_000}
    with leasing_host(folder, verifier, served) as host:
        process = begun(host, "--lineage", "aurora")
        out, err = process.communicate(timeout=80)
        assert (process.returncode, out) == (9, "term\n"), err
        assert "used up" in err
        charged = int(host.leases()[-1].body.charged_flop)
        assert charged == 10_000 * 10**12  # with the rest, on which nothing can run until a stop is over
        # What is left wouldn't last until a stop is over: nothing is begun with it.
        verifier.terms = {"upto_tflop": charged // 10**12 + 10}
        status, _, err = host.ran("--lineage", "aurora", "--", "echo", "again")
        assert (status, "lasts for less than a stop takes" in err) == (1, True)


def test_agent_killed_the_run_goes_on_and_is_charged_for_it(enforced: LeasingHost, verifier: Leasing) -> None:
    """And its lease is renewed, so that an upgrade of the agent ends no run."""
    verifier.terms = {"renew_s": 4}
    process = begun(enforced, "--lineage", "aurora")
    enforced.kill()
    assert process.poll() is None
    enforced.start()
    before = len(enforced.leases())
    until(lambda: len(enforced.leases()) > before + 1)
    until(lambda: len([lease for lease in enforced.leases() if lease.body.event == "adopted"]) > 1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "term\n"
    until(lambda: enforced.leases()[-1].body.event == "final")


def test_agent_killed_the_next_one_hears_whoever_started_the_run(host: LeasingHost, verifier: Leasing) -> None:
    """So that a run which wants to obey where the gate only observes still does."""
    run = verifier.approved()
    process = begun(host, "--obey", "--run", run)
    host.kill()
    host.start()
    assert process.stderr is not None
    said = [next(text for text in process.stderr if word in text) for word in ("went away", "is back")]
    assert said == ["keyturn: the agent went away; the run goes on under its lease\n", "keyturn: the agent is back\n"]
    soon = time.time_ns() // 1000
    verifier.say(lambda hall: hall.suspend(run, "office/ivy", soon))
    verifier.say(lambda hall: hall.suspend(run, "operator-b/eve", soon))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (9, "term\n"), err
    assert "SIGTERM: suspended by office/ivy, operator-b/eve" in err
    assert "charged" in err
    assert host.leases()[-1].body.event == "final"


def test_a_renewal_waits_for_no_other_host(host: LeasingHost, verifier: Leasing) -> None:
    """Hosts begin together; one that has ended keeps no other from going on."""
    verifier.terms = {"renew_s": 2}
    process = begun(host, "--run", verifier.approved(), "--hosts", "3", "--group", "g")
    until(lambda: len([e for e in host.entries() if isinstance(e, Permit)]) > 2)
    assert [e.body.hosts for e in host.entries() if isinstance(e, Permit)][:3] == [3, 1, 1]
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "term\n"


def test_nobody_else_attaches_to_a_run(host: LeasingHost, verifier: Leasing) -> None:
    """Its job's number is in its environment, and says nothing of who reads it."""
    process = begun(host, "--run", verifier.approved())
    job = lease_files.load(host.state).jobs[0]
    process.kill()  # and nobody is there to end it but the gate
    process.wait()
    with closing(socket.socket(socket.AF_UNIX)) as knocking:
        knocking.settimeout(30)
        knocking.connect(str(host.socket))
        knocking.sendall(line(Attach(job=job.job)))
        answer = to_exec(knocking.recv(65_536).strip())
    assert isinstance(answer, Refused)
    assert answer.code == "no_job"
    assert job.place is not None
    os.kill(job.place.pid, signal.SIGKILL)
    until(lambda: host.leases()[-1].body.event == "final")


def test_an_agent_that_lost_the_lease_stops_a_run_that_obeys(host: LeasingHost, verifier: Leasing) -> None:
    process = begun(host, "--obey", "--run", verifier.approved())
    host.kill()
    lease_files.keep(host.state, lease_files.NOTHING)
    host.start()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (9, "term\n"), err
    assert "SIGTERM: the agent knows no lease of it" in err


def test_the_logs_key_rolls_while_a_run_is_on(enforced: LeasingHost, verifier: Leasing) -> None:
    """The log goes on under another name, in which no lease was asked for yet: the run gets one there, and goes on."""
    process = begun(enforced, "--run", verifier.approved())
    state = ("--state", str(enforced.state))
    refused = enforced.command("retire", *state, "--reason", "sold")
    assert (refused.returncode, "runs under a lease" in refused.stderr) == (1, True)
    done = enforced.command("key-roll", *state)
    assert (done.returncode, done.stdout.rstrip()[-2:]) == (0, "/2"), done.stderr
    last = [e.body for e in verifier.entries(1) if isinstance(e, Lease)][-1]
    assert (last.event, last.reason) == ("final", "the log goes on under another key")
    until(lambda: any(isinstance(e, Lease) and e.body.event == "adopted" for e in verifier.entries(2)))
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (9, "term\n"), err
    until(lambda: [e.body.event for e in verifier.entries(2) if isinstance(e, Lease)][-1] == "final")


def test_a_run_whose_log_was_left_is_stopped_by_what_is_said_since(enforced: LeasingHost, verifier: Leasing) -> None:
    """It has no lease in the next log yet, and keeps to its last stop: that is no reason to go on for as long."""
    run = verifier.approved()
    process = begun(enforced, "--run", run)
    verifier.answer = lambda origin, seq: refusal(ProblemCode.OVERLOADED)
    done = enforced.command("key-roll", "--state", str(enforced.state))
    assert done.returncode == 0, done.stderr
    until(lambda: any(isinstance(e, Permit) for e in verifier.entries(2)))
    soon = time.time_ns() // 1000
    for who in ("office/ivy", "operator-b/eve"):
        verifier.say(lambda hall, who=who: hall.suspend(run, who, soon))  # type: ignore[misc]
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (9, "term\n"), err
    assert "suspended by office/ivy, operator-b/eve" in err


def test_without_an_agent_no_log_ends_in_which_a_run_is_charged(host: LeasingHost, verifier: Leasing) -> None:
    """Nobody else knows what it used: its lease would be out for ever."""
    process = begun(host, "--run", verifier.approved())
    host.stop()
    for words in (("key-roll",), ("retire", "--reason", "sold")):
        done = host.command(words[0], "--state", str(host.state), *words[1:])
        assert (done.returncode, "leased" in done.stderr or "under a lease" in done.stderr) == (1, True), done
    host.start()
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "term\n"
    until(lambda: host.leases()[-1].body.event == "final")
    assert host.command("key-roll", "--state", str(host.state)).returncode == 0


def test_the_last_word_is_said_once_by_an_agent_that_died_after_it(host: LeasingHost) -> None:
    process = begun(host, "--lineage", "aurora")
    until(lambda: host.leases())
    before = (host.state / "leases.json").read_bytes()
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "term\n"
    until(lambda: host.leases()[-1].body.event == "final")
    host.kill()
    # As it was on disk until the agent that had said it forgot the job.
    (host.state / "leases.json").write_bytes(before)
    host.start()
    until(lambda: not lease_files.load(host.state).jobs)
    host.stop()
    host.start()
    assert [lease.body.event for lease in host.leases()].count("final") == 1
