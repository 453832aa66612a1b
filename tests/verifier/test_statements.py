"""Statements at a real verifier: who may say what, once; and what a replacement changes, as the auditor computes it."""

import threading
from itertools import pairwise
from pathlib import Path

import pytest
from msgspec import structs
from sqlalchemy import text

from keyturn_protocol.api import FindingItem, TrustWithOperators, WorkloadTotal
from keyturn_protocol.api_read import ReplacementItem, StatementItem
from keyturn_protocol.audit import Report, audit
from keyturn_protocol.bundle import parse_anchor, statement_path
from keyturn_protocol.canonical import decode
from keyturn_protocol.chips import chip_table
from keyturn_protocol.leaves import Statement, parse_leaf
from keyturn_protocol.limits import ENVELOPE_BYTES
from keyturn_verifier import operators, taking
from keyturn_verifier.check import check
from keyturn_verifier.db.engine import reading
from keyturn_verifier.differences import Difference
from keyturn_verifier.errors import UsageError
from tests.support.node import START_US, Node, Reply
from tests.support.people import ANNA, BEN, MALLORY, replaces
from tests.support.ssh_signer import SshKey
from tests.support.verifier import DEPLOYMENT, Database, FolderReader, Verifier, call
from tests.vectors.people import FileKey, pae, replacement, signed
from tests.vectors.pieces import b64, canonical
from tests.verifier.test_read import every

STATEMENTS = "/v1/statements"
MINUTE_US = 60_000_000


@pytest.fixture(autouse=True)
def staffed(verifier: Verifier) -> None:
    """Anna has a key in a file, Ben one in SSH."""
    operators.add(verifier.state, ANNA.text, "anna")
    operators.add(verifier.state, BEN.text, "ben")


def say(verifier: Verifier, envelope: bytes) -> Reply:
    return verifier.client.request("POST", STATEMENTS, envelope, content_type="application/json")


def link(old: Node | str, new: Node | str, *keys: FileKey | SshKey, **changes: object) -> bytes:
    ids = (node if isinstance(node, str) else node.name.node_id for node in (old, new))
    return replaces(*ids, *keys, **({"deployment": DEPLOYMENT} | changes))  # type: ignore[arg-type]


def refused(verifier: Verifier, envelope: bytes, status: int, code: str, why: str) -> None:
    before = verifier.dump()
    answer = say(verifier, envelope)
    assert (answer.status, answer.code) == (status, code), answer
    assert why in answer.problem.detail
    assert verifier.dump() == before


def audited(verifier: Verifier, out: Path) -> Report:
    anchor = parse_anchor((verifier.state / "trust.json").read_bytes())
    return audit(FolderReader(verifier.export(out)), anchor.trust, chip_table(), operators=anchor.operators)


def test_a_statement_is_stored_with_its_leaf_and_served_by_role(verifier: Verifier) -> None:
    old = verifier.enrolled()
    envelope = link(old, "00" * 16)
    answer = say(verifier, envelope)
    assert answer.status == 200, answer
    item: StatementItem = decode(answer.body, StatementItem)

    leaf = parse_leaf(verifier.leaves()[item.index])
    assert isinstance(leaf, Statement)
    assert (leaf.body.kind, leaf.body.sha256, leaf.time_us) == ("replacement", item.sha256, item.time_us)
    token = verifier.reader_token()
    assert every(verifier.client, STATEMENTS, token, StatementItem, 1) == [item]
    got = verifier.client.get(f"{STATEMENTS}/{item.sha256}", token)
    assert (got.status, got.body) == (200, envelope)
    assert verifier.client.get(f"{STATEMENTS}/{'0' * 64}", token).code == "not_found"
    for path in (STATEMENTS, f"{STATEMENTS}/{item.sha256}", "/v1/replacements"):
        assert verifier.client.get(path).code == "unauthorized"


def test_the_same_statement_twice_is_one(verifier: Verifier) -> None:
    old = verifier.enrolled()
    first = say(verifier, link(old, "00" * 16))
    before = verifier.dump()
    again = say(verifier, link(old, "00" * 16))
    # What was said is the payload: another signer says nothing new.
    by_ben = say(verifier, link(old, "00" * 16, BEN))
    assert (again.status, again.body) == (by_ben.status, by_ben.body) == (200, first.body)
    assert verifier.dump() == before


def test_a_statement_posted_by_many_at_once_is_one(verifier: Verifier) -> None:
    old = verifier.enrolled()
    different = [link(old, f"{i % 4:032x}") for i in range(12)]
    answers: list[Reply] = []
    threads = [threading.Thread(target=lambda e=e: answers.append(say(verifier, e))) for e in different]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status for answer in answers) == [200] * 3 + [422] * 9
    assert verifier.count("statement") == verifier.count("node_replacement") == 1
    assert sum(isinstance(parse_leaf(line), Statement) for line in verifier.leaves()) == 1


def test_what_two_requests_found_missing_is_stored_once(verifier: Verifier) -> None:
    """Both looked before either wrote: the second finds it under the lock."""
    said, taker = taking.opened(link(verifier.enrolled(), "00" * 16), verifier.settings), verifier.service.taker
    looks = [taker.look(said) for _ in range(2)]
    items = [taker.settle(said, look) for look in looks if isinstance(look, taking.Looked)]
    assert len(items) == 2
    assert items[0] == items[1]
    assert verifier.count("statement") == 1


def test_who_may_not_say_it(verifier: Verifier) -> None:
    old = verifier.enrolled()
    payload = canonical(replacement(deployment=DEPLOYMENT, old=old.name.node_id, new="00" * 16))
    forged = signed(payload, ANNA)
    forged["signatures"][0]["sig"] = b64(MALLORY.sign(pae("replacement", payload)))
    for_git = signed(payload, BEN)
    for_git["signatures"][0]["sig"] = b64(BEN.sshsig(pae("replacement", payload), namespace="git"))
    wrapped = SshKey("sk-ecdsa-sha2-nistp256@openssh.com", "ben")
    for envelope, why in (
        (link(old, "00" * 16, MALLORY), "may not sign"),
        (link(old, "00" * 16, ANNA, MALLORY), "may not sign"),
        (canonical(forged), "does not verify"),
        (canonical(for_git), "another namespace"),
        # Ben's key, in the form of a security key that is not what the operator's list says.
        (link(old, "00" * 16, wrapped), "another key"),
    ):
        refused(verifier, envelope, 403, "bad_signature", why)


def test_what_is_not_for_here(verifier: Verifier) -> None:
    old = verifier.enrolled()
    for changes, why in (
        ({"deployment": "keyturn.example.net"}, "another deployment"),
        ({"root": "00" * 32}, "another root"),
        ({"new": old.name.node_id}, "doesn't replace itself"),
        ({"new": "0" * 31 + "\uff10"}, "not canonical"),
        ({"reason": ""}, "not canonical"),
    ):
        given = {"old": old.name.node_id, "new": "00" * 16, "deployment": DEPLOYMENT} | changes
        payload = canonical(replacement(**given))
        refused(verifier, canonical(signed(payload, ANNA)), 400, "bad_statement", why)
    for data in (b"", b"{}", b"null", b"\xff", link(old, "00" * 16) + b"\n"):
        refused(verifier, data, 400, "bad_statement", "")
    refused(verifier, b" " * (ENVELOPE_BYTES + 1), 413, "too_large", "")


def test_what_contradicts_what_was_said(verifier: Verifier) -> None:
    one, two, three = (verifier.enrolled() for _ in range(3))
    refused(verifier, link("00" * 16, one), 422, "statement_refused", "never enrolled")
    look_alike = one.name.node_id[:-1] + ("0" if one.name.node_id[-1] != "0" else "1")
    refused(verifier, link(look_alike, two), 422, "statement_refused", "never enrolled")
    assert say(verifier, link(one, two)).status == 200
    refused(verifier, link(one, three), 422, "statement_refused", "replaced already")
    refused(verifier, link(one, two, reason="again"), 422, "statement_refused", "replaced already")
    refused(verifier, link(three, two), 422, "statement_refused", "replaces another already")
    refused(verifier, link(two, one), 422, "statement_refused", "in a circle")


def test_a_key_that_ended_signs_no_more_and_what_it_signed_stays(verifier: Verifier, tmp_path: Path) -> None:
    one, two = verifier.enrolled(), verifier.enrolled()
    assert say(verifier, link(one, "00" * 16)).status == 200
    operators.end(verifier.state, ANNA.id, verifier.clock())
    refused(verifier, link(two, "11" * 16), 403, "bad_signature", "may not sign")
    assert say(verifier, link(one, "00" * 16)).status == 200
    assert audited(verifier, tmp_path / "out").outcome == "pass"


def test_no_operators_no_statements(verifier: Verifier) -> None:
    old = verifier.enrolled()
    for key in (ANNA, BEN):
        operators.end(verifier.state, key.id, 0)
    refused(verifier, link(old, "00" * 16), 403, "bad_signature", "may not sign")


def test_replacements_are_listed_by_node(verifier: Verifier) -> None:
    nodes = [verifier.enrolled() for _ in range(3)]
    for old, new in pairwise(nodes):
        assert say(verifier, link(old, new)).status == 200
    token = verifier.reader_token("operator")
    ids = [node.name.node_id for node in nodes]
    found = every(verifier.client, "/v1/replacements", token, ReplacementItem, 1)
    assert [(r.old, r.new) for r in found] == list(pairwise(ids))
    assert found[0].reason == "new disk, image 44"
    for at, count in ((0, 1), (1, 2), (2, 1)):
        assert len(every(verifier.client, f"/v1/replacements?node={ids[at]}", token, ReplacementItem, 9)) == count
    assert verifier.client.get("/v1/replacements?node=x", token).code == "bad_request"


def test_verifier_and_auditor_compute_the_same_of_a_host_that_was_set_up_again(
    tmp_path: Path, database: Database
) -> None:
    now = [START_US]
    with Verifier(tmp_path / "own", db=database, clock=lambda: now[0]) as verifier:
        operators.add(verifier.state, ANNA.text, "anna")
        old = verifier.enrolled(chips=2, usage=3)
        now[0] = old.time_us + 30 * MINUTE_US
        new = Node.new(DEPLOYMENT)
        new.time_us = now[0]
        assert verifier.client.join(new, verifier.join_token()).status == 200
        new.genesis()
        assert verifier.client.post(new.segment()).status == 200
        # One of the two chips comes back.
        new.time_us += MINUTE_US
        new.inventory(1)
        new.usage(2)
        now[0] = new.time_us + MINUTE_US
        assert verifier.client.post(new.segment()).status == 200
        before = totals(verifier)
        assert say(verifier, link(old, new)).status == 200
        now[0] += 30 * MINUTE_US
        after, found = totals(verifier), findings(verifier)
        report = audited(verifier, tmp_path / "out")
        assert (report.outcome, report.reasons) == ("pass", ())
        assert tuple(after) == report.workloads
        assert found == [(f.code, f.origin, f.from_us, f.to_us, f.detail) for f in report.findings]
        assert [code for code, *_ in found].count("replaced") == 1
        gap = {total.workload: total.gap_us for total in after}["gap"]
        # Chip 0: silent up to the new inventory, and there after its last usage. Chip 1: silent to the end.
        end_us, listed_us = now[0], new.time_us - 2 * 10_000_000
        assert gap == (listed_us - old.time_us) + (end_us - new.time_us) + (end_us - old.time_us)
        # Half an hour of two chips has passed; the link gives back no more than what chip 0 has spent elsewhere.
        shrunk = {total.workload: total.gap_us for total in before}["gap"] + 3 * 30 * MINUTE_US - gap
        assert shrunk == end_us - listed_us


def test_a_replaced_node_that_goes_on_is_found_by_both(tmp_path: Path, database: Database) -> None:
    now = [START_US]
    with Verifier(tmp_path / "own", db=database, clock=lambda: now[0]) as verifier:
        operators.add(verifier.state, ANNA.text, "anna")
        old = verifier.enrolled(usage=1)
        now[0] += 10 * MINUTE_US
        new = verifier.enrolled(usage=1)
        assert say(verifier, link(old, new)).status == 200
        assert [code for code, *_ in findings(verifier)].count("replaced_active") == 0
        now[0] += MINUTE_US
        old.usage(1)
        assert verifier.client.post(old.segment()).status == 200
        report = audited(verifier, tmp_path / "out")
        assert report.outcome == "pass"
        found = findings(verifier)
        assert found == [(f.code, f.origin, f.from_us, f.to_us, f.detail) for f in report.findings]
        assert [(code, origin) for code, origin, *_ in found].count(("replaced_active", old.origin)) == 1


def totals(verifier: Verifier) -> list[WorkloadTotal]:
    return every(verifier.client, "/v1/workloads", verifier.reader_token(), WorkloadTotal, 100)


def findings(verifier: Verifier) -> list[tuple[object, ...]]:
    items = every(verifier.client, "/v1/findings", verifier.reader_token(), FindingItem, 100)
    return [(f.code, f.origin, f.from_us, f.to_us, f.detail) for f in items]


def test_the_bundle_holds_what_was_signed(verifier: Verifier, tmp_path: Path) -> None:
    old = verifier.enrolled()
    envelope = link(old, "00" * 16)
    item: StatementItem = decode(say(verifier, envelope).body, StatementItem)
    out = verifier.export(tmp_path / "out")
    assert (out / statement_path(item.sha256)).read_bytes() == envelope
    # Keys in the bundle's own claims are none: an auditor without operators decides nothing.
    assert audit(FolderReader(out), verifier.trust, chip_table()).outcome == "undecided"


def test_an_insider_with_sql_is_found(verifier: Verifier) -> None:
    """What is said about nodes follows from what was signed, in every column."""
    old, new = verifier.enrolled(), verifier.enrolled()
    assert say(verifier, link(old, new)).status == 200
    staff = operators.load(verifier.state)
    given = {"forged": link(old, "00" * 16, MALLORY), "other": link(old, new, BEN)}

    def found(*changes: str) -> list[str]:
        """What check says about a database in which SQL was run; it is as before then."""
        with verifier.engine.connect() as connection:
            for change in changes:
                connection.execute(text(change), given)
            said = [str(difference) for difference in check(connection, verifier.trust, None, staff)]
            connection.rollback()
        return said

    assert found() == []
    assert found("UPDATE statement SET envelope = :other") == []
    for change, named in (
        ("UPDATE statement SET envelope = :forged", "not the statement that"),
        ("UPDATE statement SET kind = 'policy'", "kind"),
        ("UPDATE statement SET time_us = time_us + 1", "time_us"),
        ("UPDATE node_replacement SET new = '00112233445566778899aabbccddeeff'", "new"),
        ("UPDATE node_replacement SET old = '00112233445566778899aabbccddeeff'", "old"),
        ("UPDATE node_replacement SET reason = 'another'", "reason"),
        ("DELETE FROM node_replacement", "row is missing"),
    ):
        assert any(named in line for line in found(change)), (change, found(change))
    assert any("row is missing" in line for line in found("DELETE FROM node_replacement", "DELETE FROM statement"))
    assert any("may not sign" in str(d) for d in checked(verifier))


def checked(verifier: Verifier) -> list[Difference]:
    """By an operator's list without the signer."""
    with reading(verifier.engine) as connection:
        return list(check(connection, verifier.trust))


def test_two_replicas_take_one(verifier: Verifier, tmp_path: Path) -> None:
    """The database decides, whoever of them asks."""
    old = verifier.enrolled()
    if verifier.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one server")
    with Verifier(tmp_path) as replica:
        answers: list[Reply] = []
        jobs = [(which, link(old, f"{i % 2:032x}")) for i in range(6) for which in (verifier, replica)]
        threads = [threading.Thread(target=lambda j=j: answers.append(say(*j))) for j in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {answer.status for answer in answers} == {200, 422}
    assert sum(answer.status == 200 for answer in answers) == 6
    assert verifier.count("statement") == 1


def test_operators_are_listed_by_the_program(verifier: Verifier, tmp_path: Path) -> None:
    key = SshKey("sk-ssh-ed25519@openssh.com", "carol")
    (tmp_path / "carol.pub").write_text(f"{key.text} carol@laptop\n")
    state = ("--state", verifier.state)
    done = call("operator", "add", *state, "--key-file", tmp_path / "carol.pub", "--name", "Carol Ø")
    assert (done.returncode, done.stdout) == (0, f"{key.id}\n"), done.stderr
    assert call("operator", "end", *state, BEN.id).returncode == 0
    lines = call("operator", "list", *state).stdout.splitlines()
    assert [line.split()[0] for line in lines] == [ANNA.id, BEN.id, key.id]
    assert "ended" in lines[1]
    assert key.text in lines[2]
    file: TrustWithOperators = decode((verifier.state / "trust.json").read_bytes(), TrustWithOperators)
    assert (file.verifier, len(file.operators)) == (verifier.keys.trust(DEPLOYMENT), 3)
    assert structs.asdict(file)["v"] == 2


def test_a_list_of_operators_never_grows_beyond_what_can_be_read(verifier: Verifier) -> None:
    written = [b""]

    def fill() -> None:
        for at in range(100):
            written.append((verifier.state / "trust.json").read_bytes())
            operators.add(verifier.state, FileKey(f"operator {at}").text, "x" * 1_024)

    with pytest.raises(UsageError, match="can hold no more"):
        fill()
    assert (verifier.state / "trust.json").read_bytes() == written[-1]
    assert len(operators.load(verifier.state)) > 40


def test_what_the_program_refuses_changes_nothing(verifier: Verifier) -> None:
    before = (verifier.state / "trust.json").read_bytes()
    for arguments, why in (
        (("add", "--key", "ssh-rsa AAAA", "--name", "x"), "not a public key that signs statements"),
        (("add", "--key", ANNA.text, "--name", "x"), "listed twice"),
        (("add", "--key", SshKey("ecdsa-sha2-nistp256", "ben").text, "--name", "x"), "listed twice"),
        (("add", "--key", SshKey("sk-ecdsa-sha2-nistp256@openssh.com", "ben").text, "--name", "x"), "listed twice"),
        (("add", "--key", MALLORY.text, "--name", " "), "--name: must be"),
        (("add", "--key", MALLORY.text, "--name", "a\u202eb"), "--name: must be"),
        (("add", "--key-file", "/nowhere", "--name", "x"), "--key-file"),
        (("end", "00" * 32), "no operator has the key"),
    ):
        done = call("operator", arguments[0], "--state", verifier.state, *arguments[1:])
        assert done.returncode in (1, 2)
        assert why in done.stderr
        assert (verifier.state / "trust.json").read_bytes() == before
        assert not list(verifier.state.glob(".trust-*"))
