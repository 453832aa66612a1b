"""Signing about runs, through files: what is shown, what is refused, and what a verifier can't hide."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from keyturn_protocol.canonical import encode, parse
from keyturn_protocol.dsse import pae, parse_envelope
from keyturn_protocol.lifecycle import State
from keyturn_protocol.openings import Opening, Openings
from keyturn_protocol.policy import Above
from keyturn_protocol.root import Person, Root
from keyturn_protocol.sshsig import format_armor
from tests.cli.conftest import Cli
from tests.cli.switch_desk import OPENINGS, Desk
from tests.support.optional import require_program
from tests.support.parties import BEGIN, DAY, changed, envelope, narrowing, person, person_key, policy, root, tier

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture
def run(desk: Desk) -> str:
    """A request that waits."""
    return desk.say(desk.request(), "lab-a/ada")


def sayer(keyturn: Cli, desk: Desk) -> Say:
    """``say(verb, who, run, …)``: signed into a new file, which is taken as the next leaf if it was written."""

    def call(verb: str, who: str, of: str, *more: object, take: bool = True) -> tuple[int, str, str]:
        out = desk.folder / f"said-{desk.switch.index}-{verb}"
        out.unlink(missing_ok=True)
        given = ("--bundle", desk.file(of), "--root", desk.pin, "--key", desk.key(who), "--out", out, "--expect", of)
        done = keyturn(verb, *given, *more)
        assert out.exists() == (done[0] == 0), done
        if take and out.exists():
            desk.sent(out)
        return done

    return call


@pytest.fixture
def say(keyturn: Cli, desk: Desk) -> Say:
    return sayer(keyturn, desk)


def test_from_a_request_to_a_permit_to_its_end(desk: Desk, run: str, say: Say) -> None:
    """Every verb once, each signed by a bundle and taken by the fold that a verifier runs."""
    assert say("approve", "lab-a/bob", run)[0] == 0
    assert say("deny", "operator-b/fay", run, "--reason", "too large")[0] == 0
    assert say("approve", "operator-b/fay", run, "--site", "fra1", "--chips", 1024, "--flop", "5e23")[0] == 0
    code, out, _ = say("approve", "office/ivy", run)
    assert (code, "APPROVED with this" in out) == (0, True)
    assert desk.state(run) is State.APPROVED
    assert desk.switch.runs[run].scope.sites == ["fra1"]
    assert desk.switch.runs[run].scope.budget_tflop == 5 * 10**11
    desk.start(run)

    assert say("suspend", "office/joe", run, "--reason", "an incident")[0] == 0
    suspension = desk.switch.runs[run].calls[0].hash
    assert say("withdraw", "office/joe", run, "--on", suspension[:8])[0] == 0
    assert desk.state(run) is State.ACTIVE
    assert say("suspend", "office/joe", run, "--reason", "again")[0] == 0
    assert say("resume", "lab-a/ada", run, "--reason", "mended")[0] == 0
    (proposal,) = desk.switch.runs[run].proposals
    for who in ("lab-a/bob", "operator-b/eve", "office/ivy"):
        assert say("approve", who, run, "--on", proposal[:8])[0] == 0
    assert desk.state(run) is State.ACTIVE
    code, out, _ = say("amend", "lab-a/ada", run, "--chips", 512, "--reason", "less is enough")
    assert (code, "in force at once" in out) == (0, True)
    assert desk.switch.runs[run].scope.chips == 512
    code, out, _ = say("amend", "lab-a/ada", run, "--flop", "8e23", "--reason", "more")
    assert (code, "proposed, not done" in out, "5.00e23" in out, "8.00e23" in out) == (0, True, True, True)
    assert say("revoke", "office/ivy", run, "--reason", "enough")[0] == 0
    assert say("withdraw", "lab-a/ada", run)[0] == 0
    assert desk.state(run) is State.COMPLETED


def test_what_is_shown_before_an_approval(desk: Desk, run: str, say: Say) -> None:
    desk.say(desk.decision(run, "lab-a/bob", narrowing=narrowing(chips=8)), "lab-a/bob")
    code, out, err = say("approve", "office/ivy", run, "--openings", desk.openings(), take=False)
    assert code == 0, err
    for shown in (
        "approve r-" + run[:8],
        "office/ivy (regulator, state)",
        " ".join(run[at : at + 4] for at in range(0, 64, 4)),
        "lab-a/ada (lab, acme)",
        "1.00e24 FLOP (1,000,000,000,000 TFLOP), charged at the high end for bf16, fp8",
        "at most 8 chips at once",
        "python train.py --lr 1e-4",
        "config: committed to, and not opened to you",
        "data: nothing is committed to, so it may be anything",
        "all of it is new",
        "regulator 1 of 1",
        "1 operator, 1 more organisation(s) after this",
        "stays pending",
        "once it runs, at the latest in 48 h 30 min, reachable hosts in 30 min",
        "the verifier alone can over-lease and hide a veto",
    ):
        assert shown in out, shown
    # Seen now: nothing is new the second time, and what comes then is.
    (desk.folder / "said-3-approve").unlink()
    assert "nothing since it was last seen here" in say("approve", "office/ivy", run, take=False)[1]
    desk.say(desk.decision(run, "operator-b/eve", "deny", reason="who pays?"), "operator-b/eve")
    out = say("approve", "office/ivy", run)[1]
    assert "operator-b/eve (operator, hosting) denied r-" + run[:8] + ": who pays?" in out
    assert "lab-a/bob" not in out.partition("changed")[2].partition("signed")[0]


LOOKALIKE = "\u0430urora"
HOSTILE = "a\u200bb\u00a0c\u3164"


def test_names_that_look_alike_are_spelled_out(desk: Desk, keyturn: Cli) -> None:
    """Cyrillic, invisible and wide letters in a label, a lineage, a site: none reads as another one."""
    run = desk.say(desk.request(label=LOOKALIKE, lineage=HOSTILE, purpose="\u1160x"), "lab-a/ada")
    code, out, _ = keyturn("show", "--bundle", desk.file(run), "--root", desk.pin)
    assert (code, f"{LOOKALIKE} [\\u0430urora]" in out) == (0, True)
    where = ("--bundle", desk.file(run), "--root", desk.pin, "--key", desk.key("lab-a/bob"), "--expect", run)
    out = keyturn("approve", *where, "--out", desk.folder / "out")[1]
    assert "a\\u200bb\\xa0c\u3164" in out
    assert "\\u3164" in out
    assert not set(out) & set("\u200b\u00a0\x1b")


@pytest.mark.parametrize(
    ("verb", "who", "more", "why"),
    [
        ("approve", "lab-a/ada", [], "requester"),
        ("approve", "mallory", [], "not_a_person"),
        ("veto", "lab-a/bob", ["--reason", "no"], "not_entitled"),
        ("suspend", "office/ivy", ["--reason", "no"], "no_permit"),
        ("resume", "lab-a/ada", ["--reason", "go"], "no_permit"),
        ("withdraw", "lab-a/bob", [], "not_entitled"),
        ("approve", "office/ivy", ["--chips", "99999"], "widens"),
    ],
)
def test_what_the_switch_would_refuse_is_not_signed(
    desk: Desk, run: str, say: Say, verb: str, who: str, more: list[str], why: str
) -> None:
    code, out, err = say(verb, who, run, *more)
    assert (code, out) == (1, "")
    assert f"keyturn: error: {why}: " in err
    assert f"keyturn explain {why}" in err


def test_a_key_that_is_no_longer_valid(tmp_path: Path, keyturn: Cli) -> None:
    fay = person("operator-b/fay", person_key("operator-b/fay", valid_until_us=BEGIN))
    desk = Desk(tmp_path, of=with_person(fay))
    run = desk.say(desk.request(), "lab-a/ada")
    code, _, err = sayer(keyturn, desk)("approve", "operator-b/fay", run)
    assert (code, "key_not_valid: the key is no longer valid" in err) == (1, True)


def with_person(one: Person) -> Root:
    """The root with one of its persons in this form."""
    return root(persons=[one if other.id == one.id else other for other in root().persons])


def test_a_deadline_that_is_over(tmp_path: Path, keyturn: Cli) -> None:
    desk = Desk(tmp_path, ago_s=8 * 86_400)
    run = desk.say(desk.request(), "lab-a/ada")
    code, _, err = sayer(keyturn, desk)("approve", "lab-a/bob", run)
    assert (code, "over: the run is lapsed" in err) == (1, True)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--expect", "0" * 64], "this is another one"),
        (["--expect", "zz"], "--expect: must be 64 lower-case hex digits"),
        (["--on", "abcd"], "nothing that is open begins so"),
        (["--flop", "many"], "--flop: must be a number of FLOP"),
        (["--flop", "nan"], "--flop: must be a number of FLOP"),
        (["--flop", "1"], "--flop: must be at least 1e12 FLOP"),
        (["--to", "tomorrow"], "--to: must be a day or a time in UTC"),
        (["--dtype", "fp3"], "not a type of the tensor pipe"),
        (["--person", "lab-a/ada"], "--person: the key is another's"),
        (["--root", "sha256:00"], "--root: must be sha256: and 64"),
        (["--root", "sha256:" + "0" * 64], "not under the root that is pinned"),
        (["--bundle", "/nonexistent"], "--bundle /nonexistent: No such file"),
        (["r-00000000"], "the bundle is of another run"),
    ],
)
def test_what_is_not_right_on_the_line_signs_nothing(
    desk: Desk, run: str, say: Say, more: list[str], message: str
) -> None:
    code, _, err = say("approve", "lab-a/bob", run, *more)
    assert code in (1, 2)
    assert message in err.replace("\n", " ")


def test_nobody_signs_without_a_pin_a_key_or_a_word(desk: Desk, run: str, keyturn: Cli) -> None:
    out = desk.folder / "out"
    bundle, key = ("--bundle", desk.file(run)), ("--key", desk.key("lab-a/bob"))
    for line, message in (
        (("approve", *bundle, *key, "--out", out, "--expect", run), "--root: missing"),
        (("approve", *bundle, "--root", desk.pin, "--out", out), "--person: missing"),
        (("approve", *bundle, "--root", desk.pin, *key), "--verifier: missing"),
        (("approve", *bundle, "--root", desk.pin, *key, "--out", out), "nobody is here to confirm it"),
        (("approve", "--root", desk.pin, *key, "--out", out), "RUN: missing"),
        (("suspend", *bundle, "--root", desk.pin, *key, "--out", out), "--reason"),
        (("amend", *bundle, "--root", desk.pin, *key, "--out", out, "--reason", "x"), "nothing to amend"),
    ):
        code, _, err = keyturn(*line)
        assert (code, message in err) == (2, True), err
    assert not out.exists()


def test_openings_are_believed_for_what_they_open(desk: Desk, run: str, say: Say) -> None:
    other = Openings(v=1, parts={"argv": Opening(salt="01" * 32, value=["python", "other.py"])})
    code, _, err = say("approve", "lab-a/bob", run, "--openings", desk.openings(other))
    assert (code, "argv doesn't open its commitment" in err) == (1, True)
    data = Openings(v=1, parts={**OPENINGS.parts, "data": OPENINGS.parts["image"]})
    code, _, err = say("approve", "lab-a/bob", run, "--openings", desk.openings(data))
    assert (code, "data doesn't open its commitment" in err) == (1, True)


@pytest.mark.parametrize("what", ["signature", "payload", "time", "order"])
def test_a_bundle_that_was_changed_is_refused(desk: Desk, run: str, keyturn: Cli, what: str) -> None:
    desk.say(desk.decision(run, "lab-a/bob"), "lab-a/bob")
    raw: Any = parse(desk.bundle(run), dict)
    last = raw["statements"][-1]
    if what == "signature":
        last["envelope"]["signatures"] = raw["statements"][-2]["envelope"]["signatures"]
    elif what == "payload":
        last["envelope"]["payload"] = raw["statements"][0]["envelope"]["payload"]
    elif what == "time":
        last["time_us"] = 0
    else:
        raw["statements"].reverse()
    file = desk.folder / "changed"
    file.write_bytes(encode(raw))
    for line in (("verify-bundle", file), ("show", "--bundle", file), ("diff", "--bundle", file)):
        code, out, err = keyturn(*line, "--root", desk.pin)
        assert (code, out) == (1, ""), err


def test_a_veto_that_was_seen_can_not_be_hidden(desk: Desk, run: str, keyturn: Cli) -> None:
    """A verifier that shows a veto, and later a log in which it isn't, is caught by whoever saw it."""
    before = desk.file(run)
    veto = desk.say(desk.decision(run, "office/ivy", "veto"), "office/ivy")
    assert keyturn("show", "--bundle", desk.file(run), "--root", desk.pin)[0] == 0
    code, _, err = keyturn("show", "--bundle", before, "--root", desk.pin)
    assert (code, veto in err, "an older copy" in err) == (1, True, True)
    # As if the veto had never been: somebody else's approval in its leaf.
    raw: Any = parse(desk.bundle(run), dict)
    approval = envelope(desk.decision(run, "lab-a/bob"), "lab-a/bob")
    raw["statements"][-1]["envelope"] = parse(approval.to_bytes(), dict)
    file = desk.folder / "hidden"
    file.write_bytes(encode(raw))
    for line in (("show", "--bundle", file), ("verify-bundle", file), ("diff", "--bundle", file)):
        code, _, err = keyturn(*line, "--root", desk.pin)
        assert (code, veto in err, "no verifier takes a leaf back" in err) == (1, True, True), err


def test_made_here_and_signed_on_another_machine(desk: Desk, run: str, keyturn: Cli, tmp_path: Path) -> None:
    """Bundle and payload are carried over, the signature back; nothing that the file says is taken on trust."""
    bundle, made, done = desk.file(run), tmp_path / "made", tmp_path / "done"
    where = ("--bundle", bundle, "--root", desk.pin)
    code, _, err = keyturn("approve", *where, "--person", "office/ivy", "--out", made)
    assert (code, "not signed yet" in err) == (0, True)
    digest = json.loads(keyturn("statement", made, "--json")[1])["sha256"]
    key = ("--key", desk.key("office/ivy"), "--out", done)

    code, _, err = keyturn("sign", made, *key, "--expect", digest)
    assert (code, "--verifier: missing" in err) == (2, True)
    code, _, err = keyturn("sign", made, *key, "--expect", digest, "--bundle", bundle)
    assert (code, "--root: missing" in err) == (2, True)
    other = desk.say(desk.request(nonce="5" * 64), "lab-a/ada")
    code, _, err = keyturn("sign", made, *key, "--expect", digest, "--bundle", desk.file(other), "--root", desk.pin)
    assert (code, "the bundle is of another run" in err) == (2, True)
    code, _, err = keyturn("sign", made, "--key", desk.key("office/joe"), "--out", done, "--expect", digest, *where)
    assert (code, "other_signer: signed by another" in err) == (1, True)
    assert not done.exists()

    code, out, _ = keyturn("sign", made, *key, "--expect", digest, *where, "--openings", desk.openings())
    assert (code, "regulator 1 of 1" in out, "python train.py" in out) == (0, True, True)
    code, _, err = keyturn(
        "sign", done, "--key", desk.key("office/ivy"), "--out", tmp_path / "x", "--expect", digest, *where
    )
    assert (code, "other_signer: signed already" in err) == (1, True)
    assert desk.sent(done) == digest


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
def test_foreign_tools_verify_what_an_ssh_key_signed(tmp_path: Path, keyturn: Cli, kind: str) -> None:
    """``ssh-keygen -Y verify`` says the same of the statement, its bytes taken from the file alone."""
    keygen = require_program("ssh-keygen")
    subprocess.run([keygen, "-q", "-t", kind, "-N", "", "-C", "joe", "-f", tmp_path / "id"], check=True, timeout=60)
    text = " ".join((tmp_path / "id.pub").read_text().split()[:2])
    joe = person("office/joe", changed(person_key("office/joe"), key=text))
    desk = Desk(tmp_path, of=with_person(joe))
    run = desk.say(desk.request(), "lab-a/ada")
    out = tmp_path / "out"
    given = ("--bundle", desk.file(run), "--root", desk.pin, "--key", tmp_path / "id", "--expect", run, "--out", out)
    code, _, err = keyturn("veto", *given, "--reason", "no")
    assert code == 0, err
    sent = parse_envelope(out.read_bytes())
    ((_, signature),) = sent.signatures.items()
    (tmp_path / "sig").write_text(format_armor(signature))
    (tmp_path / "allowed").write_text(f"joe {text}\n")
    message = pae(sent.kind, sent.payload)
    line: list[Any] = [
        keygen,
        "-Y",
        "verify",
        "-f",
        tmp_path / "allowed",
        "-I",
        "joe",
        "-n",
        "keyturn",
        "-s",
        tmp_path / "sig",
    ]
    assert subprocess.run(line, input=message, capture_output=True, timeout=60, check=False).returncode == 0
    wrong = subprocess.run(line, input=message + b" ", capture_output=True, timeout=60, check=False)
    assert wrong.returncode != 0
    assert desk.sent(out)
    assert desk.state(run) is State.DENIED


def test_openssl_verifies_what_a_file_key_signed(tmp_path: Path, keyturn: Cli, desk: Desk, run: str, say: Say) -> None:
    openssl = require_program("openssl")
    assert say("approve", "lab-a/bob", run)[0] == 0
    sent = desk.said[-1].envelope
    ((_, signature),) = sent.signatures.items()
    (tmp_path / "sig").write_bytes(signature)
    key = tmp_path / "pub.pem"
    subprocess.run([openssl, "pkey", "-in", desk.key("lab-a/bob"), "-pubout", "-out", key], check=True, timeout=60)
    for tail, code in ((b"", 0), (b" ", 1)):
        (tmp_path / "message").write_bytes(pae(sent.kind, sent.payload) + tail)
        line: list[Any] = [
            openssl,
            "pkeyutl",
            "-verify",
            "-pubin",
            "-inkey",
            key,
            "-rawin",
            "-in",
            tmp_path / "message",
        ]
        done = subprocess.run([*line, "-sigfile", tmp_path / "sig"], capture_output=True, timeout=60, check=False)
        assert done.returncode == code


def test_whoami(desk: Desk, keyturn: Cli) -> None:
    where = ("--bundle", desk.file(), "--root", desk.pin)
    code, out, _ = keyturn("whoami", *where, "--key", desk.key("office/ivy"))
    assert (code, "office/ivy (regulator, state)" in out, "veto and suspend alone" in out) == (0, True, True)
    shown = json.loads(keyturn("whoami", *where, "--key", desk.key("lab-a/ada"), "--json")[1])
    assert (shown["person"], shown["class"], shown["root"]["sha256"]) == ("lab-a/ada", "lab", desk.root)
    assert "ask for runs" in shown["may"]
    code, _, err = keyturn("whoami", *where, "--key", desk.key("mallory"))
    assert (code, "not_a_person" in err) == (1, True)


def test_json_is_the_same_as_the_screen(desk: Desk, run: str, say: Say, keyturn: Cli) -> None:
    assert say("approve", "lab-a/bob", run, "--json")[0] == 0
    where = ("--bundle", desk.file(run), "--root", desk.pin)
    shown = json.loads(keyturn("show", *where, "--openings", desk.openings(), "--json")[1])["run"]
    assert (shown["sha256"], shown["state"], shown["counted"]) == (run, "pending", ["lab-a/bob"])
    assert (shown["spec"]["argv"][0], shown["not_known"]) == ("python", ["config", "data"])
    first = json.loads(keyturn("diff", *where, "--json")[1])
    assert (first["first"], [one["says"]["type"] for one in first["items"]]) == (False, ["decision"])
    assert json.loads(keyturn("verify-bundle", where[1], "--root", desk.pin, "--json")[1])["run"]["sha256"] == run


def test_an_amendment_may_bring_another_program(desk: Desk, keyturn: Cli, say: Say) -> None:
    """Its openings open the amendment, not the run; who decides on it is shown the new program."""
    run = desk.approved()
    desk.start(run)
    (desk.folder / "spec.toml").write_text('[spec]\nargv = ["python", "eval.py"]\n')
    opened = desk.folder / "new.openings.json"
    more = ("--spec", desk.folder / "spec.toml", "--openings", opened, "--reason", "another phase")
    code, out, err = say("amend", "lab-a/ada", run, *more)
    assert (code, "argv python eval.py" in out, "spec.argv: " in out) == (0, True, True), err
    (proposal,) = desk.switch.runs[run].proposals
    decide = ("approve", "operator-b/eve", run, "--on", proposal)
    code, out, _ = say(*decide, "--openings", opened, take=False)
    assert (code, "argv python eval.py" in out, "image: nothing is committed" in out) == (0, True, False)
    assert "image, config, data: nothing is committed to" in out
    code, _, err = say(*decide, "--openings", desk.openings())
    assert (code, "doesn't open its commitment" in err) == (1, True)
    for who in ("lab-a/bob", "operator-b/eve", "office/ivy"):
        assert say("approve", who, run, "--on", proposal)[0] == 0
    assert desk.switch.runs[run].spec["image"] is None


def test_a_narrowing_replaces_what_the_same_person_said_before(desk: Desk, run: str, say: Say) -> None:
    assert say("approve", "lab-a/bob", run, "--chips", 8)[0] == 0
    assert say("approve", "operator-b/eve", run, "--chips", 64)[0] == 0
    code, out, _ = say("approve", "lab-a/bob", run, "--chips", 128)
    assert (code, "at most 64 chips at once" in out, "counts already" in out) == (0, True, True)


def test_a_policy_that_was_seen_with_one_run_can_not_be_hidden_from_another(desk: Desk, run: str, keyturn: Cli) -> None:
    other = desk.say(desk.request(nonce="5" * 64), "lab-a/ada")
    before = desk.file(other)
    assert keyturn("show", "--bundle", before, "--root", desk.pin)[0] == 0
    new = policy(desk.root, version=2, previous=desk.policy, name="another")
    digest = desk.say(new, "lab-a/ada", "office/ivy")
    assert keyturn("show", "--bundle", desk.file(run), "--root", desk.pin)[0] == 0
    code, _, err = keyturn("show", "--bundle", before, "--root", desk.pin)
    assert (code, digest in err) == (1, True)


def test_show_says_why_and_how_it_is_stopped(desk: Desk, run: str, say: Say, keyturn: Cli) -> None:
    def shown(of: str) -> tuple[str, dict[str, Any]]:
        where = ("show", "--bundle", desk.file(of), "--root", desk.pin)
        return keyturn(*where)[1], json.loads(keyturn(*where, "--json")[1])["run"]

    stop = "at the latest in 48 h 30 min, reachable hosts in 30 min"
    assert say("deny", "operator-b/eve", run, "--reason", "who pays?")[0] == 0
    text, plain = shown(run)
    assert f"keyturn veto r-{run[:8]} · once it runs, {stop}" in text
    assert "operator-b/eve (operator, hosting): deny: who pays?" in text
    assert (plain["votes"][0]["reason"], plain["stop_latest_s"], plain["stop_reachable_s"]) == (
        "who pays?",
        174_600,
        1_800,
    )
    assert say("veto", "office/ivy", run, "--reason", "no such data")[0] == 0
    text, _ = shown(run)
    assert "office/ivy (regulator, state): veto: no such data" in text
    assert "to stop" not in text
    other = desk.approved("7" * 64)
    desk.start(other)
    assert f"keyturn suspend r-{other[:8]} · {stop}" in shown(other)[0]
    assert say("suspend", "office/joe", other, "--reason", "an incident")[0] == 0
    text, plain = shown(other)
    assert ": an incident  [" in text
    assert f"keyturn resume r-{other[:8]} · takes 3 persons of 3 organisations" in text
    assert ", office among them until " in text
    assert plain["suspensions"][0]["reason"] == "an incident"
    assert f"for programs {other}" in text


def test_a_root_that_expired_is_said(tmp_path: Path, keyturn: Cli) -> None:
    desk = Desk(tmp_path, of=root(expires_us=BEGIN))
    code, out, _ = keyturn("verify-bundle", desk.file(), "--root", desk.pin)
    assert (code, "no host is enrolled under it any more" in out) == (0, True)


def test_a_root_that_expires_is_said_a_month_before(tmp_path: Path, keyturn: Cli) -> None:
    now_us = time.time_ns() // 1_000
    for days, seen in ((29, True), (31, False)):
        desk = Desk(tmp_path, of=root(expires_us=now_us + days * DAY))
        where = ("--bundle", desk.file(), "--root", desk.pin)
        shown, about = keyturn("root", "show", *where)[1], keyturn("verify-bundle", desk.file(), "--root", desk.pin)[1]
        assert f": it expires in {days - 1} days" in shown
        assert ("no host is enrolled under it after that" in about) == seen


def test_an_amendment_is_shown_in_the_tier_that_decides_it(tmp_path: Path, keyturn: Cli) -> None:
    """Which is that of what it asks for, for who proposes it and for who decides; and what it does to what runs."""
    huge = tier(name="huge", above=Above(budget_tflop=10**13, chips=None, lineage_tflop=None), verified=["argv"])
    desk = Desk(tmp_path, tiers=[tier(), changed(huge, lease_s=24 * 3600)])
    say, run = sayer(keyturn, desk), desk.approved()
    desk.start(run)
    assert (
        "tier       large, for its budget and its chips"
        in say("suspend", "office/ivy", run, "--reason", "x", take=False)[1]
    )
    (desk.folder / "spec.toml").write_text('[spec]\nargv = ["python", "eval.py"]\n')
    opened = desk.folder / "new.openings.json"
    more = ("--flop", "2e25", "--spec", desk.folder / "spec.toml", "--openings", opened, "--reason", "more")
    code, out, err = say("amend", "lab-a/ada", run, *more)
    assert (code, "huge, for its budget" in out, "argv python eval.py (checked by each host)" in out) == (
        0,
        True,
        True,
    ), err
    assert "what runs by the old spec is stopped 30 min after" in out
    (proposal,) = desk.switch.runs[run].proposals
    code, out, err = say("approve", "office/ivy", run, "--on", proposal, "--openings", opened)
    assert (code, "huge, for its budget" in out, "argv python eval.py (checked by each host)" in out) == (
        0,
        True,
        True,
    ), err
    assert f"keyturn suspend r-{run[:8]} · at the latest in 48 h 30 min" in out
