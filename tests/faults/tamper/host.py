"""Somebody with root on a host: its state folder edited between two runs of the agent, and what its key can sign."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from backports import zstd
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from keyturn_agent.signer import FileSigner
from keyturn_agent.spool import compress, decompress
from keyturn_protocol.checkpoint import Checkpoint
from keyturn_protocol.ids import LogName, parse_origin
from keyturn_protocol.merkle import Frontier, leaf_hash, root_of
from keyturn_protocol.segment import format_segment, node_key, parse_segment
from tests.faults.site import Agent
from tests.faults.tamper.world import edited
from tests.support.verifier import Verifier


class Root(NamedTuple):
    """An operator on a host. ``says``: a pattern in what is seen afterwards."""

    name: str
    run: Callable[[Agent, Verifier], None]
    says: str
    found: str = "found"


ROOT: list[Root] = []
WAITING: list[Root] = []
"""The same for a host whose verifier can't be reached: nothing of its second run has a receipt yet."""


def root(name: str, says: str, found: str = "found", to: list[Root] = ROOT) -> Callable[[Any], Any]:
    def add(run: Callable[[Agent, Verifier], None]) -> Callable[[Agent, Verifier], None]:
        to.append(Root(name, run, says, found))
        return run

    return add


NOTHING = "nothing to find: what was receipted is with the verifier, and stays"
OWN_WORD = "not found: before its first receipt a host can rewrite its own past"


def folder(host: Agent) -> Path:
    return max((host.folder / "logs").iterdir(), key=lambda p: int(p.name) if p.name.isdigit() else -1)


def segments(host: Agent) -> list[Path]:
    return sorted(folder(host).glob("*.segment"), key=lambda p: int(p.name.partition("-")[0]))


def lines_of(host: Agent) -> list[bytes]:
    return [line for path in segments(host) for line in parse_segment(decompress(path.read_bytes())).lines]


def name_of(host: Agent) -> LogName:
    return parse_origin(parse_segment(decompress(segments(host)[0].read_bytes())).origin)


def signed(host: Agent, lines: Sequence[bytes], start: int) -> bytes:
    """A segment up to the end of ``lines`` under the host's key."""
    key, name = FileSigner.load(host.folder / "key"), name_of(host)
    head = Checkpoint(name.origin, len(lines), root_of(map(leaf_hash, lines)))
    return format_segment(lines[start:], head.signed(node_key(name.origin, key.public_key), key.sign(head.to_text())))


def lowered(host: Agent, start: int) -> list[bytes]:
    """The log with less energy in every entry from ``start`` on, linked again."""

    def change(entry: dict[str, Any]) -> None:
        if entry["type"] == "usage":
            entry["body"]["energy_mj"] = [v and 1 for v in entry["body"]["energy_mj"]]

    made: list[bytes] = []
    for seq, line in enumerate(lines_of(host)):
        if seq >= start:
            line = edited(line, change)
        prev = leaf_hash(made[-1] if made else name_of(host).origin.encode()).hex()
        made.append(edited(line, lambda entry, prev=prev: entry.update(prev=prev)))  # type: ignore[misc]
    return made


def rewrite(host: Agent, lines: Sequence[bytes], start: int) -> None:
    """Segments from entry ``start`` on and the intended head, as if these had been the entries all along."""
    for path in segments(host):
        first, end = map(int, path.stem.split("-"))
        if end > start:
            path.write_bytes(compress(signed(host, lines[:end], first)))
    state = folder(host) / "state"
    intended = json.loads(state.read_text())
    intended["root"] = root_of(map(leaf_hash, lines[: intended["size"]])).hex()
    before = lines[: intended["start"]]

    intended["frontier"] = Frontier().extend(map(leaf_hash, before)).to_bytes().hex()
    intended["chain"]["prev"] = leaf_hash(before[-1]).hex()
    state.write_text(json.dumps(intended, separators=(",", ":"), sort_keys=True))


def measured(host: Agent) -> tuple[int, int]:
    """The range of the newest segment that measured something."""
    path = max(
        (p for p in segments(host) if b'"energy_mj":[' in decompress(p.read_bytes())),
        key=lambda p: int(p.name.partition("-")[0]),
    )
    start, _, end = path.stem.partition("-")
    return int(start), int(end)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@root("newest segment: a byte flipped", "new_incarnation.*damaged|damaged.*new_incarnation")
def newest_flipped(host: Agent, _: Verifier) -> None:
    flip(segments(host)[-1])


@root("newest segment: removed", "damaged")
def newest_removed(host: Agent, _: Verifier) -> None:
    segments(host)[-1].unlink()


@root("an older segment: removed", "goes on", NOTHING)
def older_removed(host: Agent, _: Verifier) -> None:
    segments(host)[0].unlink()


@root("receipts: removed", "goes on", NOTHING)
def receipts_removed(host: Agent, _: Verifier) -> None:
    for path in folder(host).glob("*.receipt"):
        path.unlink()


@root("receipts: those of two sizes swapped", "goes on", NOTHING)
def receipts_swapped(host: Agent, _: Verifier) -> None:
    one, two = sorted(folder(host).glob("*.receipt"))[:2]
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


@root("state: a byte flipped", "damaged")
def state_flipped(host: Agent, _: Verifier) -> None:
    flip(folder(host) / "state")


@root("state: removed", "damaged")
def state_removed(host: Agent, _: Verifier) -> None:
    (folder(host) / "state").unlink()


@root("tail: bytes appended", "recovered")
def tail_grown(host: Agent, _: Verifier) -> None:
    with (folder(host) / "tail").open("ab") as tail:
        tail.write(b'{"body":')


@root("tail: removed", "damaged")
def tail_removed(host: Agent, _: Verifier) -> None:
    (folder(host) / "tail").unlink()


@root("key: another one", "refuses")
def key_replaced(host: Agent, _: Verifier) -> None:

    key = Ed25519PrivateKey.generate()
    (host.folder / "key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@root("pinned keys of the verifier: others", "refuses")
def trust_replaced(host: Agent, _: Verifier) -> None:
    trust = host.folder / "trust.json"
    trust.write_bytes(trust.read_bytes().replace(b"log_vkey", b"log_vkex"))


@root("count of boots: set back, or gone", "goes on", "nothing to find: the log's own count is a floor")
def boots_back(host: Agent, _: Verifier) -> None:
    (host.folder / "boots.json").unlink()


@root("the log's folder: removed", "refuses")
def log_removed(host: Agent, _: Verifier) -> None:
    shutil.rmtree(folder(host))


@root("folder: put back to an earlier copy", "lost_head")
def put_back(host: Agent, _: Verifier) -> None:
    kept = host.copy(host.folder.with_name("kept"))
    assert host.run()
    host.restore(kept)


@root("history rewritten after its receipts, with the host's key", "lost_head")
def rewritten_after(host: Agent, _: Verifier) -> None:
    start, _end = measured(host)
    rewrite(host, lowered(host, start), start)


@root("another history sent to the verifier, with the host's key", "fork")
def forked(host: Agent, verifier: Verifier) -> None:
    start, end = measured(host)
    assert verifier.client.post(signed(host, lowered(host, start)[:end], start)).code == "fork"


@root("a head over entries that break the chain, with the host's key", "invalid_entries")
def nonsense(host: Agent, verifier: Verifier) -> None:
    lines = lines_of(host)
    assert verifier.client.post(signed(host, [*lines, lines[-1]], len(lines))).code == "invalid_entries"


@root("a segment for another host's log", "goes on", "nothing to find: refused, nothing is stored")
def another_host(host: Agent, verifier: Verifier) -> None:
    other = verifier.enrolled()
    data = signed(host, lines_of(host), 0).replace(name_of(host).origin.encode(), other.origin.encode())
    assert verifier.client.post_raw(zstd.compress(data)).status in (400, 403)


@root("history rewritten before its receipts, with the host's key", "goes on", OWN_WORD, WAITING)
def rewritten_before(host: Agent, _: Verifier) -> None:
    receipted = max(int(p.stem.partition("-")[2]) for p in folder(host).glob("*.receipt"))
    rewrite(host, lowered(host, receipted), receipted)


@root("a waiting segment: a byte flipped", "damaged", "found", WAITING)
def waiting_flipped(host: Agent, _: Verifier) -> None:
    flip(segments(host)[-1])


@root("a waiting segment: removed from the middle", "damaged|rejected", "found", WAITING)
def waiting_removed(host: Agent, _: Verifier) -> None:
    waiting = [p for p in segments(host) if not p.with_suffix(".receipt").exists()]
    waiting[len(waiting) // 2].unlink()
