"""Hosts that wait for news of a run: woken by what any replica is told, and nobody's thread is held meanwhile."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from keyturn_protocol.permit import PermitBundle, parse_permit_bundle
from tests.support.node import Client, Reply
from tests.support.office import Office
from tests.support.verifier import Database, Verifier

HOSTS = 200


def newest(office: Office, run: str) -> int:
    return parsed(office.verifier.client.get(f"/v1/runs/{run}/permit")).index


def parsed(answer: Reply) -> PermitBundle:
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json"), answer
    return parse_permit_bundle(answer.body)


def until(true: Callable[[], bool]) -> None:
    while not true():
        time.sleep(0.005)


@pytest.fixture
def waits(office: Office) -> Iterator[Callable[..., Callable[[], Reply]]]:
    """Ask in the background; the answer is what is called for."""
    threads: list[threading.Thread] = []

    def ask(path: str, client: Client | None = None) -> Callable[[], Reply]:
        answers: list[Reply] = []
        of = client or office.verifier.client
        thread = threading.Thread(target=lambda: answers.append(of.get(path)))
        thread.start()
        threads.append(thread)

        def answer() -> Reply:
            thread.join()
            return answers[0]

        return answer

    yield ask
    for thread in threads:
        thread.join()


def test_what_is_new_is_answered_at_once_and_what_isnt_after_the_wait(office: Office) -> None:
    run = office.approved()
    at = newest(office, run)
    ask = office.verifier.client.get
    assert parsed(ask(f"/v1/runs/{run}/permit?after={at - 1}&wait_s=60")).index == at
    for query in (f"after={at}", f"after={at}&wait_s=1", f"after={at + 1000}&wait_s=1"):
        answer = ask(f"/v1/runs/{run}/permit?{query}")
        assert (answer.status, answer.body) == (204, b"")
    other = office.approved()
    assert newest(office, other) > at
    assert ask(f"/v1/runs/{run}/permit?after={at}").status == 204
    assert ask(f"/v1/runs/{'9' * 64}/permit?after=0&wait_s=60").code == "not_found"
    assert ask(f"/v1/runs/{run}/permit?after={at}&wait_s=61").code == "bad_request"


def test_a_suspension_wakes_whoever_waits_for_this_run_alone(
    office: Office, waits: Callable[..., Callable[[], Reply]]
) -> None:
    run, other = office.approved(), office.approved()
    watch = office.verifier.service.watch
    at = newest(office, other)
    mine, theirs = (waits(f"/v1/runs/{r}/permit?after={at}&wait_s=60") for r in (run, other))
    until(lambda: watch.waiting == 2)
    suspension = office.suspend(run)
    found = parsed(mine())
    assert found.statements[-1].envelope.hash.hex() == suspension
    assert watch.waiting == 1
    # A policy is everybody's business.
    office.ok(office.make_policy(version=2, previous=office.policy), "lab-a/ada", "office/ivy")
    assert parsed(theirs()).statements[-1].envelope.kind == "policy"


def test_a_host_under_no_permit_waits_for_roots_and_policies(
    office: Office, waits: Callable[..., Callable[[], Reply]]
) -> None:
    at = parsed(office.verifier.client.get("/v1/authority")).index
    answer = waits(f"/v1/authority?after={at}&wait_s=60")
    until(lambda: office.verifier.service.watch.waiting == 1)
    office.request()
    office.ok(office.make_policy(version=2, previous=office.policy), "lab-a/ada", "office/ivy")
    assert [one.envelope.kind for one in parsed(answer()).statements] == ["root", "policy", "policy"]


def test_replicas_wake_each_others_hosts(
    office: Office, tmp_path: Path, waits: Callable[..., Callable[[], Reply]]
) -> None:
    if office.verifier.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one server")
    run = office.approved()
    at = newest(office, run)
    with Verifier(tmp_path) as replica:
        answer = waits(f"/v1/runs/{run}/permit?after={at}&wait_s=60", replica.client)
        until(lambda: replica.service.watch.waiting == 1)
        office.suspend(run)
        assert parsed(answer()).statements[-1].envelope.kind == "suspend"


def connect(verifier: Verifier, path: str) -> socket.socket:
    parts = urlsplit(verifier.client.url)
    made = socket.create_connection((parts.hostname, parts.port))
    made.sendall(f"GET {path} HTTP/1.1\r\nhost: {parts.netloc}\r\nconnection: close\r\n\r\n".encode())
    return made


def read(one: socket.socket) -> bytes:
    data = b""
    while part := one.recv(65_536):
        data += part
    return data


def test_many_hosts_wait_without_a_thread_each_and_get_one_bundle(office: Office) -> None:
    run = office.approved()
    service = office.verifier.service
    path = f"/v1/runs/{run}/permit?after={newest(office, run)}&wait_s=60"
    with ExitStack() as stack:
        hosts = [stack.enter_context(connect(office.verifier, path)) for _ in range(HOSTS)]
        until(lambda: service.watch.waiting == HOSTS)
        assert threading.active_count() < HOSTS / 2
        assert newest(office, run) > 0  # and others are served
        built = service.permits.built
        office.suspend(run)
        answers = {read(host).partition(b"\r\n\r\n")[2] for host in hosts}
    assert len(answers) == 1
    assert parse_permit_bundle(answers.pop()).statements[-1].envelope.kind == "suspend"
    assert service.permits.built == built + 1
    assert service.watch.waiting == 0


def test_a_host_that_leaves_gives_its_place_to_another(tmp_path: Path, database: Database) -> None:
    with Verifier(tmp_path, db=database, waiting_hosts=1) as verifier:
        office = Office.opened(verifier)
        run = office.approved()
        path = f"/v1/runs/{run}/permit?after={newest(office, run)}&wait_s=60"
        watch = verifier.service.watch
        first = connect(verifier, path)
        until(lambda: watch.waiting == 1)
        full = verifier.client.get(path)
        assert (full.status, full.code, "retry-after" in full.headers) == (503, "overloaded", True)
        first.close()
        until(lambda: watch.waiting == 0)
        assert verifier.client.get(path.replace("wait_s=60", "wait_s=1")).status == 204


def test_a_server_that_ends_lets_nobody_wait(tmp_path: Path, database: Database) -> None:
    with Verifier(tmp_path, db=database) as verifier:
        office = Office.opened(verifier)
        run = office.approved()
        host = connect(verifier, f"/v1/runs/{run}/permit?after={newest(office, run)}&wait_s=60")
        until(lambda: verifier.service.watch.waiting == 1)
    assert read(host).startswith(b"HTTP/1.1 204")
    host.close()
