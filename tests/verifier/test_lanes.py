"""What waits for the ingest thread: big uploads never hold up small ones, and nothing is stored twice over."""

import threading
import time
from pathlib import Path

import pytest
from backports import zstd

from keyturn_protocol.limits import SEGMENT_BYTES
from keyturn_verifier.budget import Budget
from keyturn_verifier.lanes import BIG_BYTES, Item, Lanes
from keyturn_verifier.problems import Refusal
from keyturn_verifier.upload import claimed_log, open_upload, segment_size
from tests.support.node import Node, Reply
from tests.support.verifier import Verifier

BIG, SMALL = b"b" * 1_000, b"s" * 100


def item(body: bytes, *, plain: bool = False, shown: bytes | None = None) -> Item:
    """As in the field a frame is much smaller than its segment."""
    return Item(body, plain, BIG_BYTES + 1 if body.startswith(b"b") else 1_000, shown)


def filled(lanes: Lanes, *bodies: bytes) -> Lanes:
    for at, body in enumerate(bodies):
        assert lanes.add(item(body + b"%d" % at))
    return lanes


def test_small_uploads_pass_big_ones() -> None:
    lanes = filled(Lanes(256, 16 * 2**20), *[BIG] * 100, *[SMALL] * 50)
    batch = lanes.take()
    assert sum(one.size < BIG_BYTES for one in batch) == 50
    assert 1 <= sum(one.size > BIG_BYTES for one in batch) <= 16


def test_big_uploads_are_not_held_up_for_ever() -> None:
    lanes = Lanes(4, 16 * 2**20)
    lanes.add(item(BIG))
    filled(lanes, *[SMALL] * 100)
    assert [one.size > BIG_BYTES for one in lanes.take()] == [True, False, False, False]


def test_big_uploads_alone_fill_a_batch() -> None:
    lanes = filled(Lanes(256, 64_000), *[BIG] * 100)
    assert 60 <= len(lanes.take()) <= 64


def test_an_upload_over_the_size_of_a_batch_still_goes() -> None:
    lanes = filled(Lanes(256, 10), SMALL, SMALL)
    assert [len(lanes.take()), len(lanes.take()), len(lanes.take())] == [1, 1, 0]


def test_what_a_frame_says_of_its_segment() -> None:
    whole = b"x" * 3_000_000
    assert segment_size(zstd.compress(whole), plain=False) == len(whole)
    compressor = zstd.ZstdCompressor()
    streamed = compressor.compress(whole[:10]) + compressor.flush()
    assert segment_size(streamed, plain=False) == SEGMENT_BYTES
    assert segment_size(whole, plain=True) == len(whole)
    assert segment_size(b"no frame", plain=False) == 8
    lying = zstd.compress(whole).replace((3_000_000).to_bytes(4, "little"), (3_000).to_bytes(4, "little"), 1)
    assert segment_size(lying, plain=False) == 3_000
    with pytest.raises(Refusal):
        open_upload(lying, plain=False)


def test_whose_an_upload_is_stands_in_its_checkpoint() -> None:
    node = Node.new()
    segment = node.first(chips=3, usage=20)
    assert claimed_log(segment, plain=True) == claimed_log(zstd.compress(segment), plain=False) == node.origin
    assert claimed_log(b"\n\nnot entries" + segment, plain=True) == node.origin
    for junk in (b"", b"\n" * 999, b"no segment", segment.replace(b"\n\n", b"\n"), b"\nx\n\n" + b"y" * 999 + b"\n\n"):
        assert claimed_log(junk, plain=True) is None, junk
    with pytest.raises(Refusal):
        claimed_log(segment, plain=False)


def test_the_same_upload_waits_once() -> None:
    lanes = Lanes(256, 2**20)
    first = item(SMALL)
    assert not lanes.join(first)
    assert lanes.add(first)
    assert lanes.join(item(SMALL))
    for other in (item(SMALL, plain=True), item(SMALL, shown=b"receipt")):
        assert not lanes.join(other)
        assert lanes.add(other)
    assert len(lanes) == 3
    assert lanes.take()[0] is first
    # Once it is being stored, a copy waits anew.
    assert not lanes.join(item(SMALL))


def test_a_log_has_one_place_and_one_that_only_its_key_opens() -> None:
    lanes = Lanes(1, 2**20)

    def of(log: str, body: bytes, *, signed: bool = False) -> Item:
        return Item(body, plain=True, size=9, log=log, signed=signed)

    assert lanes.add(of("a", b"1"))
    assert (lanes.taken("a"), lanes.taken("b")) == (True, False)
    assert not lanes.add(of("a", b"2"))
    assert lanes.add(of("b", b"3"))
    assert lanes.add(of("a", b"4", signed=True))
    assert not lanes.add(of("a", b"5", signed=True))
    # What says nothing of itself takes nobody's place.
    assert lanes.add(item(SMALL))
    assert lanes.add(item(BIG))
    # The place is free when the upload is being stored.
    while lanes.taken("a"):
        assert lanes.take()
    assert lanes.add(of("a", b"2"))


def test_big_uploads_leave_room_for_small_ones() -> None:
    budget = Budget(100)
    budget.take(75, big=True)
    with pytest.raises(Refusal):
        budget.take(1, big=True)
    budget.take(25)
    with pytest.raises(Refusal):
        budget.take(1)
    assert budget.used == 100


def test_impatient_hosts_get_one_receipt(tmp_path: Path) -> None:
    """The same bytes from many connections while the first copy waits: one is stored, all are answered alike."""
    with Verifier(tmp_path) as verifier:
        node = verifier.enrolled()
        node.usage(3)
        segment = node.segment()
        other = verifier.joined().first()
        replies: list[Reply] = []
        with verifier.write_lock():
            # The first keeps the thread busy; all that come after it wait together.
            threads = [threading.Thread(target=lambda: replies.append(verifier.client.post(segment)))]
            threads += [threading.Thread(target=lambda: verifier.client.post(other))]
            threads += [
                threading.Thread(target=lambda: replies.append(verifier.client.post(segment))) for _ in range(20)
            ]
            for thread in threads:
                thread.start()
        for thread in threads:
            thread.join()
        assert len(replies) == 21
        assert {reply.status for reply in replies} <= {200, 429}
        assert len({reply.body for reply in replies if reply.status == 200}) == 1
        assert verifier.service.ingest.intake.budget.used == 0
        assert len(verifier.service.ingest.intake) == 0


def test_a_flood_takes_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a log that sends many different uploads one waits; bytes that only say that they are of it keep none out."""
    monkeypatch.setattr("keyturn_verifier.intake._PAUSE_S", 0)
    with Verifier(tmp_path) as verifier:
        flooder, victim, blocker = verifier.enrolled(chips=64), verifier.enrolled(), verifier.joined()
        intake = verifier.service.ingest.intake
        flood = [flooder.segment(flooder.usage(count)) for count in (1, 1, 1, 60, 60)]
        assert len(flood[-1]) > BIG_BYTES > len(flood[0])
        signed = victim.segment(victim.usage(1))
        forged = [signed[:-30] + letter * 20 + signed[-10:] for letter in (b"A", b"B")]
        replies: dict[str, list[Reply]] = {}
        threads: list[threading.Thread] = []

        def send(who: str, segment: bytes, waiting: int) -> None:
            def post() -> None:
                replies.setdefault(who, []).append(verifier.client.post(segment))

            threads.append(threading.Thread(target=post))
            threads[-1].start()
            while len(intake) < waiting and threads[-1].is_alive():
                time.sleep(0.002)

        with verifier.write_lock():
            send("blocker", blocker.first(), 0)
            while verifier.service.ingest.intake.budget.used == 0 or len(intake):
                time.sleep(0.002)
            send("flooder", flood[0], 1)
            for segment in flood[1:]:
                send("refused", segment, 99)
            assert len(intake) == 1
            send("forger", forged[0], 2)
            send("refused", forged[1], 99)
            send("victim", signed, 3)
        for thread in threads:
            thread.join()
        told = {who: [reply.status for reply in all_] for who, all_ in replies.items()}
        assert told == {"blocker": [200], "flooder": [200], "refused": [429] * 5, "forger": [403], "victim": [200]}
        assert all(int(reply.headers["retry-after"]) > 0 for reply in replies["refused"])
        assert intake.budget.used == 0
        # What was told to come back is stored when it does.
        for segment in flood[1:]:
            assert verifier.client.post(segment).status == 200
