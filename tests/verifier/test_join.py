"""Joining: tokens, announcements, and the genesis that uses a token up."""

import threading
from pathlib import Path

import pytest

from keyturn_protocol.api import JoinResponse
from keyturn_protocol.canonical import decode
from keyturn_protocol.keys import SignatureType, VerifierKey
from keyturn_protocol.leaves import Enrolment, parse_leaf
from keyturn_verifier import tokens
from keyturn_verifier.db.engine import writing
from tests.support.node import Node, Reply
from tests.support.verifier import DAY_US, DEPLOYMENT, Database, Verifier


def uses(verifier: Verifier) -> list[object]:
    return [row[5] for row in verifier.dump()["join_token"]]


def test_joining_names_organisation_and_site_and_uses_nothing_up(verifier: Verifier) -> None:
    node, token = Node.new(), verifier.join_token()

    answer = verifier.client.join(node, token)

    assert answer.status == 200
    assert decode(answer.body, JoinResponse) == JoinResponse(origin=node.origin, organisation="acme", site="fra1")
    assert uses(verifier) == [0]
    assert verifier.count("log") == 0


def test_the_first_valid_genesis_uses_the_token_up_and_enrols_the_node(verifier: Verifier) -> None:
    node, token = Node.new(), verifier.join_token()
    verifier.client.join(node, token)

    assert verifier.client.post(node.first()).status == 200

    assert uses(verifier) == [1]
    assert verifier.count("pending_log") == 0
    leaf = parse_leaf(verifier.leaves()[1])
    assert isinstance(leaf, Enrolment)
    assert (leaf.body.origin, leaf.body.organisation, leaf.body.site) == (node.origin, "acme", "fra1")
    assert leaf.body.token_sha256 == tokens.digest(token).hex()


def test_the_same_announcement_twice_is_one(verifier: Verifier) -> None:
    node, token = Node.new(), verifier.join_token()
    first = verifier.client.join(node, token)
    before = verifier.dump()

    again = verifier.client.join(node, token)

    assert (again.status, again.body) == (200, first.body)
    assert verifier.dump() == before


def test_an_enrolled_node_cannot_join_again(verifier: Verifier) -> None:
    node, token = Node.new(), verifier.join_token(hosts=2)
    verifier.client.join(node, token)
    verifier.client.post(node.first())

    answer = verifier.client.join(node, token)

    assert (answer.status, answer.code) == (409, "already_enrolled")


def rejected(verifier: Verifier, node: Node, token: str, code: str) -> None:
    before = verifier.dump()
    answer = verifier.client.join(node, token)
    assert (answer.status, answer.code) == (403, code)
    assert token.encode() not in answer.body
    assert verifier.dump() == before


def test_an_unknown_join_token(verifier: Verifier) -> None:
    rejected(verifier, Node.new(), "ktj_no-such-token", "token_unknown")


def test_a_foreign_join_token(verifier: Verifier, tmp_path: Path, database: Database) -> None:
    """Good at another verifier, of the same deployment's name even, and nothing here."""
    with Verifier(tmp_path / "other", db=database) as other:
        token = other.join_token()
    rejected(verifier, Node.new(), token, "token_unknown")


def test_a_readers_token_is_no_join_token(verifier: Verifier) -> None:
    rejected(verifier, Node.new(), verifier.reader_token(), "token_unknown")


def test_an_expired_join_token(verifier: Verifier) -> None:
    rejected(verifier, Node.new(), verifier.join_token(expires_us=verifier.clock()), "token_expired")


def test_a_revoked_join_token(verifier: Verifier) -> None:
    token = verifier.join_token()
    with writing(verifier.engine) as connection:
        tokens.revoke(connection, "join-1", verifier.clock())
    rejected(verifier, Node.new(), token, "token_expired")


def test_a_used_join_token(verifier: Verifier) -> None:
    token, first = verifier.join_token(), Node.new()
    verifier.client.join(first, token)
    assert verifier.client.post(first.first()).status == 200
    rejected(verifier, Node.new(), token, "token_used")


@pytest.mark.parametrize("how", ["expired", "revoked"])
def test_a_token_that_ends_between_announcement_and_genesis(tmp_path: Path, how: str, database: Database) -> None:
    now = [1_790_000_000_000_000]
    with Verifier(tmp_path, db=database, clock=lambda: now[0]) as verifier:
        node = verifier.joined()
        if how == "expired":
            now[0] += DAY_US - 1
            with writing(verifier.engine) as connection:
                connection.exec_driver_sql("UPDATE pending_log SET expires_us = expires_us + 10")
            now[0] += 1
        else:
            with writing(verifier.engine) as connection:
                tokens.revoke(connection, "join-1", now[0])
        before = verifier.dump()

        answer = verifier.client.post(node.first())

        assert (answer.status, answer.code) == (403, "token_expired")
        assert verifier.dump() == before


def test_an_announcement_expires(tmp_path: Path, database: Database) -> None:
    now = [1_790_000_000_000_000]
    with Verifier(tmp_path, db=database, clock=lambda: now[0]) as verifier:
        node = verifier.joined()
        now[0] += DAY_US + 1
        assert verifier.client.post(node.first()).code == "unknown_log"


def test_two_hosts_race_for_the_last_use(verifier: Verifier) -> None:
    token = verifier.join_token(hosts=3)
    nodes = [Node.new() for _ in range(9)]
    for node in nodes:
        assert verifier.client.join(node, token).status == 200
    segments = [node.first() for node in nodes]
    answers: list[Reply] = []
    gate = threading.Barrier(len(nodes))

    def post(segment: bytes) -> None:
        gate.wait()
        answers.append(verifier.client.post(segment))

    threads = [threading.Thread(target=post, args=(segment,)) for segment in segments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    won = [answer for answer in answers if answer.status == 200]
    lost = [answer for answer in answers if answer.status != 200]
    assert len(won) == 3
    assert {(answer.status, answer.code) for answer in lost} == {(403, "token_used")}
    assert uses(verifier) == [3]
    assert verifier.count("log") == verifier.count("segment") == 3


def test_the_last_use_within_one_batch(verifier: Verifier) -> None:
    """The batch that loses one segment to a used-up token keeps the others."""
    token = verifier.join_token(hosts=2)
    nodes = [Node.new() for _ in range(4)]
    for node in nodes:
        verifier.client.join(node, token)
    segments = [node.first() for node in nodes]
    answers: list[Reply] = []
    threads = [
        threading.Thread(target=lambda segment: answers.append(verifier.client.post(segment)), args=(segment,))
        for segment in segments
    ]
    with verifier.write_lock():
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status for answer in answers) == [200, 200, 403, 403]
    assert uses(verifier) == [2]


def test_an_invalid_genesis_leaves_the_token_good_and_nothing_behind(verifier: Verifier) -> None:
    node = verifier.joined()
    wrong = node.copy()
    wrong.heartbeat()
    before = verifier.dump()

    answer = verifier.client.post(wrong.segment())

    assert (answer.status, answer.code) == (422, "invalid_entries")
    assert verifier.dump() == before
    assert verifier.client.post(node.first()).status == 200


def test_vkeys_that_no_node_may_join_with(verifier: Verifier) -> None:
    token, node = verifier.join_token(), Node.new()
    public = node.public_key
    cases = {
        "": (400, "bad_request"),
        "nonsense": (400, "bad_request"),
        str(node.vkey)[:-4]: (400, "bad_request"),
        str(Node.new("other.example.org").vkey): (404, "unknown_log"),
        str(VerifierKey(node.next_incarnation().origin, SignatureType.ED25519, public)): (400, "bad_request"),
        str(VerifierKey(node.origin, SignatureType.COSIGNATURE_ED25519, public)): (400, "bad_request"),
        str(VerifierKey(Node.new().origin, SignatureType.ED25519, public)): (400, "bad_request"),
        str(VerifierKey(f"{DEPLOYMENT}/log", SignatureType.ED25519, public)): (400, "bad_request"),
    }
    before = verifier.dump()
    for vkey, expected in cases.items():
        answer = verifier.client.join_with(vkey, token)
        assert (answer.status, answer.code) == expected, vkey
    assert verifier.dump() == before


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{}", 400),
        (b"[]", 400),
        (b'{"token":"x","vkey":"y","z":1}', 400),
        (b'{"token":1,"vkey":"y"}', 400),
        (b'{"token":"x","token":"y","vkey":"z"}', 400),
        (b"\xff", 400),
        (b"x" * 5_000, 413),
    ],
)
def test_join_requests_that_are_not_ones(verifier: Verifier, body: bytes, status: int) -> None:
    before = verifier.dump()
    answer = verifier.client.request("POST", "/v1/join", body, content_type="application/json")
    assert answer.status == status
    assert answer.code in ("bad_request", "too_large")
    assert verifier.dump() == before


def test_one_token_announces_a_bounded_number_of_nodes(tmp_path: Path, database: Database) -> None:
    with Verifier(tmp_path, db=database, pending_per_token=2) as verifier:
        token = verifier.join_token(hosts=2)
        answers = [verifier.client.join(Node.new(), token) for _ in range(5)]
        assert [answer.status for answer in answers] == [200] * 4 + [403]


def test_tokens_are_stored_hashed(verifier: Verifier) -> None:
    secrets = [verifier.join_token(), verifier.reader_token()]
    values = [value for rows in verifier.dump().values() for row in rows for value in row]
    files = b"".join(path.read_bytes() for path in verifier.state.iterdir())
    for secret in secrets:
        assert tokens.digest(secret) in values
        assert secret not in values
        assert secret.encode() not in files
