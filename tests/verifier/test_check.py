"""`keyturn-verifier check`: silent about what came in by itself, whatever it was; a line for what was changed."""

from pathlib import Path

import pytest
from sqlalchemy import text

from keyturn_verifier.check import check
from keyturn_verifier.db.engine import reading, writing
from tests.support.verifier import Database, Verifier, call
from tests.verifier.test_export import busy_node


def differences(verifier: Verifier, given: bytes | None = None) -> list[str]:
    with reading(verifier.engine) as connection:
        return [str(one) for one in check(connection, verifier.trust, given)]


def test_what_came_in_by_itself_is_as_it_has_to_be(verifier: Verifier) -> None:
    """Shares, gaps, changes of inventory, a skipped incarnation, a fork, signed nonsense, a node that only joined."""
    node = busy_node(verifier.joined())
    for end in range(10, node.size, 17):
        assert verifier.client.post(node.range(node.sent, end)).status == 200
        node.sent = end
    gone = verifier.enrolled(usage=4)
    after = gone.next_incarnation(skip=1)
    after.time_us += 60_000_000
    verifier.client.post(after.segment(after.genesis(previous=gone.previous()), after.inventory(3)))
    forker = verifier.enrolled()
    twin = forker.copy()
    verifier.client.post(forker.segment(forker.usage(1)))
    assert verifier.client.post(twin.segment(twin.shutdown())).code == "fork"
    breaker = verifier.enrolled()
    breaker.append_line(b"{}")
    assert verifier.client.post(breaker.segment()).code == "invalid_entries"
    verifier.joined()
    verifier.reader_token()
    assert differences(verifier) == []
    checkpoints = verifier.dump_checkpoints()  # one a second at most
    (_, kept), (_, newest) = checkpoints[0], checkpoints[-1]
    assert differences(verifier, kept) == differences(verifier, newest) == []


def test_many_leaves(verifier: Verifier) -> None:
    node = verifier.enrolled()
    for _ in range(300):
        verifier.client.post(node.segment(node.shutdown()))
    assert differences(verifier) == []


def test_the_command(tmp_path: Path, database: Database) -> None:
    with Verifier(tmp_path, db=database) as verifier:
        verifier.enrolled(usage=3)
        (_, note) = verifier.dump_checkpoints()[-1]
        (tmp_path / "kept").write_bytes(note)
        clean = call("check", "--state", verifier.state)
        assert (clean.returncode, clean.stdout) == (0, "")
        assert call("check", "--state", verifier.state, "--checkpoint", tmp_path / "kept").returncode == 0
        with writing(verifier.engine) as connection:
            connection.execute(text("UPDATE usage_hour SET energy_mj = energy_mj + 1"))
        changed = call("check", "--state", verifier.state)
        assert changed.returncode == 1
        assert changed.stdout.startswith("usage_hour: keyturn.example.org/node/")
        assert "energy_mj of chip GPU-" in changed.stdout


@pytest.mark.parametrize("given", [b"", b"x", b"keyturn.example.org/log\n1\nAAAA\n\n\xe2\x80\x94 x AAAAAAA=\n"])
def test_a_checkpoint_that_is_none_of_this_verifiers(tmp_path: Path, given: bytes) -> None:
    with Verifier(tmp_path) as verifier:
        (tmp_path / "kept").write_bytes(given)
        done = call("check", "--state", verifier.state, "--checkpoint", tmp_path / "kept")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("keyturn: error: ")
    missing = call("check", "--state", verifier.state, "--checkpoint", tmp_path / "none")
    assert missing.returncode == 2
