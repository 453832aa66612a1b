"""Making logs on disk, and holding them to the protocol's own rules."""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keyturn_agent.enrolment import genesis
from keyturn_agent.log import NodeLog
from keyturn_agent.log_files import Opened
from keyturn_agent.ports import Stamp
from keyturn_agent.signer import FileSigner
from keyturn_agent.spool import decompress
from keyturn_protocol.checkpoint import parse_checkpoint
from keyturn_protocol.entries import Body, Entry
from keyturn_protocol.entry_log import HeartbeatBody
from keyturn_protocol.ids import LogName
from keyturn_protocol.keys import node_id_of
from keyturn_protocol.merkle import Frontier
from keyturn_protocol.segment import follow, node_key, parse_segment, start_of, verify_head
from tests.agent.fakes import DEPLOYMENT

BOOT = "00000000-0000-4000-8000-000000000001"
BEAT: Body = HeartbeatBody(verifier_checkpoint=None)


class Recorder(FileSigner):
    """A signer that remembers what it signed."""

    def __init__(self, key: Ed25519PrivateKey | None = None) -> None:
        super().__init__(Ed25519PrivateKey.from_private_bytes(bytes(range(32))) if key is None else key)
        self.signed: list[bytes] = []

    def sign(self, message: bytes) -> bytes:
        self.signed.append(message)
        return super().sign(message)

    def check_one_head_a_size(self) -> None:
        heads: dict[int, bytes] = {}
        for text in self.signed:
            size = parse_checkpoint(text).size
            assert heads.setdefault(size, text) == text, f"two heads of size {size}"


def stamp(mono_us: int = 0, boots: int = 1) -> Stamp:
    return Stamp(BOOT, boots, mono_us, 1_790_000_000_000_000 + mono_us)


def name_of(signer: FileSigner, incarnation: int = 1) -> LogName:
    return LogName(DEPLOYMENT, node_id_of(signer.public_key), incarnation)


def make_log(folder: Path, signer: FileSigner) -> NodeLog:
    opened = Opened(v=1, opened_s=1_790_000_000, reason="enrolled", detail="")
    body = genesis(signer.public_key, "replay", "00" * 32, None, None)
    return NodeLog.create(folder, name_of(signer), signer, opened, body, stamp())


def reopen(folder: Path, signer: FileSigner) -> NodeLog:
    log = NodeLog.open(folder, name_of(signer), signer)
    log.settle(stamp(10**9))
    return log


def check_log(folder: Path, signer: FileSigner) -> tuple[Entry, ...]:
    """All sealed entries, checked from the first: segments, heads, roots, chain."""
    name = name_of(signer)
    state, frontier, entries = start_of(name.origin), Frontier(), list[Entry]()
    ranges = sorted(tuple(map(int, path.stem.split("-"))) for path in folder.glob("*.segment"))
    for start, end in ranges:
        assert start == state.size
        segment = parse_segment(decompress((folder / f"{start}-{end}.segment").read_bytes()))
        verify_head(segment, node_key(name.origin, signer.public_key))
        hashes = segment.leaf_hashes()
        frontier = frontier.extend(hashes)
        assert frontier.root() == segment.checkpoint.root
        followed = follow(name, signer.public_key, state, segment.lines, hashes)
        state = followed.state
        entries += followed.entries
    return tuple(entries)
