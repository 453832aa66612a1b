"""PostgreSQL killed in the middle of a batch: its backend, or all of it, at each question of the transaction.

The verifier answers 503 and nothing else; what it had committed without hearing of it is there after the recovery, and
the same segment sent again gets the receipt that is there.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Literal

import psutil
import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from tests.faults.after import check
from tests.faults.table import LONG, record
from tests.faults.wire import Link, Trap, When, is_commit
from tests.support.node import Node, Reply
from tests.support.postgres import Server, own_server
from tests.support.verifier import Verifier

WHENS: tuple[When, ...] = ("before", "meanwhile", "after")


def kill_backend(_: Server) -> Callable[[int], None]:
    return lambda backend: os.kill(backend, signal.SIGKILL)


def kill_all(server: Server) -> Callable[[int], None]:
    """The postmaster first, then what it leaves: a machine's processes when the kernel kills them."""

    def act(_: int) -> None:
        postmaster = psutil.Process(int((server._data / "postmaster.pid").read_text().split()[0]))
        for process in (postmaster, *postmaster.children(recursive=True)):
            process.send_signal(signal.SIGKILL)

    return act


class Rig:
    """A verifier on a server that can be killed, with the link in between."""

    def __init__(self, server: Server, link: Link, verifier: Verifier) -> None:
        self.server, self.link, self.verifier = server, link, verifier
        self.given: dict[tuple[str, int], bytes] = {}
        self._chips = count()

    def node(self) -> Node:
        """A new one, with a chip of its own."""
        return self.verifier.enrolled(usage=1, at=next(self._chips))

    def send(self, node: Node) -> Reply:
        """What waits to be sent; a receipt is kept."""
        answer = self.verifier.client.post(node.range(node.sent, node.size))
        if answer.status == 200:
            self.given[node.origin, node.size] = answer.body
            node.sent = node.size
        return answer

    def until_sent(self, node: Node) -> None:
        while node.sent < node.size and (answer := self.send(node)).status != 200:
            assert answer.status == 503, answer
            assert "retry-after" in answer.headers
            time.sleep(0.02)

    def restart(self) -> None:
        """Start the server again if it is down, and wait until it has recovered."""
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.server.url).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline
            pid = self.server._data / "postmaster.pid"
            if not pid.exists() or not psutil.pid_exists(int(pid.read_text().split()[0])):
                try:
                    self.server.start()
                except AssertionError:
                    time.sleep(0.1)  # what the dead one left is still being taken away
            time.sleep(0.02)

    def dump(self) -> dict[str, list[tuple[object, ...]]]:
        deadline = time.monotonic() + 60
        while True:
            try:
                return self.verifier.dump()
            except DBAPIError:
                # The postmaster had not yet seen what happened to its child.
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def stored(self, node: Node) -> dict[int, bytes]:
        """Receipts in the database, by size."""
        dump = self.dump()
        ids = {row[1]: row[0] for row in dump["log"]}
        return {int(str(row[2])): bytes(row[5]) for row in dump["segment"] if row[0] == ids.get(node.origin)}  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("postgres")
    with own_server() as server, Link(server.folder, folder) as link:
        url = server.database().replace(str(server.folder), str(folder))
        with Verifier(folder, db=lambda: url) as verifier:
            yield Rig(server, link, verifier)


def questions(rig: Rig) -> list[bytes]:
    """Those of one ordinary batch."""
    node = rig.node()
    rig.link.trap = None
    node.usage(2)
    time.sleep(1.2)  # the publication of what was appended is a transaction of its own
    rig.until_sent(node)
    return list(rig.link.questions)


def killed_at(rig: Rig, trap: Trap) -> str:
    """One batch, one kill; returns what the verifier said."""
    rig.link.trap = None
    node = rig.node()
    rig.given[node.origin, node.size] = rig.stored(node)[node.size]
    node.usage(2)
    rig.link.trap = trap
    answer = rig.send(node)
    rig.restart()
    rig.link.trap = None
    there = rig.stored(node).get(node.size)
    rig.until_sent(node)
    if there is not None:
        assert rig.given[node.origin, node.size] == there, "committed before: the receipt that is there, and no other"
    if not trap.sprung:  # a batch that was one question shorter than the one that was counted
        return "not hit"
    assert answer.status == 503, answer
    assert "retry-after" in answer.headers
    if not is_commit(trap.hit[-1]) or trap.when == "before":
        assert there is None, "nothing of it is there before its COMMIT"
    elif trap.when == "after":
        assert there is not None
        assert answer.code == "unknown_outcome"
    return answer.code


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kill", [kill_backend, kill_all], ids=["backend", "all"])
def test_killed_at_each_question_of_a_batch(
    rig: Rig, tmp_path: Path, kill: Callable[[Server], Callable[[int], None]]
) -> None:
    batch = questions(rig)
    assert is_commit(batch[-1]), batch
    places: list[tuple[int | Literal["commit"], When]] = [("commit", when) for when in WHENS]
    places += [(at, when) for at in range(len(batch)) for when in WHENS] if LONG else [(len(batch) // 2, "before")]
    for at, when in places:
        said = killed_at(rig, trap := Trap(batch[0], at, when, kill(rig.server)))
        assert trap.sprung or at != "commit"
        if trap.sprung:
            place = "COMMIT" if is_commit(trap.hit[-1]) else "a statement"
            what = f"{'backend' if kill is kill_backend else 'server'} killed {when} {place}"
            record("faults", "verifier (PostgreSQL)", what, expected="503, then the one receipt", seen=said)
    check(rig.verifier, tmp_path / "out", given=rig.given)
