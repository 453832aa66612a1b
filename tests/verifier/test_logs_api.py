"""Logs as received, and proofs about them: checked with the protocol's own verification."""

import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from keyturn_protocol.api import Page
from keyturn_protocol.api_read import ConsistencyProof, InclusionProof, SegmentItem
from keyturn_protocol.canonical import decode
from keyturn_protocol.merkle import leaf_hash, root_of, verify_consistency, verify_inclusion
from keyturn_protocol.segment import parse_segment
from tests.support.node import Node, Reply
from tests.support.verifier import Database, Verifier


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, database: Database) -> Iterator[tuple[Verifier, Node, str]]:
    """A verifier, a log in segments of uneven lengths, and a token."""
    with Verifier(tmp_path_factory.mktemp("logs"), db=database, publish_interval_ms=1) as verifier:
        node = verifier.enrolled()
        rng = random.Random(7)
        for _ in range(12):
            node.usage(rng.randint(1, 9))
            assert verifier.client.post(node.segment()).status == 200
        yield verifier, node, verifier.reader_token()


def read(answer: Reply, kind: Any) -> Any:
    assert answer.status == 200, answer
    return decode(answer.body, kind, limit=1 << 20)


def path(node: Node, rest: str = "") -> str:
    return f"/v1/logs/{node.name.node_id}/1{rest}"


def test_the_segments_are_what_was_sent(served: tuple[Verifier, Node, str]) -> None:
    verifier, node, token = served
    items: list[SegmentItem] = []
    after = ""
    while True:
        part = read(verifier.client.get(path(node, f"/segments?limit=5{after}"), token), Page[SegmentItem])
        items += part.items
        if part.next is None:
            break
        after = f"&after={part.next}"
    lines: list[bytes] = []
    for item in items:
        answer = verifier.client.get(path(node, f"/segments/{item.start}"), token)
        receipt = verifier.client.get(path(node, f"/segments/{item.start}/receipt"), token)
        segment = parse_segment(answer.body)
        assert (segment.start, segment.end) == (item.start, item.end)
        assert receipt.body.startswith("— keyturn.example.org/receipt ".encode())
        lines += segment.lines
    assert lines == node.lines
    assert verifier.client.get(path(node, f"/segments/{items[1].start + 1}"), token).status in (200, 404)
    assert verifier.client.get(path(node, "/segments/999"), token).code == "not_found"


def test_every_entry_is_proved_in_every_tree(served: tuple[Verifier, Node, str]) -> None:
    verifier, node, token = served
    rng = random.Random(3)
    hashes = [leaf_hash(line) for line in node.lines]
    for _ in range(60):
        size = rng.randint(1, node.size)
        index = rng.randrange(size)
        proof = read(
            verifier.client.get(path(node, f"/proof/inclusion?index={index}&size={size}"), token), InclusionProof
        )
        assert bytes.fromhex(proof.root) == root_of(hashes[:size])
        assert bytes.fromhex(proof.leaf_hash) == hashes[index]
        verify_inclusion(index, size, hashes[index], [bytes.fromhex(h) for h in proof.hashes], root_of(hashes[:size]))


def test_every_tree_begins_with_every_smaller_one(served: tuple[Verifier, Node, str]) -> None:
    verifier, node, token = served
    rng = random.Random(4)
    hashes = [leaf_hash(line) for line in node.lines]
    for _ in range(60):
        size = rng.randint(1, node.size)
        old = rng.randint(1, size)
        answer = verifier.client.get(path(node, f"/proof/consistency?old_size={old}&size={size}"), token)
        proof = read(answer, ConsistencyProof)
        roots = root_of(hashes[:old]), root_of(hashes[:size])
        assert (bytes.fromhex(proof.old_root), bytes.fromhex(proof.root)) == roots
        verify_consistency(old, size, *roots, [bytes.fromhex(h) for h in proof.hashes])


def test_the_verifiers_log_is_proved_too(served: tuple[Verifier, Node, str]) -> None:
    verifier, _, token = served
    size = verifier.dump_checkpoints()[-1][0]
    hashes = [leaf_hash(leaf) for leaf in verifier.leaves()[:size]]
    for index in range(size):
        answer = verifier.client.get(f"/v1/log/proof/inclusion?index={index}&size={size}", token)
        proof = read(answer, InclusionProof)
        assert proof.origin == "keyturn.example.org/log"
        verify_inclusion(index, size, hashes[index], [bytes.fromhex(h) for h in proof.hashes], root_of(hashes))
        answer = verifier.client.get(f"/v1/log/proof/consistency?old_size={index + 1}&size={size}", token)
        between = read(answer, ConsistencyProof)
        old_root = root_of(hashes[: index + 1])
        verify_consistency(index + 1, size, old_root, root_of(hashes), [bytes.fromhex(h) for h in between.hashes])


@pytest.mark.parametrize(
    "query",
    [
        "inclusion?index=5&size=5",
        "inclusion?index=0&size=100000",
        "inclusion?index=-1&size=3",
        "inclusion?size=3",
        "consistency?old_size=0&size=3",
        "consistency?old_size=4&size=3",
        "consistency?old_size=1&size=9007199254740991",
        "consistency?old_size=1&size=99999999999999999999999",
    ],
)
def test_there_is_no_such_proof(served: tuple[Verifier, Node, str], query: str) -> None:
    verifier, node, token = served
    for base in (path(node), "/v1/log"):
        answer = verifier.client.get(f"{base}/proof/{query}", token)
        assert (answer.status, answer.code) == (400, "bad_request")


def test_one_node_and_one_log(served: tuple[Verifier, Node, str]) -> None:
    verifier, node, token = served
    one = msgspec.json.decode(verifier.client.get(path(node), token).body)
    listed = msgspec.json.decode(verifier.client.get(f"/v1/nodes/{node.name.node_id}", token).body)
    assert listed == {"items": [one], "next": None}
    assert (one["origin"], one["size"]) == (node.origin, node.size)
    assert verifier.client.get(f"/v1/nodes/{'0' * 32}", token).code == "not_found"
    assert verifier.client.get(f"/v1/logs/{'0' * 32}/1", token).code == "unknown_log"
    assert verifier.client.get(f"/v1/logs/{node.name.node_id}/2", token).code == "unknown_log"
    assert verifier.client.get("/v1/logs/x/1", token).code == "bad_request"
