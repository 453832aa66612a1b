"""A verifier that refuses what was signed, or says that it took it and didn't: who signed notices, and still has it."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from keyturn_protocol.api import PROBLEM_TYPE, STATEMENTS, ProblemCode, problem
from keyturn_protocol.api_read import StatementItem
from keyturn_protocol.api_switch import AUTHORITY, permit_path
from keyturn_protocol.canonical import encode_record
from keyturn_protocol.dsse import Envelope, parse_envelope
from tests.cli.conftest import Cli
from tests.cli.switch_desk import Desk

Answer = tuple[int, bytes]


class Front:
    """Serves a desk's bundles, and answers to statements as a test says."""

    def __init__(self, desk: Desk, url: str) -> None:
        self.desk, self.url = desk, url
        self.answer: Callable[[Envelope], Answer] = self.honest

    def get(self, path: str) -> Answer:
        bundles = {permit_path(run): run for run in self.desk.switch.runs} | {AUTHORITY: None}
        return (200, self.desk.bundle(bundles[path])) if path in bundles else (404, b"")

    def honest(self, envelope: Envelope) -> Answer:
        answer = self.claims(envelope)
        self.desk.take(envelope)
        return answer

    def claims(self, envelope: Envelope, **changes: str) -> Answer:
        """That it took it as the next leaf, and nothing more."""
        said = {"kind": envelope.kind, "sha256": envelope.hash.hex()} | changes
        item = StatementItem(index=self.desk.switch.index + 1, time_us=self.desk.now_us, **said)
        return 200, encode_record(item)

    def another(self, envelope: Envelope) -> Answer:
        return self.claims(envelope, sha256="0" * 64)

    def another_kind(self, envelope: Envelope) -> Answer:
        return self.claims(envelope, kind="resume")

    @staticmethod
    def busy(envelope: Envelope) -> Answer:
        return 503, encode_record(problem(ProblemCode.OVERLOADED, "come again"))

    @staticmethod
    def refuses(envelope: Envelope) -> Answer:
        return 422, encode_record(problem(ProblemCode.STATEMENT_REFUSED, "over: the run is denied"))


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(*made.get(self.path))

        def do_POST(self) -> None:
            assert self.path == STATEMENTS
            body = self.rfile.read(int(self.headers["content-length"]))
            self.reply(*made.answer(parse_envelope(body)))

        def reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json" if status == 200 else PROBLEM_TYPE)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Front(Desk(tmp_path), f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


Suspend = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(front: Front) -> str:
    return front.desk.approved()


@pytest.fixture
def suspend(front: Front, run: str, keyturn: Cli) -> Suspend:
    def line(*more: object) -> tuple[int, str, str]:
        where = ("--verifier", front.url, "--root", front.desk.pin)
        return keyturn(
            "suspend", run, *where, "--key", front.desk.key("office/ivy"), "--reason", "x", "--expect", run, *more
        )

    return line


def kept(err: str) -> Path:
    """The file that a hint names."""
    found = re.search(r"keyturn statement send (\S+\.json)", err)
    assert found is not None, err
    return Path(found[1])


@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [
        (Front.busy, 3, "come again (503 overloaded)"),
        (Front.refuses, 1, "over: the run is denied (422 statement_refused)"),
    ],
)
def test_a_suspension_that_is_refused_is_kept_and_can_be_sent_again(
    front: Front, suspend: Suspend, run: str, keyturn: Cli, answer: Callable[[Envelope], Answer], code: int, says: str
) -> None:
    front.answer = answer
    got, _, err = suspend()
    assert (got, says in err) == (code, True), err
    # Nothing was promised: the bundle without it is no contradiction.
    assert keyturn("show", run, "--verifier", front.url, "--root", front.desk.pin)[0] == 0
    front.answer = front.honest
    got, _, err = keyturn("statement", "send", kept(err), "--verifier", front.url)
    assert (got, "is leaf" in err) == (0, True), err
    assert front.desk.state(run) == "suspended"


@pytest.mark.parametrize(
    ("lie", "other"), [("another", "suspend " + "0" * 64), ("another_kind", "resume ")], ids=["hash", "kind"]
)
def test_a_suspension_that_is_answered_with_another_statement(
    front: Front, suspend: Suspend, run: str, lie: str, other: str
) -> None:
    front.answer = getattr(front, lie)
    code, out, err = suspend("--json")
    path = kept(err)
    assert (code, out) == (1, "")
    assert "answered that it took another statement: take it as not taken" in err
    assert f"(expected suspend {path.stem}, got {other}" in err
    assert parse_envelope(path.read_bytes()).hash.hex() == path.stem


@pytest.mark.parametrize("later", [False, True], ids=["the end is left out", "something else is at its leaf"])
@pytest.mark.parametrize("way", ["suspend", "statement send"])
def test_a_suspension_that_was_taken_and_is_served_no_more(
    front: Front, suspend: Suspend, run: str, keyturn: Cli, later: bool, way: str, tmp_path: Path
) -> None:
    front.answer = front.claims
    if way == "suspend":
        code, out, err = suspend("--json")
    else:
        assert suspend("--out", tmp_path / "signed.json")[0] == 0
        code, out, err = keyturn("statement", "send", tmp_path / "signed.json", "--verifier", front.url, "--json")
    assert code == 0, err
    taken = json.loads(out)
    if later:
        front.desk.suspend(run, "operator-b/eve")
    for command in ("show", "diff"):
        code, out, err = keyturn(command, run, "--verifier", front.url, "--root", front.desk.pin)
        assert (code, out) == (1, "")
        assert f"it lacks {taken['sha256']}, which was sent from here and answered to be leaf {taken['index']}" in err
    assert suspend()[0] == 1
    code, _, err = keyturn("verify-bundle", front.desk.file(run), "--root", front.desk.pin)
    assert (code, "if it is an older copy, get a new one" in err) == (1, not later), err
    if not later:
        # Taken after all, at that leaf: all is as it was said.
        front.desk.sent(kept(keyturn("show", run, "--verifier", front.url, "--root", front.desk.pin)[2]))
        assert keyturn("show", run, "--verifier", front.url, "--root", front.desk.pin)[0] == 0


def test_what_was_sent_about_one_run_is_missed_in_no_other(
    front: Front, suspend: Suspend, keyturn: Cli, run: str
) -> None:
    front.answer = front.claims
    other = front.desk.say(front.desk.request(nonce="5" * 64), "lab-a/ada")
    assert suspend()[0] == 0
    for what, code in ((run, 1), (other, 0)):
        assert keyturn("show", what, "--verifier", front.url, "--root", front.desk.pin)[0] == code


def test_a_folder_that_cannot_be_written_is_said_and_stops_no_suspension(
    front: Front, suspend: Suspend, run: str, tmp_path: Path
) -> None:
    (tmp_path / "seen-here").write_text("no folder")
    code, _, err = suspend()
    assert (code, "the statement isn't kept here" in err) == (0, True), err
    assert front.desk.state(run) == "suspended"
    front.answer = front.busy
    code, _, err = suspend()
    assert (code, "sign it again with --out FILE" in err) == (3, True), err
