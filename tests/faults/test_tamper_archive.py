"""Forged tars, frames and folders: `keyturn audit` refuses what `keyturn bundle` wouldn't have written."""

import json
import re
import shutil
from pathlib import Path

import pytest

from keyturn_protocol.canonical import encode_record
from tests.faults import table
from tests.faults.tamper.archive import folders, forgery
from tests.faults.tamper.forgery import Forgery
from tests.faults.tamper.world import world

WHERE = "bundle as a file, anyone"


def audit(bundle: Path, trust: Path, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status, and what was said."""
    from keyturn_cli import output
    from keyturn_cli.main import main

    output.results.cache_clear()
    output.talk.cache_clear()
    capfd.readouterr()
    code = main(["audit", str(bundle), "--trust", str(trust), "--json"])
    out, err = capfd.readouterr()
    return code, " ".join(json.loads(out)["reasons"]) if out else err.strip()


@pytest.fixture
def trust(tmp_path: Path) -> Path:
    path = tmp_path / "trust.json"
    path.write_bytes(encode_record(world().trust))
    return path


def check(made: Forgery, code: int, said: str) -> str:
    assert code == (0 if made.outcome == "pass" else 1), (made.name, said)
    assert re.search(made.says, said), (made.name, said)
    words = re.sub(r"^keyturn: error: |\(expected.*|\(got.*|\n.*", "", said).strip()
    words = re.sub(r"/\S*/|can't read \S+: ", "", words)
    return f"exit {code}" + (f": {words[:100]}" if words else "")


def record(made: Forgery, said: list[str]) -> None:
    expected = "not found: the same files" if made.outcome == "pass" else "found"
    table.record_all("tamper", WHERE, made.name, expected=expected, seen=said)


@pytest.mark.parametrize("made", forgery, ids=lambda f: f.name.replace(" ", "_"))
def test_a_forged_file(made: Forgery, tmp_path: Path, trust: Path, capfd: pytest.CaptureFixture[str]) -> None:
    variants = list(made.make(world()))
    said = []
    for data in variants if table.LONG else variants[:2]:
        (tmp_path / "bundle").write_bytes(data)
        said.append(check(made, *audit(tmp_path / "bundle", trust, capfd)))
    record(made, said)


@pytest.mark.parametrize("made", folders, ids=lambda f: f.name.replace(" ", "_"))
def test_a_forged_folder(made: Forgery, tmp_path: Path, trust: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "evidence"
    for path, data in world().bundle.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    record(made, [check(made, *audit(changed, trust, capfd)) for changed in made.make(folder)])
    shutil.rmtree(folder)
