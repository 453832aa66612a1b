"""What networks, proxies and servers in between do to uploads: the host sends again until it has a true receipt.

Each fault is done to the first uploads of a run through a real proxy between the real client and a real verifier. What
must hold is the same for all: nothing but a receipt by the pinned key for exactly what was sent is kept, nothing is
stored twice, no log is left because of somebody else's answer.
"""

import random
import threading
import time
from pathlib import Path

import pytest

from keyturn_agent.status import read_status
from keyturn_protocol.api import ProblemCode, problem
from keyturn_protocol.canonical import encode_record
from keyturn_protocol.findings import FindingCode
from tests.faults.after import check, receipts
from tests.faults.proxy import Cut, Exchange, Fault, Proxy, answer
from tests.faults.site import Agent
from tests.faults.table import LONG, record
from tests.support.verifier import Verifier

TIMEOUT_S = 1
HTML = b"<html><body><h1>502 Bad Gateway</h1></body></html>"


def split(whole: bytes) -> tuple[bytes, bytes]:
    head, _, body = whole.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", body


# -- requests


def duplicated(x: Exchange) -> None:
    first, second = x.forward(), x.forward()
    assert split(first)[1] == split(second)[1], "one receipt, however often it is asked for"
    x.reply(second)


def duplicated_at_once(x: Exchange) -> None:
    """The second copy is sent before the first is answered."""
    other = threading.Thread(target=x.forward)
    other.start()
    x.forward()
    other.join()
    x.reply(x.answers[0])


def delayed(x: Exchange) -> None:
    """It arrives once the client has given up, and perhaps tried again."""
    x.gone(TIMEOUT_S * 3)
    x.forward()


def reordered(x: Exchange) -> None:
    """It is kept back and arrives after what is sent next."""
    x.proxy.kept.append(x.request)
    x.proxy.faults.insert(0, overtaking)
    raise Cut


def overtaking(x: Exchange) -> None:
    x.reply(x.forward())
    other = Exchange(b"", b"", x.client, x.proxy)
    assert other.forward(x.proxy.kept.pop())


def request_cut(x: Exchange) -> None:
    x.forward(x.request[: -(len(x.body) // 2)])
    raise Cut


def request_cut_at_the_last_byte(x: Exchange) -> None:
    x.forward(x.request[:-1])
    raise Cut


def request_damaged(x: Exchange) -> None:
    damaged = bytearray(x.request)
    damaged[-(len(x.body) // 2)] ^= 0x40
    x.reply(x.forward(bytes(damaged)))


# -- answers


def answer_lost(x: Exchange) -> None:
    # 409 where one was lost before: what is stored by now.
    assert x.forward()[9:12] in (b"200", b"409")
    raise Cut


def answer_cut(x: Exchange) -> None:
    whole = x.forward()
    x.reply(whole[: len(split(whole)[0]) + 20])
    raise Cut


def answer_cut_in_its_head(x: Exchange) -> None:
    x.reply(x.forward()[:25])
    raise Cut


def answer_cut_and_called_whole(x: Exchange) -> None:
    """Half a receipt with the length of half a receipt."""
    body = split(x.forward())[1]
    x.reply(answer(200, body[: len(body) // 2], kind="text/plain"))


def answer_damaged(x: Exchange) -> None:
    head, body = split(x.forward())
    x.reply(head + body[:60] + bytes([body[60] ^ 1]) + body[61:])


def garbage(x: Exchange) -> None:
    x.reply(random.Random(7).randbytes(4000))


def bad_chunks(x: Exchange) -> None:
    x.reply(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nnot a chunk\r\n")


def nothing_at_all(x: Exchange) -> None:
    x.reply(answer(200, b""))


def empty_204(x: Exchange) -> None:
    x.reply(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")


def html_with_200(x: Exchange) -> None:
    x.reply(answer(200, b"<html>please log in to the guest network</html>"))


def another_size(x: Exchange) -> None:
    """The receipt of the answer before: connections mixed up by something in between."""
    whole = x.forward()
    kept, x.proxy.kept = x.proxy.kept, [whole]
    if not kept:
        x.proxy.faults.insert(0, another_size)
    x.reply(kept[0] if kept else answer(502, HTML))


def another_log(x: Exchange) -> None:
    x.reply(answer(200, OTHERS["log"], kind="text/plain; charset=utf-8"))


def another_verifier(x: Exchange) -> None:
    x.reply(answer(200, OTHERS["verifier"], kind="text/plain; charset=utf-8"))


def two_receipts(x: Exchange) -> None:
    body = split(x.forward())[1]
    x.reply(answer(200, body + body, kind="text/plain"))


def behind_another_log(x: Exchange) -> None:
    x.reply(of(ProblemCode.BEHIND, OTHERS["head"].decode()))


def behind_nonsense(x: Exchange) -> None:
    x.reply(of(ProblemCode.BEHIND, "no note at all"))


def problem_of_another_status(x: Exchange) -> None:
    body = encode_record(problem(ProblemCode.FORK, "said by somebody", None))
    x.reply(answer(403, body, kind="application/problem+json"))


def huge(x: Exchange) -> None:
    x.reply(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100000000\r\n\r\n")
    for _ in range(100):
        x.reply(b"x" * 1_000_000)


def huge_head(x: Exchange) -> None:
    x.reply(b"HTTP/1.1 200 OK\r\n" + b"X-Filler: %s\r\n" % (b"y" * 60_000) * 200)


def drip(x: Exchange) -> None:
    x.reply(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 500\r\n\r\n")
    for _ in range(60):
        x.reply(b"-")
        time.sleep(TIMEOUT_S / 4)


def never(x: Exchange) -> None:
    x.gone(TIMEOUT_S * 4)


def gateway(status: int, *headers: str) -> Fault:
    return lambda x: x.reply(answer(status, HTML, *headers))


def redirect(status: int) -> Fault:
    """To a place that must never see what was sent."""

    def fault(x: Exchange) -> None:
        x.reply(answer(status, HTML, f"Location: {x.proxy.url}/elsewhere"))

    return fault


def of(code: ProblemCode, checkpoint: str | None = None) -> bytes:
    body = problem(code, "said by somebody", checkpoint)
    return answer(body.status, encode_record(body), kind="application/problem+json")


def wrong_type(x: Exchange) -> None:
    """A true receipt is one whatever it is called."""
    x.reply(answer(200, split(x.forward())[1], kind="application/octet-stream"))


OTHERS: dict[str, bytes] = {}
"""What others were given by verifiers: filled by the fixture."""

FAULTS: dict[str, Fault] = {
    "request sent twice": duplicated,
    "request sent twice at once": duplicated_at_once,
    "request delayed beyond the time-out": delayed,
    "requests reordered": reordered,
    "request cut in the middle": request_cut,
    "request cut before its last byte": request_cut_at_the_last_byte,
    "request with a flipped bit": request_damaged,
    "answer lost after the commit": answer_lost,
    "answer cut in the middle": answer_cut,
    "answer cut in its head": answer_cut_in_its_head,
    "half an answer that calls itself whole": answer_cut_and_called_whole,
    "answer with a flipped bit": answer_damaged,
    "answer: random bytes": garbage,
    "answer: broken chunks": bad_chunks,
    "answer: 200 without a body": nothing_at_all,
    "answer: 204": empty_204,
    "answer: 200 with a login page": html_with_200,
    "answer: receipt for another size": another_size,
    "answer: receipt for another log": another_log,
    "answer: receipt by another verifier": another_verifier,
    "answer: the receipt twice": two_receipts,
    "answer: 409 with another log's head": behind_another_log,
    "answer: 409 with nonsense": behind_nonsense,
    "answer: a problem under another's status": problem_of_another_status,
    "answer: 100 MB": huge,
    "answer: 12 MB of headers": huge_head,
    "answer: a byte now and then": drip,
    "answer: none": never,
    "answer: 500": gateway(500),
    "answer: 502 with a page": gateway(502),
    "answer: 504 with a page": gateway(504),
    "answer: 429 without Retry-After": gateway(429),
    "answer: 429 with Retry-After": gateway(429, "Retry-After: 1"),
    "answer: 503 without Retry-After": gateway(503),
    "answer: 503, Retry-After in a century": gateway(503, "Retry-After: 999999999"),
    "answer: 503, Retry-After nonsense": gateway(503, "Retry-After: -1, soon"),
    "answer: 301": redirect(301),
    "answer: 302": redirect(302),
    "answer: 307": redirect(307),
    "answer: 308": redirect(308),
    "answer: 403 with a page": gateway(403),
    "answer: 407": gateway(407, 'Proxy-Authenticate: Basic realm="x"'),
    "answer: true receipt, another type": wrong_type,
}
SLOW = {"answer: a byte now and then", "answer: none", "request delayed beyond the time-out"}
DAMAGED = "request with a flipped bit"
QUICK = [name for name in FAULTS if name not in SLOW]


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Verifier:  # type: ignore[misc]
    """A verifier, and what it and another one said to others."""
    folder = tmp_path_factory.mktemp("site")
    with Verifier(folder / "one") as verifier, Verifier(folder / "two") as other:
        for name, place in (("log", verifier), ("verifier", other)):
            node = place.joined()
            OTHERS[name] = place.client.post(node.first()).body
            if place is verifier:
                OTHERS["head"] = place.client.head(node).body
        yield verifier


def passes_through(site: Verifier, folder: Path, names: list[str]) -> None:
    """Every fault, one upload each, in one run of one host."""
    host = Agent(folder / "host", site, timeout_s=TIMEOUT_S)
    before = sorted(receipts(host.folder).values())
    with Proxy(site.client.url) as proxy:
        proxy.next_uploads([FAULTS[name] for name in names])
        while proxy.faults:
            assert host.run(url=proxy.url, drain_s=90)
        assert proxy.hits >= len(names)
        assert not proxy.errors, proxy.errors
    status = read_status(host.folder)
    assert status.receipted == status.sealed
    assert before != sorted(receipts(host.folder).values())
    refused = names == [DAMAGED] * 3
    assert status.incarnation == 1 + refused
    after = check(site, folder / "out", [host.folder], expect={FindingCode.NEW_INCARNATION} if refused else ())
    for name in names:
        expected = "sent again until receipted, in the same log; nothing twice"
        if refused:
            expected = "three times in a row: the verifier's own refusal, another incarnation"
        record("faults", "network", name, expected=expected, seen=after.seen)


@pytest.mark.timeout(600)
def test_uploads_that_others_meddle_with_end_in_true_receipts(site: Verifier, tmp_path: Path) -> None:
    passes_through(site, tmp_path, [*QUICK, *SLOW] if LONG else QUICK)


@pytest.mark.skipif(not LONG, reason="each by itself: make faults")
@pytest.mark.parametrize("name", FAULTS)
def test_each_three_times_in_a_row(site: Verifier, tmp_path: Path, name: str) -> None:
    """Three refusals in a row end a log, if they are the verifier's own."""
    passes_through(site, tmp_path, [name] * 3)
