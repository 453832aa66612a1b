"""Files that were changed while nobody looked: each file of a host's state folder, flipped, cut, zeroed, longer, gone.

The agent is down meanwhile and is started again. Either it goes on truthfully, with entries that say what was lost, or
it refuses with a message that names the file and a hint on what to do. It never ends in a trace, and never goes on as
if nothing were.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from keyturn_agent.clock import SimulatedClock, SystemRandom
from keyturn_agent.errors import AgentError
from keyturn_agent.status import read_status
from keyturn_agent.store import Store
from keyturn_protocol.entry_log import HeartbeatBody
from keyturn_protocol.findings import FindingCode
from tests.faults.after import SILENCE, check, heads, no_second_head, receipts
from tests.faults.site import Agent
from tests.faults.table import LONG, record
from tests.support.verifier import Verifier

Change = Callable[[bytes, random.Random], bytes | None]
"""The file's new bytes; None takes it away."""

FILES: Final = (
    "config.json", "trust.json", "key", "boots.json", "status.json", "chips.json", "lock", "logs/1/opened",
    "logs/1/tail", "logs/1/state", "oldest segment", "newest segment", "oldest receipt", "newest receipt",
)  # fmt: skip
MAY_BE_LOST: Final = {"status.json", "chips.json", "lock"}


def flipped(place: float) -> Change:
    """One bit at a place between 0 (the beginning) and 1 (the end)."""

    def change(data: bytes, dice: random.Random) -> bytes:
        if not data:
            return b"\x01"
        at = min(len(data) - 1, int(len(data) * place))
        return data[:at] + bytes([data[at] ^ (1 << dice.randrange(8))]) + data[at + 1 :]

    return change


def cut(place: float) -> Change:
    return lambda data, _: data[: min(len(data) - 1, int(len(data) * place))] if data else None


def zeroed(data: bytes, _: random.Random) -> bytes:
    """What some file systems leave of the last blocks after a power cut."""
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


CHANGES: Final[dict[str, list[Change]]] = {
    "a bit flipped": [flipped(place / 16) for place in range(17)] if LONG else [flipped(0.5)],
    "cut short": [cut(0), cut(0.3), cut(0.7), cut(1)] if LONG else [cut(0.7)],
    "zeroed": [zeroed],
    "lengthened": [lambda data, dice: data + dice.randbytes(40), lambda data, _: data + b"\n"],
    "taken away": [lambda *_: None],
}


def made(folder: Path, verifier: Verifier) -> Agent:
    """A host with segments, receipts and an open tail."""
    host = Agent(folder, verifier)
    assert host.run()
    store, clock = Store.open(folder, lambda newest_us: SimulatedClock(newest_us, SystemRandom().uuid4()), 0)
    for _ in range(3):
        store.log.append([HeartbeatBody(verifier_checkpoint=None)], store.stamp(clock))
    store.close()
    return host


def path_of(folder: Path, name: str) -> Path:
    which, _, kind = name.partition(" ")
    if kind not in ("segment", "receipt"):
        return folder / name
    found = sorted((folder / "logs" / "1").glob(f"*.{kind}"), key=lambda path: int(path.stem.partition("-")[0]))
    return found[0 if which == "oldest" else -1]


@dataclass
class Case:
    name: str
    what: str
    number: int
    host: Agent
    outcome: str


SHORT: Final = {name: ["a bit flipped"] for name in FILES} | {"logs/1/state": ["cut short"], "key": ["taken away"]}


def test_one_change_of_each_file(tmp_path: Path) -> None:
    changed(tmp_path, SHORT)


@pytest.mark.skipif(not LONG, reason="every change: make faults")
@pytest.mark.parametrize("name", FILES)
def test_every_change_of_a_file(tmp_path: Path, name: str) -> None:
    changed(tmp_path, {name: list(CHANGES)})


def changed(tmp_path: Path, todo: dict[str, list[str]]) -> None:
    """Each change to a host of its own; all of them report to one verifier, which is audited in the end."""
    cases: list[Case] = []
    given: dict[tuple[str, int], bytes] = {}
    with Verifier(tmp_path / "site") as verifier:
        for name, what in ((name, what) for name, whats in todo.items() for what in whats):
            for number, change in enumerate(CHANGES[what]):
                host = made(tmp_path / f"host-{len(cases)}", verifier)
                given |= receipts(host.folder)
                path = path_of(host.folder, name)
                data = change(path.read_bytes(), random.Random(f"{what}{number}"))
                if data is None:
                    path.unlink()
                else:
                    path.write_bytes(data)
                cases.append(Case(name, what, number, host, outcome_of(host, path, given)))
        allow = {FindingCode.NEW_INCARNATION, FindingCode.RECOVERED, FindingCode.LOST_HEAD, *SILENCE}
        after = check(verifier, tmp_path / "out", given=given, allow=allow)
        known = [one for case in cases for one in heads(case.host.folder, intended=False)]
    no_second_head(known)
    for case in cases:
        if case.outcome.startswith("goes on") and case.name not in MAY_BE_LOST:
            found = {one.code for one in after.report.findings if one.origin.startswith(case.host.origin[:-1])}
            case.outcome += f": {', '.join(sorted(found - SILENCE)) or 'nothing was lost'}"
        expected = "goes on and says so, or refuses and names the file"
        record("faults", "agent's files", f"{name}: {case.what}", expected=expected, seen=case.outcome)


def outcome_of(host: Agent, path: Path, given: dict[tuple[str, int], bytes]) -> str:
    """Start it again, twice."""
    refused: AgentError | None = None
    try:
        assert host.run(), "everything is receipted in the end"
        assert host.run()
    except AgentError as error:
        refused = error
    if refused is not None:
        assert str(path) in str(refused), f"{path}: the message is {refused}"
        assert refused.hint, f"{path}: {refused}: no word on what to do"
        return f"refuses: {refused.code}"
    status = read_status(host.folder)
    assert status.receipted == status.sealed
    for key, receipt in receipts(host.folder).items():
        given.setdefault(key, receipt)
    return f"goes on in incarnation {status.incarnation}"
