"""The audit without Keyturn: the page's commands and SQL run as they stand, find what is altered, and agree with us."""

import json
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keyturn_protocol.checkpoint import Checkpoint
from keyturn_protocol.entries import parse_entry
from keyturn_protocol.entry_usage import Share
from keyturn_protocol.ids import Origin
from keyturn_protocol.merkle import leaf_hash, root_of
from keyturn_protocol.usage import EMPTY, fold, to_row, totals_json
from tests.support import by_hand
from tests.support.optional import require_program
from tests.support.streams import ORIGIN, stream
from tests.support.vectors import names, vector
from tests.support.verifier import Verifier


def shell(folder: Path) -> "subprocess.CompletedProcess[str]":
    for program in ("sh", "openssl", "sha256sum", "sed", "base64", "od", "cut", "tail", "find"):
        require_program(program)
    script = "\n".join(by_hand.blocks("sh"))
    return subprocess.run(["sh", "-euc", script], cwd=folder, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of three logs with shares, holes and a second incarnation, and its trust."""
    folder = tmp_path_factory.mktemp("by-hand")
    with Verifier(folder) as verifier:
        nodes = [verifier.enrolled(chips=chips, usage=5) for chips in (1, 3)]
        for node in nodes:
            split = [
                Share(chip=0, id="run:a", class_="shared", share_ppm=333_333),
                Share(chip=0, id="run:b", class_="shared", share_ppm=333_333),
            ]
            node.usage(3, shares=split, null=["energy_mj"])
            node.heartbeat(after_us=50_000_000)
            node.usage(400, span_us=60_000_000)
            assert verifier.client.post(node.range(node.sent, node.sent + 250)).status == 200
            node.sent += 250
            assert verifier.client.post(node.segment()).status == 200
        later = nodes[1].next_incarnation()
        later.genesis(previous=nodes[1].previous())
        later.inventory(3)
        later.usage(2)
        assert verifier.client.post(later.segment()).status == 200
        verifier.export(folder / "evidence")
        shutil.copyfile(verifier.state / "trust.json", folder / "trust.json")
    return folder


def test_an_untouched_bundle(place: Path) -> None:
    done = shell(place)
    assert done.returncode == 0, done.stdout + done.stderr
    connection, printed = by_hand.recompute(place)
    assert printed == []
    assert connection.execute("SELECT workload FROM answer ORDER BY 1").fetchall() == [
        *(("not measured",), ("run:a",), ("run:b",), ("slurm:1",), ("unattributed",))
    ]


def flipped(path: Path, old: bytes, new: bytes) -> None:
    """Change the first ``old`` after the middle of a file."""
    data = path.read_bytes()
    at = data.index(old, len(data) // 2)
    path.write_bytes(data[:at] + new + data[at + len(old) :])


def segment_of(folder: Path, at: int = 1) -> Path:
    """A segment of the host with one chip: one of two logs that aren't alone in their incarnation's number."""
    return sorted(
        (folder / "evidence").glob("logs/*/1/*.segment"), key=lambda p: (p.parent, int(p.stem.split("-")[0]))
    )[at]


@pytest.mark.parametrize("what", ["copy", "signature", "receipt", "node key", "verifier"])
def test_the_commands_find(place: Path, tmp_path: Path, what: str) -> None:
    shutil.copytree(place / "evidence", tmp_path / "evidence")
    shutil.copyfile(place / "trust.json", tmp_path / "trust.json")
    segment = segment_of(tmp_path)
    match what:
        case "copy":
            flipped(segment, b'"samples"', b'"sampleS"')
        case "signature":
            other = segment_of(place, 2).read_bytes().rpartition(b" ")[2]
            segment.write_bytes(segment.read_bytes().rpartition(b" ")[0] + b" " + other)
        case "receipt":
            shutil.copyfile(segment_of(place, 2).with_suffix(".receipt"), segment.with_suffix(".receipt"))
        case "node key":
            segment.parent.parent.rename(segment.parent.parent.with_name("0" * 32))
        case "verifier":
            trust = json.loads((tmp_path / "trust.json").read_text())
            name, key_id, _ = trust["log_vkey"].split("+", 2)
            key = b"\x01" + Ed25519PrivateKey.generate().public_key().public_bytes_raw()
            trust["log_vkey"] = f"{name}+{key_id}+{b64encode(key).decode()}"
            (tmp_path / "trust.json").write_text(json.dumps(trust, separators=(",", ":")))
    if what in ("signature", "receipt", "node key"):
        relist(tmp_path / "evidence")
    done = shell(tmp_path)
    assert done.returncode != 0
    # What holds is found before: only the step that looks for this fails.
    assert ("FAILED" in done.stderr + done.stdout) == (what == "copy")


def relist(evidence: Path) -> None:
    """Write the manifest's hashes anew, as a forger would."""
    from hashlib import sha256

    path = evidence / "bundle.json"
    manifest = json.loads(path.read_text())
    found = sorted(p for p in evidence.rglob("*") if p.is_file() and p != path)
    manifest["files"] = {str(p.relative_to(evidence)): sha256(p.read_bytes()).hexdigest() for p in found}
    path.write_text(json.dumps(manifest, separators=(",", ":")))


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        (b'"busy_us":[', b'"busy_us":[1', {"broken link", "wrong root", "row of ours", "row of theirs"}),
        (
            b'"type":"usage"',
            b'"type":"usual"',
            {"broken link", "wrong root", "row of ours", "row of theirs", "gap of ours"},
        ),
    ],
)
def test_the_queries_find_a_changed_entry(place: Path, tmp_path: Path, old: bytes, new: bytes, wrong: set[str]) -> None:
    shutil.copytree(place / "evidence", tmp_path / "evidence")
    flipped(segment_of(tmp_path), old, new)
    _, printed = by_hand.recompute(tmp_path)
    assert {str(row[0]) for row in printed} == wrong


def test_the_queries_find_a_dropped_entry_and_a_changed_total(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "evidence", tmp_path / "evidence")
    flipped(tmp_path / "evidence" / "totals.json", b'"time_us":', b'"time_us":1')
    _, printed = by_hand.recompute(tmp_path)
    assert sorted(str(row[0]) for row in printed) == ["row of ours", "row of theirs"]

    segment = segment_of(tmp_path)
    lines = segment.read_bytes().split(b"\n")
    segment.write_bytes(b"\n".join(lines[:40] + lines[41:]))
    _, printed = by_hand.recompute(tmp_path)
    assert {"broken link", "wrong root", "gap of ours"} <= {str(row[0]) for row in printed}


def bundle_of(folder: Path, origin: Origin, lines: Sequence[bytes]) -> None:
    """As much of a bundle as the SQL reads: one log, in segments of different lengths, and the totals of our fold."""
    place = folder / "evidence" / "logs" / "a" / "1"
    place.mkdir(parents=True)
    for start in range(0, len(lines), 23):
        end = min(start + 23, len(lines))
        head = Checkpoint(origin, end, root_of(map(leaf_hash, lines[:end])))
        (place / f"{start}-{end}.segment").write_bytes(
            b"\n".join(lines[start:end]) + b"\n\n" + head.to_text() + b"\n- -\n"
        )
    folded = fold(origin, EMPTY, [parse_entry(line) for line in lines])
    totals = totals_json([to_row(key, values) for key, values in folded.rows.items()], folded.gaps)
    (folder / "evidence" / "totals.json").write_bytes(totals)


@pytest.mark.parametrize("seed", range(8))
def test_the_queries_agree_with_the_fold_on_random_logs(tmp_path: Path, seed: int) -> None:
    """Reboots, stepped clocks, chips that come, go and are retired, shares of all kinds, sums that saturate."""
    bundle_of(tmp_path, Origin(ORIGIN), stream(Random(seed), 80).lines)
    connection, printed = by_hand.recompute(tmp_path)
    assert printed == []
    assert connection.execute("SELECT count(*) > 20 FROM mine").fetchone() == (True,)


@pytest.mark.parametrize("name", [n for n in names("usage") if vector(n)["check"] == "fold"])
def test_the_queries_agree_with_the_vectors(tmp_path: Path, name: str) -> None:
    given = vector(name)["input"]
    bundle_of(tmp_path, Origin(given["origin"]), [line.encode() for line in given["entries"]])
    assert by_hand.recompute(tmp_path)[1] == []
