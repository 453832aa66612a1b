"""Messages to receivers over real HTTP: signed, sent again until they are taken, given up in the end; nobody waits."""

import base64
import hmac
import json
import re
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from keyturn_protocol.switch import log_statement
from keyturn_verifier import config, notify, webhooks
from keyturn_verifier.config import Webhook
from keyturn_verifier.db.engine import reading, writing
from keyturn_verifier.errors import UsageError, VerifierError
from keyturn_verifier.switch_events import events
from tests.support.assembly import Assembly
from tests.support.office import Office
from tests.support.parties import envelope
from tests.support.paths import REPO
from tests.support.verifier import DEPLOYMENT, Verifier, call

SECRET = b"a secret of twenty-four bytes or more"
DAY_US = 86_400_000_000
NOW_US = 1_790_000_000_000_000


class Receiver:
    """Takes what is posted, and answers with the statuses that it was given, then with 204."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.arrived = threading.Semaphore(0)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.got.append(({k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(outer.answers.pop(0) if outer.answers else 204)
                self.send_header("location", "/elsewhere")
                self.end_headers()
                outer.arrived.release()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def hook(folder: Path, url: str, name: str = "hook.secret", secret: bytes = SECRET) -> Webhook:
    file = folder / name
    file.write_text("whsec_" + base64.b64encode(secret).decode() + "\n")
    file.chmod(0o600)
    return Webhook(url=url, secret_file=file)


def sender(verifier: Verifier, now: list[int], *hooks: Webhook, days: int = 3) -> webhooks.Webhooks:
    return webhooks.Webhooks(verifier.engine, hooks, days, lambda: now[0])


def queue(verifier: Verifier, *hooks: Webhook, now_us: int = NOW_US, **data: int) -> bytes:
    body = notify.event("statement.request", now_us, **data)
    with writing(verifier.engine) as connection:
        notify.queue(connection, hooks, [body], now_us)
    return body


def waiting(verifier: Verifier) -> int:
    with reading(verifier.engine) as connection:
        return notify.waiting(connection)


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """An example made by another implementation."""
    secret = base64.b64decode("plJ3nmyCDGBKInavdOK15jsl")
    body = b'{"event_type":"ping","data":{"success":true}}'
    got = webhooks.signature(secret, "msg_loFOjxBNrRLzqYUf", 1731705121, body)
    assert got == "v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0="


def test_a_message_is_sent_again_until_it_is_taken(verifier: Verifier, receiver: Receiver, tmp_path: Path) -> None:
    """Refused, redirected, then taken: three tries under one id, each later than the one before."""
    now, to = [NOW_US], hook(tmp_path, receiver.url)
    sending = sender(verifier, now, to)
    body = queue(verifier, to, index=7)
    receiver.answers = [500, 302]
    moments = []
    while waiting(verifier):
        before = len(receiver.got)
        sending.step(to.url)
        moments += [now[0]] * (len(receiver.got) - before)
        now[0] += 1_000_000
    assert [b for _, b in receiver.got] == [body] * 3
    assert moments[1] - moments[0] >= notify.FIRST_US
    assert moments[2] - moments[1] >= 2 * notify.FIRST_US
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    for headers, sent in receiver.got:
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + sent
        wanted = "v1," + base64.b64encode(hmac.digest(SECRET, signed, sha256)).decode()
        assert headers["webhook-signature"] == wanted
    assert json.loads(body) == {
        "type": "statement.request",
        "timestamp": "2026-09-21T14:13:20.000000Z",
        "data": {"index": 7},
    }


def test_a_dead_receiver_holds_up_no_other_and_is_given_up(
    verifier: Verifier, receiver: Receiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dead = hook(tmp_path, "http://127.0.0.1:9/s3cret-path", "dead.secret")
    good, now = hook(tmp_path, receiver.url), [NOW_US]
    sending = sender(verifier, now, dead, good, days=3)
    queue(verifier, dead, good)
    tries = 0
    while now[0] < NOW_US + 3 * DAY_US:
        for url in (dead.url, good.url):
            while sending.step(url):
                tries += url == dead.url
        now[0] += 1_800_000_000
    assert len(receiver.got) == 1
    assert 24 <= tries <= 3 * 24 + 12
    assert waiting(verifier) == 1
    now[0] += 3_600_000_000
    sender(verifier, now, good).step(good.url)
    assert waiting(verifier) == 0
    assert "is given up" in caplog.text
    assert "s3cret" not in caplog.text


def test_two_replicas_send_one_message_once(verifier: Verifier, receiver: Receiver, tmp_path: Path) -> None:
    to = hook(tmp_path, receiver.url)
    both = [sender(verifier, [NOW_US], to) for _ in range(2)]
    for index in range(20):
        queue(verifier, to, index=index)
    threads = [threading.Thread(target=lambda s=s: [None for _ in iter(lambda: s.step(to.url), False)]) for s in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert waiting(verifier) == 0
    assert sorted(json.loads(body)["data"]["index"] for _, body in receiver.got) == list(range(20))


def test_a_replica_that_was_killed_while_it_sent_loses_nothing(
    verifier: Verifier, receiver: Receiver, tmp_path: Path
) -> None:
    now, to = [NOW_US], hook(tmp_path, receiver.url)
    queue(verifier, to)
    with reading(verifier.engine) as connection:
        message = notify.due(connection, to.url, NOW_US)
    assert message is not None
    with writing(verifier.engine) as connection:
        assert notify.claim(connection, message, NOW_US)
    sending = sender(verifier, now, to)
    assert not sending.step(to.url)
    now[0] += notify.CLAIM_US
    sending.step(to.url)
    assert (waiting(verifier), len(receiver.got)) == (0, 1)


def test_the_server_sends_from_threads_of_its_own(tmp_path: Path, receiver: Receiver) -> None:
    assert call("init", "--state", tmp_path / "state", "--deployment", DEPLOYMENT).returncode == 0
    to = hook(tmp_path / "state", receiver.url)
    with (tmp_path / "state" / "verifier.toml").open("a") as file:
        file.write(f'[[webhook]]\nurl = "{to.url}"\nsecret_file = "hook.secret"\n')
    with Verifier(tmp_path) as verifier:
        assert verifier.settings.webhooks == (to,)
        queue(verifier, to, now_us=verifier.clock())
        verifier.service.webhooks.woken()
        assert receiver.arrived.acquire(timeout=30)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('url = "http://example.org/x"\nsecret_file = "s"', "http only to this machine"),
        ('url = "ftp://example.org/x"\nsecret_file = "s"', "must be an https URL"),
        ('url = "https://"\nsecret_file = "s"', "must be an https URL"),
        ('url = "https://example.org:99999/x"\nsecret_file = "s"', "must be an https URL"),
        ('url = "https://exa\u0301mple.org/x"\nsecret_file = "s"', "must be an https URL"),
        ('url = "https://example.org/x"', "must be strings"),
        ('url = "https://example.org/x"\nsecret_file = "s"\ntoken = "t"', "webhook.token: no such key"),
        ('url = "https://a/x"\nsecret_file = "s"\n[[webhook]]\nurl = "https://a/x"\nsecret_file = "s"', "listed twice"),
    ],
)
def test_a_hook_that_is_none_is_named(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "verifier.toml").write_text(f'deployment = "{DEPLOYMENT}"\n[[webhook]]\n{text}\n')
    with pytest.raises((VerifierError, UsageError), match=why):
        config.load(tmp_path)


def test_a_secret_that_is_none_is_refused_at_the_start(tmp_path: Path) -> None:
    for content, mode, why in (
        ("whsec_" + base64.b64encode(SECRET).decode(), 0o644, "others can read"),
        (base64.b64encode(SECRET).decode(), 0o600, "no webhook's secret"),
        ("whsec_AAAA", 0o600, "no webhook's secret"),
        ("whsec_!", 0o600, "no webhook's secret"),
    ):
        file = tmp_path / "secret"
        file.write_text(content)
        file.chmod(mode)
        with pytest.raises(VerifierError, match=why):
            webhooks.load_secret(Webhook(url="https://example.org", secret_file=file))
    with pytest.raises(VerifierError, match="no webhook's secret"):
        webhooks.load_secret(Webhook(url="https://example.org", secret_file=tmp_path / "none"))


def test_each_statement_and_each_new_state_of_a_run_is_a_message(tmp_path: Path, receiver: Receiver) -> None:
    """From the first root on, through the server: what people say is taken with a hook as without one."""
    assert call("init", "--state", tmp_path / "state", "--deployment", DEPLOYMENT).returncode == 0
    to = hook(tmp_path / "state", receiver.url)
    with (tmp_path / "state" / "verifier.toml").open("a") as file:
        file.write(f'[[webhook]]\nurl = "{to.url}"\nsecret_file = "hook.secret"\n')
    with Verifier(tmp_path) as verifier:
        office = Office.opened(verifier)
        office.suspend(office.approved())
        office.decide(office.request(), "office/ivy", verdict="veto")
        for _ in SAID:
            assert receiver.arrived.acquire(timeout=30)
        assert waiting(verifier) <= 1  # the last one is taken, and perhaps not yet forgotten
    got = sorted((json.loads(body) for _, body in receiver.got), key=lambda one: one["data"]["index"])
    assert [one["type"] for one in got if one["type"].startswith("statement.")] == [f"statement.{k}" for k in SAID[:9]]
    assert [one["type"] for one in got if one["type"].startswith("run.")] == [f"run.{to}" for to in SAID[9:]]


SAID = (
    *("root", "policy", "request", "decision", "decision", "decision", "suspend", "request", "decision"),
    *("pending", "approved", "suspended", "pending", "denied"),
)


def test_the_page_shows_the_messages_of_a_veto() -> None:
    page = (REPO / "docs" / "operations-verifier.md").read_text()
    (block,) = re.findall(r"```json\n(.*?)```", page, flags=re.DOTALL)
    shown = [json.loads(line) for line in block.splitlines()]
    hall = Assembly()
    run = hall.say(hall.request(), "lab-a/ada")
    said = hall.decision(run, "office/ivy", "veto")
    logged = log_statement(
        envelope(said, "office/ivy"), said, hall.switch.index + 1, hall.now_us, hall.switch.authority
    )
    sent = [json.loads(one) for one in events(hall.switch, logged, hall.switch.decide(logged), run)]
    for one, other in zip(shown, sent, strict=True):
        assert (one["type"], one["data"].keys()) == (other["type"], other["data"].keys())
        for name in ("kind", "person", "label", "state"):
            assert one["data"].get(name) == other["data"].get(name)
