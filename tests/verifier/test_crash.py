"""Kill -9 of the serving process while segments come in, over and over; then everything must be there."""

import random
import threading
import time
from pathlib import Path

import urllib3
from sqlalchemy import select

from keyturn_protocol.checkpoint import open_checkpoint
from keyturn_protocol.entries import parse_entry
from keyturn_protocol.keys import parse_vkey
from keyturn_protocol.leaves import NodeCheckpoint, parse_leaf
from keyturn_protocol.merkle import leaf_hash, root_of
from keyturn_protocol.usage import EMPTY, Gap, UsageRow, fold, to_row, totals_json
from keyturn_verifier.db.tables import segment
from tests.faults.table import LONG
from tests.support.node import Client, Node
from tests.support.verifier import DEPLOYMENT, Served, Verifier, call

ROUNDS = 20 if LONG else 3
NODES = 6


def load(client: Client, node: Node, stop: threading.Event, receipts: dict[tuple[str, int], bytes]) -> None:
    """Send until the server is gone, as an agent does: the segment without an answer is sent again next time."""
    while not stop.is_set():
        if node.sent == node.size:
            node.usage(random.randint(1, 4))
        try:
            answer = client.post(node.range(node.sent, node.size))
        except urllib3.exceptions.HTTPError:
            return
        if answer.status == 200:
            receipts[node.origin, node.size] = answer.body
            node.sent = node.size
        else:
            assert answer.status in (429, 503), answer


def test_kill_9_in_a_loop_loses_nothing_that_was_receipted(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    assert call("init", "--state", folder, "--deployment", DEPLOYMENT).returncode == 0
    made = call("token", "create", "--state", folder, "--organisation", "Acme", "--site", "fra1", "--hosts", str(NODES))
    token = made.stdout.strip()
    nodes = [Node.new(DEPLOYMENT) for _ in range(NODES)]
    for node in nodes:
        node.genesis()
        node.inventory(2)
    receipts: dict[tuple[str, int], bytes] = {}
    served = Served(folder)
    for _ in range(ROUNDS):
        client = served.start()
        for node in nodes:
            if not node.sent:
                assert client.join(node, token).status in (200, 409)
        stop = threading.Event()
        threads = [threading.Thread(target=load, args=(client, node, stop, receipts)) for node in nodes]
        for thread in threads:
            thread.start()
        seen = len(receipts)
        while len(receipts) < seen + 40:
            time.sleep(0.001)
        time.sleep(random.random() / 20)
        served.kill()
        stop.set()
        for thread in threads:
            thread.join()

    client = served.start()
    for node in nodes:
        # What was not answered may or may not be there; sent again, it gets its receipt either way.
        answer = client.post(node.range(node.sent, node.size)) if node.sent < node.size else None
        assert answer is None or answer.status == 200, answer
        receipts.update({(node.origin, node.size): answer.body} if answer is not None else {})
    assert served.terminate() == 0

    verifier = Verifier(tmp_path)
    dump = verifier.dump()
    heads = {row[1]: row for row in dump["log"]}
    stored = {(row[0], row[2]): row for row in dump["segment"]}
    for (origin, end), receipt in receipts.items():
        assert stored[heads[origin][0], end][5] == receipt
    for node in nodes:
        assert heads[node.origin][8] == node.size
    check_tree(verifier, len(stored))
    check_totals(verifier, nodes)
    report = verifier.audit(verifier.export(tmp_path / "evidence"))
    assert report.outcome == "pass", report.reasons
    assert report.entries == sum(node.size for node in nodes)


def check_tree(verifier: Verifier, segments: int) -> None:
    """Indices are dense, every segment has its leaf, and the newest checkpoint is of exactly these leaves."""
    lines = verifier.leaves()
    leaves = [parse_leaf(line) for line in lines]
    assert [leaf.index for leaf in leaves] == list(range(len(leaves)))
    assert sum(isinstance(leaf, NodeCheckpoint) for leaf in leaves) == segments
    note = max(verifier.dump_checkpoints())[1]
    checkpoint = open_checkpoint(note, parse_vkey(verifier.trust.log_vkey))
    assert (checkpoint.size, checkpoint.root) == (len(lines), root_of(map(leaf_hash, lines)))


def check_totals(verifier: Verifier, nodes: list[Node]) -> None:
    """The stored counters are those of a fold from the first entry on."""
    from keyturn_verifier import queries

    rows: list[UsageRow] = []
    gaps: list[Gap] = []
    for node in nodes:
        folded = fold(node.origin, EMPTY, [parse_entry(line) for line in node.lines])
        rows += [to_row(key, values) for key, values in folded.rows.items()]
        gaps += folded.gaps
    with verifier.engine.connect() as connection:
        names = queries.origins(connection)
        stored = totals_json(queries.usage_rows(connection, names), queries.stored_gaps(connection, names))
        assert connection.execute(select(segment.c.start)).first() is not None
    assert stored == totals_json(rows, gaps)
