"""Bad input, named: each gets a clear answer, and nothing is half-stored."""

import json
import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from backports import zstd

from keyturn_protocol import api
from keyturn_protocol.limits import SEGMENT_BYTES, SEGMENT_ENTRIES, UPLOAD_BYTES
from keyturn_protocol.merkle import leaf_hash
from keyturn_protocol.note import parse_note
from keyturn_protocol.segment import parse_segment
from keyturn_verifier import upload
from keyturn_verifier.problems import Refusal
from tests.support.node import Node, Reply
from tests.support.verifier import Verifier


def refused(verifier: Verifier, send: Callable[[], Reply], status: int, code: str) -> Reply:
    """``send`` is refused like this, and the database is as it was before."""
    before = verifier.dump()
    answer = send()
    assert (answer.status, answer.code) == (status, code), answer
    assert answer.problem.detail
    assert b"Traceback" not in answer.body
    assert verifier.dump() == before
    return answer


def next_segment(verifier: Verifier) -> tuple[Node, bytes]:
    """An enrolled node, and the good segment that would be next."""
    node = verifier.enrolled()
    return node, node.segment(node.usage(3))


def test_a_truncated_segment(verifier: Verifier) -> None:
    _, good = next_segment(verifier)
    for length in (0, 1, len(good) // 2, good.index(b"\n\n") + 2, len(good) - 1):
        refused(verifier, lambda n=length: verifier.client.post(good[:n]), 400, "bad_segment")  # type: ignore[misc]
    cut = b"\n".join(good.split(b"\n")[1:])
    refused(verifier, lambda: verifier.client.post(cut), 409, "behind")
    assert verifier.client.post(good).status == 200


def test_a_segment_with_entries_in_another_order(verifier: Verifier) -> None:
    _, good = next_segment(verifier)
    lines = good.split(b"\n")
    lines[0], lines[1] = lines[1], lines[0]
    refused(verifier, lambda: verifier.client.post(b"\n".join(lines)), 400, "damaged_segment")
    assert verifier.client.post(good).status == 200


def test_a_segment_with_an_entry_twice(verifier: Verifier) -> None:
    _, good = next_segment(verifier)
    lines = good.split(b"\n")
    lines[1] = lines[0]
    refused(verifier, lambda: verifier.client.post(b"\n".join(lines)), 400, "damaged_segment")
    refused(verifier, lambda: verifier.client.post(good.split(b"\n")[0] + b"\n" + good), 409, "behind")


def test_a_segment_with_too_many_entries(verifier: Verifier) -> None:
    node = verifier.enrolled()
    for _ in range(SEGMENT_ENTRIES + 1):
        node.heartbeat(1)
    refused(verifier, lambda: verifier.client.post(node.segment()), 413, "too_large")


def test_a_segment_of_too_many_bytes(verifier: Verifier) -> None:
    refused(verifier, lambda: verifier.client.post(b"x" * (SEGMENT_BYTES + 1)), 413, "too_large")
    answer = refused(
        verifier, lambda: verifier.client.post_raw(b"x" * (SEGMENT_BYTES + 1), "text/plain"), 413, "too_large"
    )
    assert answer.headers["connection"] == "close"


def test_an_upload_of_too_many_bytes_with_and_without_a_length(verifier: Verifier) -> None:
    body = b"x" * (UPLOAD_BYTES + 1)
    refused(verifier, lambda: verifier.client.post_raw(body), 413, "too_large")
    refused(verifier, lambda: chunked(verifier, body), 413, "too_large")


def chunked(verifier: Verifier, body: bytes) -> Reply:
    """Send without a Content-Length."""
    pieces = (body[i : i + 65_536] for i in range(0, len(body), 65_536))
    answer = verifier.client._pool.request(
        "POST",
        verifier.client.url + api.SEGMENTS,
        body=pieces,
        headers={"content-type": api.SEGMENT_TYPE},
        chunked=True,
    )
    return Reply(answer.status, answer.data, {k.lower(): v for k, v in answer.headers.items()})


def test_an_entry_of_too_many_bytes(verifier: Verifier) -> None:
    node = verifier.enrolled()
    node.append_line(b'{"v":1,"x":"' + b"y" * 66_000 + b'"}')
    refused(verifier, lambda: verifier.client.post(node.segment()), 413, "too_large")


def test_a_decompression_bomb(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = zstd.ZstdDecompressor

    class Counting:
        def __init__(self, *args: object, **options: object) -> None:
            self._real = real(*args, **options)  # type: ignore[arg-type]
            self.eof, self.unused_data = False, b""

        def decompress(self, data: bytes, max_length: int = -1) -> bytes:
            out = self._real.decompress(data, max_length=max_length)
            made.append(len(out))
            self.eof = self._real.eof
            self.unused_data = self._real.unused_data if self.eof else b""
            return out

    monkeypatch.setattr("keyturn_verifier.upload.zstd.ZstdDecompressor", Counting)
    bomb = zstd.compress(b"\n" * (1 << 30))
    assert len(bomb) < UPLOAD_BYTES
    refused(verifier, lambda: verifier.client.post_raw(bomb), 413, "too_large")
    assert sum(made) == SEGMENT_BYTES + 1


def test_a_frame_that_asks_for_a_huge_window(verifier: Verifier) -> None:
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 27})
    frame = compressor.compress(b"x" * 100) + compressor.flush()
    refused(verifier, lambda: verifier.client.post_raw(frame), 400, "bad_segment")


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda frame: frame[:-1], id="cut"),
        pytest.param(lambda frame: frame[: len(frame) // 2], id="cut in half"),
        pytest.param(lambda frame: frame + b"\0", id="a byte after it"),
        pytest.param(lambda frame: frame + frame, id="two frames"),
        pytest.param(lambda frame: b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + frame, id="a skippable frame before it"),
        pytest.param(lambda frame: b"", id="nothing"),
        pytest.param(lambda frame: b"not zstd at all", id="not zstd"),
        pytest.param(lambda frame: bytes([frame[0] ^ 1]) + frame[1:], id="wrong magic"),
    ],
)
def test_a_wrong_zstd_frame(verifier: Verifier, spoil: Callable[[bytes], bytes]) -> None:
    _, good = next_segment(verifier)
    refused(verifier, lambda: verifier.client.post_raw(spoil(zstd.compress(good))), 400, "bad_segment")
    assert verifier.client.post(good).status == 200


def test_a_segment_that_just_fits_is_not_a_bomb() -> None:
    data = b"x" * SEGMENT_BYTES
    assert upload.decompress(zstd.compress(data)) == data
    with pytest.raises(Refusal):
        upload.decompress(zstd.compress(data + b"x"))


def test_wrong_encodings(verifier: Verifier) -> None:
    _, good = next_segment(verifier)
    latin = good.replace("— ".encode(), b"\x97 ")
    crlf = good.replace(b"\n", b"\r\n")
    bom = b"\xef\xbb\xbf" + good
    refused(verifier, lambda: verifier.client.post(latin), 400, "bad_segment")
    refused(verifier, lambda: verifier.client.post(crlf), 400, "bad_segment")
    refused(verifier, lambda: verifier.client.post(bom), 400, "damaged_segment")


def test_a_wrong_content_type(verifier: Verifier) -> None:
    _, good = next_segment(verifier)
    for kind in ("application/json", "", "application/zstd"):
        refused(verifier, lambda k=kind: verifier.client.post_raw(good, k), 415, "unsupported_type")  # type: ignore[misc]
    gzip = {"content_type": api.SEGMENT_TYPE, "content_encoding": "gzip"}
    refused(verifier, lambda: verifier.client.request("POST", api.SEGMENTS, good, **gzip), 415, "unsupported_type")


def edited(change: Callable[[dict[str, object]], object]) -> Callable[[bytes], bytes]:
    """A change of an entry as an object, written as JSON in sorted order."""

    def apply(line: bytes) -> bytes:
        entry = json.loads(line)
        change(entry)
        return json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()

    return apply


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(edited(lambda e: e.update(mono_us=1.5)), id="a float"),
        pytest.param(lambda line: line.replace(b'"v":1', b'"v":1.0'), id="an integer written as a float"),
        pytest.param(lambda line: line.replace(b'"v":1', b'"v":1,"v":1'), id="a key twice"),
        pytest.param(edited(lambda e: e.pop("boots")), id="a missing key"),
        pytest.param(edited(lambda e: e.update(extra=1)), id="an unknown key"),
        pytest.param(edited(lambda e: e.update(time_us=2**53)), id="an integer over 2^53-1"),
        pytest.param(edited(lambda e: e.update(time_us=10**400)), id="an integer of 400 digits"),
        pytest.param(lambda line: line.replace(b":", b": ", 1), id="a space"),
        pytest.param(lambda line: line.replace(b"heartbeat", b"heart\\u0062eat"), id="an escape"),
        pytest.param(lambda line: line.replace(b"heartbeat", b"unheard_of"), id="an unknown type"),
        pytest.param(lambda line: line.replace(b"heartbeat", b"heart\xffeat"), id="not UTF-8"),
        pytest.param(lambda line: b"[" * 60_000, id="nested too deeply"),
        pytest.param(lambda line: b"{}", id="an empty object"),
        pytest.param(edited(lambda e: e.update(prev="00" * 32)), id="a link to nowhere"),
        pytest.param(edited(lambda e: e.update(seq=7)), id="a wrong seq"),
        pytest.param(edited(lambda e: e.update(mono_us=0)), id="a monotonic clock that went back"),
    ],
)
def test_a_signed_entry_that_is_not_canonical_or_does_not_follow(
    verifier: Verifier, spoil: Callable[[bytes], bytes]
) -> None:
    """Row 7: the node signed it, so it is kept, and its log is closed; nothing of it is counted."""
    node = verifier.enrolled()
    line = spoil(node.copy().heartbeat())
    node.append_line(line)
    bad = node.segment()
    before = verifier.dump()

    answer = verifier.client.post(bad)

    assert (answer.status, answer.code) == (422, "invalid_entries")
    after = verifier.dump()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"log", "evidence", "finding", "tree_leaf", "tree_head"}
    assert len(after["tree_leaf"]) == len(before["tree_leaf"]) + 1


def with_note(segment: bytes, change: Callable[[bytes], bytes]) -> bytes:
    head, _, note = segment.partition(b"\n\n")
    return head + b"\n\n" + change(note)


def test_a_checkpoint_with_two_signatures_of_one_key(verifier: Verifier) -> None:
    _, good = next_segment(verifier)
    twice = with_note(good, lambda note: note + parse_note(note).signatures[0].to_bytes())
    refused(verifier, lambda: verifier.client.post(twice), 400, "bad_segment")


def test_a_checkpoint_with_a_further_signature(verifier: Verifier) -> None:
    _, good = next_segment(verifier)
    other = parse_note(Node.new().first().partition(b"\n\n")[2]).signatures[0]
    refused(verifier, lambda: verifier.client.post(with_note(good, lambda n: n + other.to_bytes())), 400, "bad_segment")


def test_a_checkpoint_signed_by_an_unknown_key_alone(verifier: Verifier) -> None:
    node = verifier.enrolled()
    stranger = node.copy()
    stranger.key = Node.new().key
    stranger.usage(1)
    refused(verifier, lambda: verifier.client.post(stranger.range(2, 3)), 403, "bad_signature")


def test_a_checkpoint_with_a_wrong_key_id(verifier: Verifier) -> None:
    _, good = next_segment(verifier)
    signature = parse_segment(good).note.signatures[0]
    wrong = type(signature)(signature.name, b"\0\0\0\0", signature.signature)
    bad = good.replace(signature.to_bytes(), wrong.to_bytes())
    refused(verifier, lambda: verifier.client.post(bad), 403, "bad_signature")


def test_a_checkpoint_with_an_extension_line(verifier: Verifier) -> None:
    node, good = next_segment(verifier)
    checkpoint = parse_segment(good).checkpoint
    text = checkpoint.to_text() + b"an extension\n"
    signature = parse_segment(good).note.signatures[0]
    signed = type(signature)(signature.name, signature.key_id, node.key.sign(text))
    bad = with_note(good, lambda _: text + b"\n" + signed.to_bytes())
    refused(verifier, lambda: verifier.client.post(bad), 400, "bad_segment")


def test_a_segment_of_another_deployment(verifier: Verifier) -> None:
    known = verifier.enrolled()
    foreign = Node.new("other.example.org")
    foreign.key = known.key
    foreign.name = type(foreign.name)(foreign.name.deployment, known.name.node_id, 1)
    refused(verifier, lambda: verifier.client.post(foreign.first()), 404, "unknown_log")


def test_a_flipped_bit_anywhere_in_the_entries_freezes_nothing(verifier: Verifier) -> None:
    """A proxy on the way damages entries under a valid checkpoint: that is not the node's doing."""
    node, good = next_segment(verifier)
    end = good.index(b"\n\n")
    before = verifier.dump()
    for at in range(0, end, max(end // 25, 1)):
        flipped = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
        answer = verifier.client.post(flipped)
        assert answer.status in (400, 409), (at, answer)
    assert verifier.dump() == before
    assert verifier.client.post(good).status == 200
    assert verifier.client.head(node).body.startswith(f"{node.origin}\n5\n".encode())


def test_an_older_fork(verifier: Verifier) -> None:
    node = verifier.enrolled(usage=5)
    for _ in range(3):
        assert verifier.client.post(node.segment(node.usage(4))).status == 200
    twin = node.copy()
    twin.lines[6:] = []
    twin.frontier = twin.frontier.__class__().extend(map(leaf_hash, twin.lines))
    twin.shutdown()
    evidence = twin.range(5, 7)

    answer = verifier.client.post(evidence)

    assert (answer.status, answer.code) == (422, "fork")
    assert len(verifier.dump()["evidence"]) == 1
    assert verifier.client.post(node.segment(node.usage(1))).code == "log_frozen"


def test_an_old_honest_prefix_in_one_piece_is_no_fork(verifier: Verifier) -> None:
    """Roots inside of stored segments are recomputed, so that an honest head of any old size is recognised."""
    node = verifier.enrolled(usage=5)
    assert verifier.client.post(node.segment(node.usage(6))).status == 200
    before = verifier.dump()
    for end in range(1, 14):
        answer = verifier.client.post(node.range(0, end))
        # Entries 0 … 6 are a stored segment, whose receipt is given again.
        assert answer.status == (200 if end == 7 else 409), (end, answer)
    assert verifier.dump() == before


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1/nothing", 404, "not_found"),
        ("DELETE", "/v1/nodes", 405, "method_not_allowed"),
        ("GET", "/v1/join", 405, "method_not_allowed"),
        ("PUT", "/v1/segments", 405, "method_not_allowed"),
        ("GET", "/log/tile/0/00", 404, "not_found"),
        ("GET", "/log/nothing", 404, "not_found"),
        ("GET", "/log/tile/0/000", 404, "not_found"),
        ("GET", "/v1/logs/zz/1/head", 404, "not_found"),
        ("GET", f"/v1/logs/{'0' * 32}/x/head", 404, "not_found"),
        ("GET", f"/v1/logs/{'0' * 32}/{'9' * 15}/head", 404, "unknown_log"),
        ("GET", "/docs", 404, "not_found"),
    ],
)
def test_routes_that_are_not_there(verifier: Verifier, method: str, path: str, status: int, code: str) -> None:
    refused(verifier, lambda: verifier.client.request(method, path), status, code)


def test_an_unexpected_error_says_nothing_of_itself(verifier: Verifier, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> object:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr("keyturn_verifier.ingest.decide", fail)
    node = verifier.joined()
    answer = refused(verifier, lambda: verifier.client.post(node.first()), 500, "internal")
    assert b"secret" not in answer.body
    assert b"ZeroDivision" not in answer.body


@pytest.mark.parametrize("path", ["/v1/segments", "/v1/join"])
def test_a_client_that_leaves_early_leaves_no_trace_in_the_log(
    verifier: Verifier, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    address = urlsplit(verifier.client.url)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 9\r\n\r\n"
    with socket.create_connection((address.hostname or "", address.port or 0)) as connection:
        connection.sendall(head.encode() + b"abc")
        while not verifier.service.ingest.intake.budget.used:
            time.sleep(0.005)
    while verifier.service.ingest.intake.budget.used:
        time.sleep(0.005)
    assert verifier.client.get("/healthz").status == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
