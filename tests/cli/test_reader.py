"""The folder reader: nothing outside of the folder is read, and nothing that isn't a file."""

import os
import pickle
from pathlib import Path

import pytest

from keyturn_cli import reader as reading
from keyturn_cli.reader import FolderReader
from keyturn_protocol.audit import audit
from keyturn_protocol.bundle import TOTALS
from keyturn_protocol.chips import chip_table
from keyturn_protocol.errors import Code, ProtocolError
from tests.support.bundles import Bundle


def test_it_gives_what_is_there(evidence: Path, made: Bundle) -> None:
    reader = FolderReader(str(evidence))
    assert sorted(reader.paths()) == sorted(made.files)
    assert all(reader.read(path) == data for path, data in made.files.items())
    assert audit(pickle.loads(pickle.dumps(reader)), made.trust, chip_table()).outcome == "pass"  # noqa: S301


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "/etc/passwd",
        "logs/../../secret",
        "",
        ".",
        "logs//x",
        "logs/",
        "./totals.json",
        "a\0b",
        "/".join("x" * 20),
    ],
)
def test_paths_that_leave_the_folder_or_have_two_names(evidence: Path, path: str) -> None:
    (evidence.parent / "secret").write_bytes(b"secret")
    with pytest.raises(ProtocolError) as refused:
        FolderReader(str(evidence)).read(path)
    assert refused.value.code is Code.BAD_BUNDLE


def test_links_are_neither_followed_nor_listed(evidence: Path) -> None:
    secret = evidence.parent / "secret"
    secret.mkdir()
    (secret / "file").write_bytes(b"secret")
    reader = FolderReader(str(evidence))
    (evidence / "link").symlink_to(secret / "file")
    (evidence / "folder").symlink_to(secret)
    for path in ("link", "folder/file"):
        with pytest.raises(ProtocolError, match="can't read"):
            reader.read(path)
    with pytest.raises(ProtocolError, match="neither a file nor a folder"):
        list(reader.paths())


def test_a_linked_file_in_a_bundle_is_a_contradiction(evidence: Path, made: Bundle) -> None:
    kept = evidence.parent / "kept.json"
    (evidence / TOTALS).rename(kept)
    (evidence / TOTALS).symlink_to(kept)
    with pytest.raises(ProtocolError, match="neither a file nor a folder"):
        audit(FolderReader(str(evidence)), made.trust, chip_table())


def test_pipes_and_folders_are_no_files(evidence: Path) -> None:
    os.mkfifo(evidence / "pipe")
    reader = FolderReader(str(evidence))
    for path in ("pipe", "logs"):
        with pytest.raises(ProtocolError):
            reader.read(path)
    with pytest.raises(ProtocolError, match="neither a file nor a folder"):
        list(reader.paths())


def test_files_over_the_cap_of_their_kind(evidence: Path, made: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made.segments()[0]
    monkeypatch.setattr(reading, "SEGMENT_BYTES", 100)
    with pytest.raises(ProtocolError) as refused:
        FolderReader(str(evidence)).read(path)
    assert refused.value.code is Code.TOO_LARGE


def test_names_that_would_change_a_terminal(evidence: Path) -> None:
    (evidence / "a\x1b[2J").write_bytes(b"")
    with pytest.raises(ProtocolError, match="not printable"):
        list(FolderReader(str(evidence)).paths())
