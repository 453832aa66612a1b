"""The start switch at a real verifier, over HTTP: what is taken, what is refused and why; what people and hosts see."""

import threading
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from keyturn_protocol.api_read import StatementItem
from keyturn_protocol.canonical import decode
from keyturn_protocol.dsse import Envelope, pae
from keyturn_protocol.keys import SignatureType, VerifierKey
from keyturn_protocol.leaves import Statement, parse_leaf
from keyturn_protocol.limits import ENVELOPE_BYTES
from keyturn_protocol.openings import Opening, Openings, commitment, format_openings, parse_openings
from keyturn_protocol.permit import Opened, open_permit_bundle, parse_permit_bundle
from keyturn_protocol.root import Services
from keyturn_protocol.runs import Amend, Resume, Revoke
from tests.support.hosts import Key
from tests.support.node import Reply
from tests.support.office import APPROVERS, BOARD, Office
from tests.support.parties import BEGIN, DAY, SECOND, changed, envelope, narrowing, person, person_key, public
from tests.support.verifier import DEPLOYMENT, Verifier, call
from tests.vectors.pieces import b64


def refused(office: Office, answer: Reply, why: str, status: int = 422, code: str = "statement_refused") -> None:
    assert (answer.status, answer.code) == (status, code), answer
    assert answer.problem.detail.startswith(f"{why}: ") if status == 422 else why in answer.problem.detail, answer


def bundle(office: Office, run: str, query: str = "") -> Opened:
    answer = office.verifier.client.get(f"/v1/runs/{run}/permit{query}")
    assert answer.status == 200, answer
    assert office.root is not None
    return open_permit_bundle(parse_permit_bundle(answer.body), office.root, DEPLOYMENT)


def test_a_run_is_asked_for_approved_suspended_and_resumed(office: Office, now: list[int]) -> None:
    run = office.request()
    seen = office.view(run)
    assert (seen.state, seen.missing.persons, seen.missing.classes) == (
        *("pending", 3),
        {"lab": 1, "operator": 1, "regulator": 1},
    )
    for who in APPROVERS:
        office.decide(run, who)
    seen = office.view(run)
    assert (seen.state, seen.missing.text, [s.person for s in seen.signed if s.counts]) == (
        *("approved", "nothing"),
        sorted(APPROVERS),
    )
    suspension = office.suspend(run)
    seen = office.view(run)
    assert (seen.state, seen.epoch, [s.sha256 for s in seen.suspensions]) == ("suspended", 1, [suspension])
    assert seen.stop_at_us == now[0] + 1800 * SECOND
    assert (seen.notice_s, seen.worst_stop_s) == (1800, 1800 + 48 * 3600)
    proposal = office.ok(office.make_proposal(Resume, run), "lab-a/ada")
    assert [p.sha256 for p in office.view(run).proposals] == [proposal]
    office.decide(proposal, *APPROVERS)
    seen = office.view(run)
    assert (seen.state, seen.after, seen.proposals) == ("approved", [suspension, proposal], [])
    assert [e.kind for e in seen.events] == ["request", *["decision"] * 3, "suspend", "resume", *["decision"] * 3]
    assert bundle(office, run).run == office.verifier.service.switch._switch.runs[run]


def test_every_refusal_names_its_reason_and_stores_nothing(office: Office, now: list[int]) -> None:
    run = office.request()
    approved = office.approved()
    other = office.make_root(version=2, previous=office.root, root=office.root, time_us=1)
    suspension = office.suspend(office.approved())
    of = office.make_decision
    attempts: list[tuple[str, Any, tuple[str, ...]]] = [
        ("requester", of(run, "lab-a/ada"), ("lab-a/ada",)),
        ("other_signer", of(run, "lab-a/bob"), ("lab-a/ada",)),
        ("other_signer", of(run, "lab-a/bob"), ("lab-a/bob", "operator-b/eve")),
        ("not_a_person", of(run, "lab-a/zed"), ("lab-a/bob",)),
        ("unknown", of("9" * 64, "lab-a/bob"), ("lab-a/bob",)),
        ("other_policy", of(run, "lab-a/bob", policy="9" * 64), ("lab-a/bob",)),
        ("other_root", of(run, "lab-a/bob", root="9" * 64), ("lab-a/bob",)),
        ("not_entitled", of(run, "lab-a/bob", "veto"), ("lab-a/bob",)),
        ("widens", of(run, "lab-a/bob", narrowing=narrowing(chips=10**6)), ("lab-a/bob",)),
        ("no_permit", office.make_suspension(run), ("office/ivy",)),
        ("not_entitled", office.make_suspension(approved, "lab-a/bob"), ("lab-a/bob",)),
        ("not_suspended", office.make_proposal(Resume, approved), ("lab-a/ada",)),
        ("stale", office.make_proposal(Revoke, approved, after=["9" * 64]), ("lab-a/ada",)),
        ("decided", of(approved, "office/joe"), ("office/joe",)),
        ("not_entitled", office.make_withdrawal(suspension, "office/joe"), ("office/joe",)),
        ("not_entitled", office.make_request("office/ivy"), ("office/ivy",)),
        ("too_late", office.make_request(scope=office.scope(not_after_us=now[0])), ("lab-a/ada",)),
        ("threshold", other, ("lab-a/ada", "lab-a/bob")),
        ("threshold", office.make_policy(version=2, previous=office.policy), ("lab-a/ada",)),
        ("version", office.make_policy(version=3, previous=office.policy), BOARD),
        ("version", office.make_root(time_us=2), BOARD),
        ("broken", changed(other, services=services_of(DEPLOYMENT)), BOARD),
    ]
    before = office.verifier.dump()
    for why, statement, signers in attempts:
        refused(office, office.say(statement, *signers), why)
        assert office.verifier.dump() == before, why
    now[0] += 8 * DAY
    refused(office, office.say(of(run, "lab-a/bob"), "lab-a/bob"), "over")


def test_what_is_no_statement_for_here(office: Office) -> None:
    run = office.request()
    of = office.make_decision
    good = envelope(of(run, "lab-a/bob"), "lab-a/bob")
    strange = envelope(of(run, "lab-a/bob", reason="x"), "lab-a/mallory")
    forged = changed_envelope(good, b64(bytes(64)))
    elsewhere = envelope(of(run, "lab-a/bob", deployment="keyturn.example.net"), "lab-a/bob")
    two = changed(office.make_policy(version=2, previous=office.policy), tiers=[])
    before = office.verifier.dump()
    for data, status, code, why in (
        (strange.to_bytes(), 403, "bad_signature", "may not sign"),
        (forged, 403, "bad_signature", "does not verify"),
        (elsewhere.to_bytes(), 400, "bad_statement", "another deployment"),
        (good.to_bytes() + b"\n", 400, "bad_statement", "not canonical"),
        (good.to_bytes().replace(b"decision+json", b"veto+json"), 400, "bad_statement", "no such kind"),
        (b" " * (ENVELOPE_BYTES + 1), 413, "too_large", ""),
    ):
        answer = office.post(data)
        assert (answer.status, answer.code) == (status, code), answer
        assert why in answer.problem.detail
    with pytest.raises(Exception, match="tiers"):
        envelope(two, *BOARD)
    for name in ("l\u0430b-a/bob", "lab-a/b\u200bob", "lab-a\uff0fbob"):
        # Cyrillic, an invisible space, a slash that looks like one: no such name is ever written down.
        payload = good.payload.replace(b'"lab-a/bob"', f'"{name}"'.encode())
        sent = envelope_of_payload("decision", payload, "lab-a/bob")
        answer = office.post(sent)
        assert (answer.status, answer.code) == (400, "bad_statement"), answer
        assert "canonical" in answer.problem.detail
    assert office.verifier.dump() == before
    assert office.post(good.to_bytes()).status == 200


def changed_envelope(sent: Any, signature: str) -> bytes:
    old = b64(next(iter(sent.signatures.values())))
    data: bytes = sent.to_bytes()
    return data.replace(old.encode(), signature.encode())


def envelope_of_payload(kind: str, payload: bytes, seed: str) -> bytes:
    return Envelope(kind, payload, {public(seed).id: Key(seed).sign(pae(kind, payload))}).to_bytes()


def test_the_first_root_is_taken_on_the_servers_machine_alone(verifier: Verifier, tmp_path: Path) -> None:
    office = Office(verifier)
    first = envelope(office.make_root(), *BOARD)
    refused(office, office.post(first.to_bytes()), "other_root")
    refused(office, office.say(office.make_request(policy="1" * 64, root="2" * 64), "lab-a/ada"), "other_root")
    assert verifier.client.get("/v1/authority").status == 404
    for statement, signers, why in (
        (office.make_root(), ("lab-a/ada",), "threshold"),
        (office.make_root(services=services_of(DEPLOYMENT)), BOARD, "broken"),
        (office.make_root(version=2, previous="1" * 64, root="1" * 64), BOARD, "not the first version"),
        (office.make_root(deployment="kt.example", services=services_of("kt.example")), BOARD, "another deployment"),
    ):
        done = install(verifier, tmp_path, envelope(statement, *signers))
        assert done.returncode in (1, 2)
        assert why in done.stderr, done.stderr
    assert verifier.count("statement") == 0
    for _ in range(2):
        done = install(verifier, tmp_path, first)
        assert done.stdout == f"sha256:{first.hash.hex()}\n", done.stderr
    assert verifier.count("statement") == 1
    done = install(verifier, tmp_path, envelope(office.make_root(time_us=7), *BOARD))
    assert (done.returncode, "version" in done.stderr) == (1, True)
    data = verifier.client.get("/v1/authority").body
    assert open_permit_bundle(parse_permit_bundle(data), first.hash.hex(), DEPLOYMENT).standing.hash == first.hash.hex()


def install(verifier: Verifier, folder: Path, sent: Envelope) -> "CompletedProcess[str]":
    (folder / "root.json").write_bytes(sent.to_bytes())
    return call("root", "install", "--state", verifier.state, folder / "root.json")


def services_of(name: str) -> Services:
    """Another verifier's keys."""
    made = {"log": 1, "receipt": 4, "lease": 1}
    keys = {at: VerifierKey(f"{name}/{at}", SignatureType(kind), Key(at).public) for at, kind in made.items()}
    return Services(**{f"{at}_vkey": str(key) for at, key in keys.items()})


def test_a_root_that_calls_keys_compromised_suspends_what_rested_on_them(office: Office, now: list[int]) -> None:
    run = office.approved()
    now[0] += DAY
    people = [person("lab-a/bob", person_key("lab-a/bob", compromised_since_us=BEGIN - DAY))]
    first = office.make_root()
    people += [one for one in first.persons if one.id != "lab-a/bob"]
    people.sort(key=lambda one: one.id)
    second = changed(first, version=2, previous=office.root, root=office.root, persons=people)
    old, office.root = office.root, office.ok(second, *BOARD)
    seen = office.view(run)
    assert (seen.state, seen.epoch, seen.stop_at_us) == ("suspended", 1, now[0] + 1800 * SECOND)
    # Whoever pinned either of them sees it.
    for pinned in (old, office.root):
        answer = office.verifier.client.get(f"/v1/runs/{run}/permit")
        opened = open_permit_bundle(parse_permit_bundle(answer.body), pinned or "", DEPLOYMENT)
        assert opened.run is not None
        assert opened.run.voided is not None


def test_one_decision_posted_by_many_at_once_is_one(office: Office) -> None:
    run = office.request()
    data = [envelope(office.make_decision(run, who), who).to_bytes() for who in APPROVERS]
    answers: list[Reply] = []
    threads = [threading.Thread(target=lambda d=d: answers.append(office.post(d))) for d in data * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [a.status for a in answers] == [200] * 12
    items: set[StatementItem] = {decode(a.body, StatementItem) for a in answers}
    assert len(items) == 3
    assert office.verifier.count("statement") == 3 + 3
    leaves = [parse_leaf(line) for line in office.verifier.leaves()]
    assert sum(isinstance(leaf, Statement) for leaf in leaves) == 6
    assert office.view(run).state == "approved"


def test_whoever_knows_what_a_commitment_opens_to_may_say_it(office: Office) -> None:
    run, client = office.request(), office.verifier.client
    path, token = f"/v1/runs/{run}/openings", office.verifier.reader_token("approver")
    assert client.get(path, token).code == "not_found"
    argv = office.openings.parts["argv"]
    for parts, why in (
        ({"argv": changed(argv, salt="6" * 64)}, "argv: this opens no commitment"),
        ({"config": Opening(salt="5" * 64, value="sha256:" + "7" * 64)}, "config: this opens no commitment"),
    ):
        answer = office.give(run, Openings(v=1, parts=parts))  # type: ignore[arg-type]
        assert (answer.status, answer.code) == (400, "bad_request")
        assert why in answer.problem.detail
    for data, code in ((b"{}", "bad_request"), (b"x" * 2**20, "too_large")):
        assert client.request("POST", path, data).code == code
    assert office.give("9" * 64, office.openings).code == "not_found"
    assert office.verifier.count("opening") == 0
    for _ in range(2):
        assert office.give(run, office.openings).status == 204
    got = client.get(path, token)
    assert (got.status, got.body) == (200, format_openings(office.openings))
    assert client.get(path).code == "unauthorized"
    # An amendment's spec is another one.
    office.decide(run, *APPROVERS)
    config = Opening(salt="8" * 64, value="sha256:" + "7" * 64)
    spec = office.make_request().spec | {"config": commitment("config", config).hex()}
    amendment = office.ok(office.make_proposal(Amend, run, scope=office.scope(), spec=spec), "lab-a/ada")
    assert office.give(run, Openings(v=1, parts={"config": config})).status == 204
    assert client.get(path, token).body == got.body
    both = parse_openings(client.get(f"{path}?proposal={amendment}", token).body)
    assert sorted(both.parts) == ["argv", "config"]
    assert client.get(f"{path}?proposal={'9' * 64}", token).code == "not_found"
