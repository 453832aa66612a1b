"""Whether an entry costs the same however long its log is: from 1,000 to a million entries in one log.

All entries but the first are heartbeats, so that a million of them fit; what grows with a log would show on them as
well. CPU per entry over the last entries before each power of ten:

append   the agent writes entries and signs a head over every 250 (an fdatasync for the entries, files and folder for
         the head).
ingest   the segment over HTTP into the verifier on SQLite (WAL, synchronous=FULL), client included.
audit    all of the log so far, from a bundle in a folder.

Bar: the last is at most 1.3 times the first; a cost that grew with the length would be a thousand times that.

    python benchmarks/flatness.py --entries 100000
"""

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _report import report_below

from keyturn_agent.enrolment import genesis
from keyturn_agent.log import NodeLog
from keyturn_agent.log_files import Opened
from keyturn_agent.ports import Stamp
from keyturn_agent.signer import FileSigner
from keyturn_protocol.entries import Body
from keyturn_protocol.entry_log import HeartbeatBody
from keyturn_protocol.ids import LogName
from keyturn_protocol.keys import node_id_of
from tests.support.verifier import DEPLOYMENT, Verifier

SEGMENT, WINDOW = 250, 20
"""Entries of a segment, and segments over which a cost is the mean."""
BOOT = "00000000-0000-4000-8000-000000000001"
BEATS: list[Body] = [HeartbeatBody(verifier_checkpoint=None)] * SEGMENT


@dataclass(frozen=True)
class Cost:
    """CPU of one entry, in µs."""

    append: float
    ingest: float
    audit: float


def grow(verifier: Verifier, folder: Path, marks: list[int]) -> list[Cost]:
    """The costs at each of ``marks``, in entries."""
    signer = FileSigner(Ed25519PrivateKey.generate())
    name = LogName(DEPLOYMENT, node_id_of(signer.public_key), 1)
    stamp = Stamp(BOOT, 1, 0, 1_790_000_000_000_000)
    opened = Opened(v=1, opened_s=1_790_000_000, reason="enrolled", detail="")
    first = genesis(signer.public_key, "replay", "00" * 32, None, None)
    log = NodeLog.create(folder / "log", name, signer, opened, first, stamp)
    assert verifier.client.join_with(str(log.key), verifier.join_token()).status == 200
    spent: list[tuple[float, float]] = []
    found = []
    for mark in marks:
        while log.size < mark:
            start = time.process_time()
            log.append(BEATS, stamp)
            log.seal()
            sealed = time.process_time()
            (frame,) = (folder / "log").glob("*.segment")
            answer = verifier.client.post_raw(frame.read_bytes())
            assert answer.status == 200, answer
            spent.append((sealed - start, time.process_time() - sealed))
            frame.unlink()
        window = spent[-WINDOW:]
        bundle = verifier.export(folder / f"bundle-{mark}")
        start = time.process_time()
        outcome = verifier.audit(bundle)
        audit_s = time.process_time() - start
        assert outcome.outcome == "pass", outcome.reasons
        per_entry = 1e6 / len(window) / SEGMENT
        found.append(
            Cost(
                append=sum(append for append, _ in window) * per_entry,
                ingest=sum(ingest for _, ingest in window) * per_entry,
                audit=audit_s * 1e6 / outcome.entries,
            )
        )
    log.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000, metavar="N", help="of the log at its end")
    most = parser.parse_args().entries
    marks = [10**power for power in range(3, len(str(most)))]
    costs: list[Cost] = []
    with tempfile.TemporaryDirectory() as name:
        for warm in (True, False):
            folder = Path(name) / ("warm" if warm else "log")
            folder.mkdir()
            with Verifier(folder, log_requests_per_minute=10**9, log_bytes_per_minute=10**12) as verifier:
                costs = grow(verifier, folder, marks[:1] if warm else marks)
    durability = {"append": "fdatasync", "ingest": "SQLite WAL, synchronous=FULL", "audit": "none: it only reads"}
    for what in ("append", "ingest", "audit"):
        each = [getattr(cost, what) for cost in costs]
        report_below(
            f"flatness, {what}: the last power of ten against the first", each[-1] / each[0], "times", bar=1.3,
            us_an_entry={str(mark): round(cost, 1) for mark, cost in zip(marks, each, strict=True)},
            durability=durability[what],
        )  # fmt: skip


if __name__ == "__main__":
    main()
