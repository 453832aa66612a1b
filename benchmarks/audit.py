"""Full offline re-verification of a bundle, a core and two, against hashing and decoding the same bytes.

Limit: SHA-256 over every segment and msgspec decoding of every entry into its type. Bar: 0.6 (operations).
"""

import gc
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _host import CHIPS, Host
from _report import best_of, report

from keyturn_cli.auditing import Pins, run_audit
from keyturn_cli.reader import FolderReader
from keyturn_protocol.audit import audit
from keyturn_protocol.chips import chip_table
from keyturn_protocol.entries import Entry
from keyturn_protocol.leaves import EnrolmentBody
from keyturn_protocol.receive import Accepted, new_head
from tests.support.bundles import Bundle, Site, _Received

HOSTS, SEGMENTS, ENTRIES, RUNS = 8, 12, 256, 3


def build() -> Bundle:
    """A bundle of 8-GPU hosts, a half day each, receipted and exported by the test verifier."""
    site = Site(name="bench.example.org")
    for seed in range(HOSTS):
        host = Host(seed)
        site.logs[host.name.origin] = _Received(new_head(host.name, host.public_key), "Example", "hall 1")
        site.leaf(
            EnrolmentBody(
                origin=host.name.origin,
                node_id=host.name.node_id,
                incarnation=1,
                public_key=host.public_key.hex(),
                organisation="Example",
                site="hall 1",
                token_sha256=None,
            )
        )
        for _ in range(SEGMENTS):
            decision = site.post(host.segment(ENTRIES))
            assert isinstance(decision, Accepted), decision
    return site.export()


def in_processes(folder: Path, bundle: Bundle, jobs: int) -> None:
    """As the program audits: from files, logs spread over processes."""
    outcome = run_audit(FolderReader(str(folder)), Pins(trust=bundle.trust), jobs, lambda _done, _total: None)
    assert outcome.outcome == "pass", outcome.reasons


def main() -> None:
    bundle = build()
    segments = [data for path, data in bundle.files.items() if path.endswith(".segment")]
    lines = [data.partition(b"\n\n")[0].split(b"\n") for data in segments]
    decoder = msgspec.json.Decoder(Entry)

    def limit() -> None:
        for data, entries in zip(segments, lines, strict=True):
            sha256(data).digest()
            for line in entries:
                decoder.decode(line)

    def whole() -> None:
        outcome = audit(bundle, bundle.trust, chip_table())
        assert outcome.outcome == "pass", outcome.reasons

    size = sum(map(len, segments))
    limit_s, one_s = best_of(RUNS, limit), best_of(RUNS, whole)
    facts = {"entries": HOSTS * SEGMENTS * ENTRIES, "chips": CHIPS, "mib": round(size / 2**20, 1)}
    report("audit, one core", seconds=one_s, limit_s=limit_s, bar=0.6, **facts, mib_a_s=round(size / one_s / 2**20, 1))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, data in bundle.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        alone_s = best_of(RUNS, lambda: in_processes(folder, bundle, 1))
        two_s = best_of(RUNS, lambda: in_processes(folder, bundle, 2))
    report("audit, two processes against one", seconds=two_s, limit_s=alone_s, bar=1.6, **facts)


if __name__ == "__main__":
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)  # as the program's workers and the limit run
    main()
