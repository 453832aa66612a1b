"""A verifier in memory that decides with the real rules, and the other ends of the agent's ports."""

import http.server
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keyturn_agent.enrolment import Pinned, parse_trust
from keyturn_agent.errors import UnreachableError
from keyturn_agent.ports import Answer, Moment
from keyturn_agent.spool import decompress
from keyturn_protocol.api import JoinRequest, JoinResponse, ProblemCode, Trust, problem
from keyturn_protocol.canonical import decode, encode
from keyturn_protocol.checkpoint import Checkpoint
from keyturn_protocol.cosignature import (
    Cosignature,
    cosignature_line,
    ed25519_message,
    parse_receipt,
    verify_cosignature,
)
from keyturn_protocol.entries import Entry, parse_entry
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.ids import Deployment, Hash, LogName, deployment, log_origin, parse_origin, receipt_name
from keyturn_protocol.keys import SignatureType, VerifierKey, parse_vkey
from keyturn_protocol.merkle import root_of
from keyturn_protocol.receive import (
    Accepted,
    Behind,
    Fork,
    Head,
    History,
    Invalid,
    Refused,
    Stored,
    StoredSegment,
    decide,
    new_head,
)
from keyturn_protocol.segment import parse_segment

DEPLOYMENT = deployment("test.example.org")
TOKEN = "join-me"


def raw(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


@dataclass
class Log:
    head: Head
    lines: list[bytes] = field(default_factory=list)
    hashes: list[Hash] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    segments: dict[tuple[int, int], StoredSegment] = field(default_factory=dict)


class FakeVerifier:
    """The `Verifier` port over `keyturn_protocol.receive.decide`; nothing is durable, nothing is batched.

    `interfere` may replace any answer, or raise; it is given the name of the call and the answer.
    """

    deployment: Deployment = DEPLOYMENT

    def __init__(self, log_key: Ed25519PrivateKey | None = None, receipt_key: Ed25519PrivateKey | None = None) -> None:
        self.log_key = Ed25519PrivateKey.generate() if log_key is None else log_key
        self.receipt_key = Ed25519PrivateKey.generate() if receipt_key is None else receipt_key
        self.logs: dict[str, Log] = {}
        self.joined: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.said: list[bytes] = []
        self.shown: bytes | None = None
        """The receipt that came with the last segment."""
        self.bundle: bytes | None = None
        """What it serves as roots and policies."""
        self.interfere: Callable[[str, Answer], Answer] = lambda _, answer: answer
        self.organisation = "acme"
        """For which hosts join."""
        self.lock = threading.Lock()
        trust = Trust(
            v=1,
            deployment=self.deployment,
            log_vkey=str(VerifierKey(log_origin(self.deployment), SignatureType.ED25519, raw(self.log_key))),
            receipt_vkey=str(self.receipt_vkey),
        )
        self.pinned: Pinned = parse_trust(encode(trust), "trust.json")

    @property
    def receipt_vkey(self) -> VerifierKey:
        return VerifierKey(receipt_name(self.deployment), SignatureType.COSIGNATURE_ED25519, raw(self.receipt_key))

    def posted(self, path: str, body: bytes) -> Answer:
        """POST, by its path."""
        return self.join(body) if path == "/v1/join" else self.send_segment(body)

    def got(self, path: str) -> Answer:
        """GET, by its path."""
        if path == "/log/checkpoint":
            return self.log_checkpoint()
        _, _, _, node, incarnation, _ = path.split("/")
        return self.head(f"{self.deployment}/node/{node}/{incarnation}")

    def join(self, request: bytes) -> Answer:
        asked: JoinRequest = decode(request, JoinRequest)
        key = parse_vkey(asked.vkey)
        if asked.token != TOKEN:
            return self._answer("join", refusal(ProblemCode.TOKEN_UNKNOWN))
        if key.name in self.logs:
            return self._answer("join", refusal(ProblemCode.ALREADY_ENROLLED))
        self.joined[key.name] = key.public_key
        response = JoinResponse(origin=key.name, organisation=self.organisation, site="north")
        return self._answer("join", Answer(200, "application/json", None, encode(response)))

    def state(self, statement: bytes) -> Answer:
        self.said.append(statement)
        return self._answer("statement", Answer(200, "application/json", None, b"{}"))

    def send_segment(self, frame: bytes, receipt: bytes | None = None) -> Answer:
        with self.lock:
            self.shown = receipt
            return self._answer("segment", self._receive(decompress(frame)))

    def head(self, origin: str) -> Answer:
        log = self.logs.get(origin)
        cosigned = None if log is None else log.head.cosigned()
        if cosigned is None:
            return self._answer("head", refusal(ProblemCode.UNKNOWN_LOG))
        return self._answer("head", Answer(200, "text/plain", None, cosigned))

    def log_checkpoint(self) -> Answer:
        key = self.pinned.log_key
        head = Checkpoint(key.name, len(self.calls) + 1, Hash(sha256(b"any").digest()))
        note = head.signed(key, self.log_key.sign(head.to_text()))
        return self._answer("checkpoint", Answer(200, "text/plain", None, note.to_bytes()))

    def authority(self) -> Answer:
        if self.bundle is None:
            return self._answer("authority", refusal(ProblemCode.NOT_FOUND))
        return self._answer("authority", Answer(200, "application/json", None, self.bundle))

    def entries(self, incarnation: int = 1) -> list[Entry]:
        (log,) = (log for origin, log in self.logs.items() if parse_origin(origin).incarnation == incarnation)
        return log.entries

    def receipt(self, text: bytes, time_s: int = 1_790_000_000) -> bytes:
        signature = self.receipt_key.sign(ed25519_message(text, time_s))
        return cosignature_line(self.receipt_vkey, Cosignature(time_s, signature)).to_bytes()

    def _shown(self, text: bytes) -> bytes | None:
        """The receipt that was shown, if it is ours for this checkpoint."""
        try:
            verify_cosignature(text, parse_receipt(self.shown or b""), self.receipt_vkey)
        except ProtocolError:
            return None
        return self.shown

    def _answer(self, call: str, answer: Answer) -> Answer:
        self.calls.append(call)
        return self.interfere(call, answer)

    def _key_of(self, name: LogName) -> bytes | None:
        """The key of the log before, unless that one ended by naming another."""
        keys = {parse_origin(origin).incarnation: log.head for origin, log in self.logs.items()
                if parse_origin(origin).node_id == name.node_id}  # fmt: skip
        if name.incarnation in keys:
            return keys[name.incarnation].public_key
        if keys and max(keys) > name.incarnation:
            return None
        if keys:
            head = keys[max(keys)]
            return head.public_key if head.chain.next_key is None else bytes.fromhex(head.chain.next_key)
        for origin, key in self.joined.items():
            if parse_origin(origin).node_id == name.node_id:
                return key
        return None

    def _receive(self, data: bytes) -> Answer:
        segment = parse_segment(data)
        key = self._key_of(segment.name)
        log = self.logs.get(segment.origin)
        if key is None or (log is None and segment.start and segment.name.incarnation == 1):
            return refusal(ProblemCode.UNKNOWN_LOG)
        if log is None:
            log = Log(new_head(segment.name, key))
        history = History(lambda start, end: log.segments.get((start, end)), lambda size: root_of(log.hashes[:size]))
        match decide(log.head, segment, data, history):
            case Accepted(head=head):
                receipt = self._shown(segment.note.text) or self.receipt(segment.note.text)
                log.head = Head(
                    head.name, head.public_key, head.frontier, head.chain, head.fold, head.note, receipt, None
                )
                log.lines += segment.lines
                log.hashes += segment.leaf_hashes()
                log.entries += map(parse_entry, segment.lines)
                log.segments[segment.start, segment.end] = StoredSegment(sha256(data).digest(), receipt)
                self.logs[segment.origin] = log
                return Answer(200, "text/plain", None, receipt)
            case Stored(receipt=receipt):
                return Answer(200, "text/plain", None, receipt)
            case Behind(checkpoint=checkpoint):
                return refusal(ProblemCode.BEHIND, None if checkpoint is None else checkpoint.decode())
            case Fork():
                return refusal(ProblemCode.FORK)
            case Invalid(seq=seq, detail=detail):
                raise AssertionError(f"the agent wrote an entry that is refused: {seq}: {detail}")
            case Refused(code=code):
                return refusal(code)


def refusal(code: ProblemCode, checkpoint: str | None = None, retry_after_s: int | None = None) -> Answer:
    body = problem(code, f"{code} in a test", checkpoint)
    return Answer(body.status, "application/problem+json", retry_after_s, encode(body))


def unreachable(call: str, answer: Answer) -> Answer:
    raise UnreachableError("unreachable", "no network in this test")


class NoStop:
    """A `Stop` that never comes."""

    requested = False

    def wait(self, seconds: float) -> None:
        raise AssertionError("simulated time doesn't wait")


class StopAt:
    """A `Stop` that comes once a simulated clock has passed a moment."""

    def __init__(self, now: Callable[[], Moment], mono_us: int) -> None:
        self._now, self._mono_us = now, mono_us

    @property
    def requested(self) -> bool:
        return self._now().mono_us >= self._mono_us

    def wait(self, seconds: float) -> None:
        raise AssertionError("simulated time doesn't wait")


class Even:
    """A `Random` without randomness: no jitter, and ids that count."""

    def __init__(self) -> None:
        self._count = 0

    def uuid4(self) -> str:
        self._count += 1
        return f"00000000-0000-4000-8000-{self._count:012x}"

    def fraction_ppm(self) -> int:
        return 0


@contextmanager
def over_http(verifier: FakeVerifier) -> Any:
    """The fake behind a real socket on 127.0.0.1, for the command line; yields its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._reply(verifier.posted(self.path, body))

        def do_GET(self) -> None:
            self._reply(verifier.got(self.path))

        def _reply(self, answer: Answer) -> None:
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
            if answer.retry_after_s is not None:
                self.send_header("Retry-After", str(answer.retry_after_s))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
