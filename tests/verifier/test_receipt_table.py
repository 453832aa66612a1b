"""Every row of the receipt table, over HTTP."""

from pathlib import Path

from keyturn_protocol.cosignature import parse_receipt, verify_cosignature
from keyturn_protocol.keys import parse_vkey
from keyturn_protocol.leaves import Enrolment, LogFrozen, NodeCheckpoint, parse_leaf
from keyturn_protocol.note import parse_note
from keyturn_protocol.segment import parse_segment
from tests.support.node import Node
from tests.support.verifier import Database, Verifier


def leaf_types(verifier: Verifier) -> list[str]:
    return [type(parse_leaf(leaf)).__name__ for leaf in verifier.leaves()]


def test_the_next_segment_gets_a_receipt_that_verifies(verifier: Verifier) -> None:
    node = verifier.joined()
    segment = node.first(chips=2, usage=3)

    answer = verifier.client.post(segment)

    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain")
    text = parse_segment(segment).note.text
    time_s = verify_cosignature(text, parse_receipt(answer.body), parse_vkey(verifier.trust.receipt_vkey))
    checkpoint = parse_leaf(verifier.leaves()[-1])
    assert isinstance(checkpoint, NodeCheckpoint)
    assert (checkpoint.body.origin, checkpoint.body.start, checkpoint.body.size) == (node.origin, 0, 5)
    assert checkpoint.body.receipt_s == time_s
    assert leaf_types(verifier) == ["Init", "Enrolment", "NodeCheckpoint"]


def test_the_same_segment_again_gets_the_same_receipt_byte_for_byte(verifier: Verifier) -> None:
    node = verifier.joined()
    segment = node.first()
    first = verifier.client.post(segment)
    before = verifier.dump()

    again = verifier.client.post(segment)
    plain = verifier.client.post_raw(segment, "text/plain; charset=utf-8")

    assert (again.status, again.body) == (200, first.body) == (plain.status, plain.body)
    assert verifier.dump() == before


def test_an_old_segment_gets_its_own_receipt(verifier: Verifier) -> None:
    node = verifier.joined()
    segment = node.first()
    first = verifier.client.post(segment)
    assert verifier.client.post(node.segment(node.usage(3))).status == 200

    assert verifier.client.post(segment).body == first.body


def test_known_entries_in_another_range_are_behind(verifier: Verifier) -> None:
    node = verifier.enrolled(usage=4)
    before = verifier.dump()

    answer = verifier.client.post(node.range(1, 5))

    assert (answer.status, answer.code) == (409, "behind")
    assert answer.problem.checkpoint is not None
    assert answer.problem.checkpoint.encode() == verifier.client.head(node).body
    assert verifier.dump() == before


def test_a_segment_that_leaves_entries_out_is_behind_and_says_where_to_go_on(verifier: Verifier) -> None:
    node = verifier.enrolled()
    node.usage(4)
    before = verifier.dump()

    answer = verifier.client.post(node.range(4, 6))

    assert (answer.status, answer.code) == (409, "behind")
    note = parse_note((answer.problem.checkpoint or "").encode())
    assert note.text == node.checkpoint(2).split(b"\n\n")[0] + b"\n"
    assert [s.name for s in note.signatures] == [node.origin, "keyturn.example.org/receipt"]
    assert verifier.dump() == before


def test_of_a_log_that_has_not_begun_there_is_no_checkpoint(verifier: Verifier) -> None:
    node = verifier.joined()
    node.first(usage=3)
    before = verifier.dump()

    answer = verifier.client.post(node.range(2, 5))

    assert (answer.status, answer.code, answer.problem.checkpoint) == (409, "behind", None)
    assert verifier.client.head(node).code == "unknown_log"
    assert verifier.dump() == before


def test_an_unknown_node(verifier: Verifier) -> None:
    before = verifier.dump()

    answer = verifier.client.post(Node.new().first())

    assert (answer.status, answer.code) == (404, "unknown_log")
    assert verifier.dump() == before


def test_a_bad_signature(verifier: Verifier) -> None:
    node = verifier.enrolled()
    thief = node.copy()
    thief.key = Node.new().key
    thief.usage(1)
    before = verifier.dump()

    for segment in (thief.range(2, 3), forged_signature(node)):
        answer = verifier.client.post(segment)
        assert (answer.status, answer.code) == (403, "bad_signature")
    assert verifier.dump() == before


def forged_signature(node: Node) -> bytes:
    """The right key id over a signature of something else."""
    other = node.copy()
    other.usage(1)
    data = other.range(2, 3)
    signature = parse_segment(data).note.signatures[0]
    wrong = type(signature)(signature.name, signature.key_id, node.key.sign(b"something else"))
    return data.replace(signature.to_bytes(), wrong.to_bytes())


def test_a_frozen_log_takes_nothing_more(verifier: Verifier) -> None:
    node = verifier.enrolled()
    twin = node.copy()
    assert verifier.client.post(node.segment(node.usage(1))).status == 200
    assert verifier.client.post(twin.segment(twin.shutdown())).code == "fork"
    before = verifier.dump()

    for segment in (node.segment(node.usage(1)), node.range(0, 2)):
        answer = verifier.client.post(segment)
        assert (answer.status, answer.code) == (422, "log_frozen")
    assert verifier.dump() == before


def test_damaged_entries_under_a_good_checkpoint_freeze_nothing(verifier: Verifier) -> None:
    node = verifier.enrolled()
    good = node.segment(node.usage(2))
    before = verifier.dump()

    answer = verifier.client.post(good.replace(b'"samples":[10]', b'"samples":[11]', 1))

    assert (answer.status, answer.code) == (400, "damaged_segment")
    assert verifier.dump() == before
    assert verifier.client.post(good).status == 200


def test_signed_entries_that_break_the_chain_freeze_the_log(verifier: Verifier) -> None:
    node = verifier.enrolled()
    line = node.copy().heartbeat()
    node.append_line(line.replace(b'"seq":2', b'"seq":3'))
    bad = node.segment()

    answer = verifier.client.post(bad)

    assert (answer.status, answer.code) == (422, "invalid_entries")
    dump = verifier.dump()
    assert len(dump["evidence"]) == 1
    assert len(dump["segment"]) == 1
    leaf = parse_leaf(verifier.leaves()[-1])
    assert isinstance(leaf, LogFrozen)
    assert (leaf.body.reason, leaf.body.size) == ("invalid_entries", 3)
    assert verifier.client.post(bad).code == "log_frozen"


def test_after_its_last_entry_a_log_is_closed(verifier: Verifier) -> None:
    node = verifier.enrolled()
    node.key_roll(Node.new().key)
    assert verifier.client.post(node.segment()).status == 200
    before = verifier.dump()

    answer = verifier.client.post(node.segment(node.heartbeat()))

    assert (answer.status, answer.code) == (422, "log_closed")
    assert verifier.dump() == before


def test_the_next_incarnation_follows_with_the_same_key(verifier: Verifier) -> None:
    node = verifier.enrolled(usage=2)
    after = node.next_incarnation()

    answer = verifier.client.post(after.segment(after.genesis(previous=node.previous()), after.inventory()))

    assert answer.status == 200
    assert leaf_types(verifier)[-2:] == ["Enrolment", "NodeCheckpoint"]
    leaf = parse_leaf(verifier.leaves()[-2])
    assert isinstance(leaf, Enrolment)
    assert (leaf.body.incarnation, leaf.body.token_sha256, leaf.body.organisation) == (2, None, "acme")
    assert [row[2] for row in verifier.dump()["finding"]] == ["new_incarnation"]


def test_after_a_key_roll_only_the_named_key_follows(verifier: Verifier) -> None:
    node, new = verifier.enrolled(), Node.new().key
    node.key_roll(new)
    assert verifier.client.post(node.segment()).status == 200
    old, right = node.next_incarnation(), node.next_incarnation(key=new)
    for after in (old, right):
        after.genesis(previous=node.previous("key_roll"))

    assert verifier.client.post(old.segment()).code == "bad_signature"
    assert verifier.client.post(right.segment()).status == 200


def test_skipped_incarnations_and_lost_entries_are_findings(verifier: Verifier) -> None:
    node = verifier.enrolled(usage=2)
    forgetful = node.copy()
    forgetful.lines, forgetful.frontier = node.lines[:2], node.frontier.__class__()
    after = node.next_incarnation(skip=1)
    after.genesis(previous=forgetful.previous("damaged"))

    assert verifier.client.post(after.segment()).status == 200

    codes = {row[2] for row in verifier.dump()["finding"]}
    assert codes == {"new_incarnation", "incarnation_skipped", "lost_head"}


def test_an_earlier_incarnation_than_the_newest_is_unknown(verifier: Verifier) -> None:
    node = verifier.enrolled()
    third, second = node.next_incarnation(skip=1), node.next_incarnation()
    for after in (third, second):
        after.genesis(previous=node.previous())
    assert verifier.client.post(third.segment()).status == 200

    assert verifier.client.post(second.segment()).code == "unknown_log"


def test_an_invalid_genesis_of_a_later_incarnation_is_kept_as_evidence(verifier: Verifier) -> None:
    node = verifier.enrolled()
    after = node.next_incarnation()
    after.heartbeat()

    assert verifier.client.post(after.segment()).code == "invalid_entries"
    assert leaf_types(verifier)[-2:] == ["Enrolment", "LogFrozen"]


def test_receipt_times_never_go_back(tmp_path: Path, database: Database) -> None:
    now = [2_000_000_000_000_000]
    with Verifier(tmp_path, db=database, clock=lambda: now[0]) as verifier:
        node = verifier.enrolled()
        now[0] -= 3_600_000_000
        segment = node.segment(node.usage(1))
        receipt = parse_receipt(verifier.client.post(segment).body)
        key = parse_vkey(verifier.trust.receipt_vkey)
        assert verify_cosignature(parse_segment(segment).note.text, receipt, key) == 2_000_000_000
        assert parse_leaf(verifier.leaves()[-1]).time_us == 2_000_000_000_000_000
