"""What waits for the ingest thread: big uploads never hold up small ones, and nothing is stored twice over."""

import threading
from pathlib import Path

import pytest
from backports import zstd

from keyturn_protocol.limits import SEGMENT_BYTES
from keyturn_verifier.budget import Budget
from keyturn_verifier.lanes import BIG_BYTES, Item, Lanes
from keyturn_verifier.problems import Refusal
from keyturn_verifier.upload import open_upload, segment_size
from tests.support.node import Reply
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


def test_the_same_upload_waits_once() -> None:
    lanes = Lanes(256, 2**20)
    first = item(SMALL)
    assert lanes.add(first)
    assert not lanes.add(item(SMALL))
    assert lanes.add(item(SMALL, plain=True))
    assert lanes.add(item(SMALL, shown=b"receipt"))
    assert len(lanes) == 3
    assert lanes.take()[0] is first
    # Once it is being stored, a copy waits anew.
    assert lanes.add(item(SMALL))


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
        assert verifier.service.ingest.budget.used == 0
        assert len(verifier.service.ingest._queue) == 0
