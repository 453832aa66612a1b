"""``keyturn-verifier`` as a program: what it makes, what it refuses, how it ends."""

import json
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from keyturn_protocol.bundle import check_trust, parse_trust
from keyturn_protocol.canonical import decode
from keyturn_protocol.root import Services
from keyturn_verifier import cli, config, keyfiles, server, state
from keyturn_verifier.clock import wall_clock
from keyturn_verifier.errors import OutcomeUnknown, VerifierError
from tests.support.descriptors import descriptors
from tests.support.node import Node
from tests.support.office import Office
from tests.support.verifier import DEPLOYMENT, Served, Verifier, call, run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = call("init", "--state", tmp_path / "state", "--deployment", DEPLOYMENT)
    assert made.returncode == 0, made.stderr
    assert made.stdout == f"{tmp_path / 'state' / 'trust.json'}\n"
    return tmp_path / "state"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_init_makes_keys_that_only_the_owner_reads_and_a_trust_file(folder: Path) -> None:
    assert mode(folder) == 0o700
    for name in ("log.key", "receipt.key", "lease.key", "verifier.db"):
        assert mode(folder / name) == 0o600
    data = (folder / "trust.json").read_bytes()
    log, receipt = check_trust(parse_trust(data))
    assert not data.endswith(b"\n")
    assert log.public_key != receipt.public_key
    keys = keyfiles.load(folder, DEPLOYMENT)
    assert (keys.log.public, keys.receipt.public) == (log, receipt)
    assert "PRIVATE" not in repr(keys)


def test_init_refuses_to_run_twice(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = call("init", "--state", folder, "--deployment", DEPLOYMENT)
    assert again.returncode == 1
    assert again.stderr.startswith("keyturn: error: ")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("fails", ["keyturn_verifier.state._fill", "keyturn_verifier.state._sync"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_an_init_that_fails_in_the_middle_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, elsewhere: bool
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fails, fail)
    db = f"sqlite:///{tmp_path / 'elsewhere.db'}" if elsewhere else None
    with pytest.raises(OSError, match="No space"):
        state.create(tmp_path / "state", DEPLOYMENT, db, wall_clock)
    assert list(tmp_path.iterdir()) == []


def test_init_with_a_database_elsewhere(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'data.db'}"
    assert call("init", "--state", tmp_path / "state", "--deployment", DEPLOYMENT, "--db", url).returncode == 0
    assert (tmp_path / "data.db").exists()
    assert not (tmp_path / "state" / "verifier.db").exists()
    assert call("token", "list", "--state", tmp_path / "state").returncode == 0
    again = call("init", "--state", tmp_path / "other", "--deployment", DEPLOYMENT, "--db", url)
    assert again.returncode == 1
    assert not (tmp_path / "other").exists()


def test_a_database_given_on_the_command_line_wins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file names none, so that the one in the folder is meant, which was moved."""
    url = f"sqlite:///{folder.parent / 'moved.db'}"
    (folder / "verifier.db").rename(folder.parent / "moved.db")
    assert cli.run(["token", "list", "--state", str(folder)]) == 1
    for command in (
        "token create --role auditor",
        "token list",
        "doctor",
        "check",
        f"export --out {folder.parent}/out",
    ):
        assert cli.run([*command.split(), "--state", str(folder), "--db", url]) == 0, command
    served: list[config.Config] = []
    monkeypatch.setattr(server, "serve", lambda settings, *_: served.append(settings))
    assert cli.run(["serve", "--state", str(folder), "--db", url]) == 0
    assert served == [config.load(folder, url)]
    assert served[0].db == url


@pytest.mark.parametrize(
    ("command", "url", "says"),
    [
        ("check", "mysql://localhost/x", "--db: must name a SQLite file or a PostgreSQL database"),
        ("token list", "nonsense", "--db: not a database URL"),
        ("operator list", "sqlite:////x.db", "unrecognized arguments"),
        ("root services", "sqlite:////x.db", "unrecognized arguments"),
    ],
)
def test_databases_that_no_command_can_use(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str, url: str, says: str
) -> None:
    assert cli.run([*command.split(), "--state", str(folder), "--db", url]) == 2
    assert says in capsys.readouterr().err


def test_a_database_of_another_verifier_is_refused(folder: Path) -> None:
    other = folder.parent / "other"
    state.create(other, DEPLOYMENT, None, wall_clock)
    assert cli.run(["token", "list", "--state", str(folder), "--db", f"sqlite:///{other / 'verifier.db'}"]) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--deployment", "Not A Name"], 2, "--deployment"),
        (
            ["--deployment", "ok.example", "--db", "postgresql://user:secret@127.0.0.1:1/x"],
            3,
            "database: connection failed",
        ),
        (["--deployment", "ok.example", "--db", "mysql://localhost/x"], 2, "SQLite file"),
        (["--deployment", "ok.example", "--db", "nonsense"], 2, "not a database URL"),
        (["--deployment", "ok.example", "--db", "sqlite:///relative.db"], 2, "absolute"),
        (["--deployment", "ok.example", "--db", "sqlite://"], 2, "SQLite file"),
        ([], 2, "--deployment"),
    ],
)
def test_inits_that_are_refused(tmp_path: Path, arguments: list[str], status: int, says: str) -> None:
    made = call("init", "--state", tmp_path / "state", *arguments)
    assert made.returncode == status
    assert says in made.stderr
    assert "Traceback" not in made.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_token_is_printed_once_and_listed_without_its_secret(folder: Path) -> None:
    join = call("token", "create", "--state", folder, "--organisation", "Acme", "--site", "fra1", "--hosts", "3")
    reader = call("token", "create", "--state", folder, "--role", "auditor", "--expires", "90d")
    assert re.fullmatch(r"ktj_[\w-]{43}\n", join.stdout)
    assert re.fullmatch(r"ktr_[\w-]{43}\n", reader.stdout)
    listed = call("token", "list", "--state", folder).stdout
    assert "0 of 3" in listed
    assert "auditor" in listed
    assert join.stdout.strip() not in listed
    assert reader.stdout.strip() not in listed
    assert call("token", "revoke", "--state", folder, "join-1").returncode == 0
    assert "revoked" in call("token", "list", "--state", folder).stdout
    assert call("token", "revoke", "--state", folder, "join-1").returncode == 2


def test_a_join_token_for_an_organisation_that_is_not_in_the_root_says_so(tmp_path: Path) -> None:
    def made(verifier: Verifier, organisation: str) -> tuple[str, str]:
        token = call("token", "create", "--state", verifier.state, "--organisation", organisation, "--site", "fra1")
        assert re.fullmatch(r"ktj_[\w-]{43}\n", token.stdout), token.stderr
        return token.stdout, token.stderr

    with Verifier(tmp_path) as verifier:
        assert made(verifier, "Acme")[1] == "", "there is no root yet that could have it"
        Office.opened(verifier)
        assert made(verifier, "acme")[1] == ""
        said = made(verifier, "Acme")[1]
    assert said.startswith("keyturn: hint: hosts that join with this get no allowance: ")
    assert "(expected acme, hosting or state, got 'Acme')" in said


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--organisation", "Acme"],
        ["--organisation", "Acme", "--site", "x", "--role", "auditor"],
        ["--organisation", "Acme\n", "--site", "x"],
        ["--organisation", "Acme", "--site", "x", "--hosts", "0"],
        ["--role", "auditor", "--hosts", "1"],
        ["--role", "auditor", "--expires", "soon"],
        ["--role", "auditor", "--expires", "0h"],
        ["--role", "king"],
    ],
)
def test_tokens_that_make_no_sense(folder: Path, arguments: list[str]) -> None:
    made = call("token", "create", "--state", folder, *arguments)
    assert (made.returncode, made.stdout) == (2, "")
    assert made.stderr.startswith("keyturn: error: ")


def test_two_workers_are_refused_with_the_reason(folder: Path) -> None:
    made = call("serve", "--state", folder, "--port", "0", "--workers", "2")
    assert made.returncode == 2
    assert "exactly one serving process" in made.stderr


def test_a_second_server_on_one_state_directory_is_refused(folder: Path) -> None:
    served = Served(folder)
    served.start()
    second = run("serve", "--state", folder, "--port", "0")
    assert second.returncode == 1
    assert "another process serves" in second.stderr
    assert served.terminate() == 0
    assert "ready on http://127.0.0.1:" in served.log()
    served.start()
    assert served.terminate() == 0


def test_a_port_that_is_taken(folder: Path) -> None:
    with Verifier(folder.parent / "other") as verifier:
        port = verifier.client.url.rpartition(":")[2]
        made = call("serve", "--state", folder, "--port", port)
    assert made.returncode == 1
    assert f"cannot listen on 127.0.0.1 port {port}" in made.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_ends_with_0(folder: Path, number: int) -> None:
    served = Served(folder)
    client = served.start()
    token = call("token", "create", "--state", folder, "--organisation", "Acme", "--site", "fra1").stdout.strip()
    node = Node.new(DEPLOYMENT)
    client.join(node, token)
    assert client.post(node.first()).status == 200
    served.process.send_signal(number)
    assert served.process.wait(timeout=60) == 0
    assert token not in served.log()
    with_note = Verifier(folder.parent)
    assert [size for size, _ in with_note.dump_checkpoints()][-1] == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", ["run", "startup"])
def test_a_signal_while_the_server_starts_is_not_lost(folder: Path, number: int, when: str) -> None:
    program = (
        "import os, sys\n"
        "from keyturn_verifier import cli, server\n"
        "from uvicorn import Server\n"
        f"begin = Server.{when}\n"
        "def signalled(*arguments, **named):\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    return begin(*arguments, **named)\n"
        f"Server.{when} = signalled\n"
        "sys.exit(cli.run(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", program, "serve", "--state", str(folder), "--port", "0"]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0


def test_tokens_and_exports_work_while_the_server_runs(folder: Path, tmp_path: Path) -> None:
    served = Served(folder)
    client = served.start()
    token = call("token", "create", "--state", folder, "--organisation", "Acme", "--site", "fra1").stdout.strip()
    node = Node.new(DEPLOYMENT)
    assert client.join(node, token).status == 200
    assert client.post(node.first(usage=3)).status == 200
    made = run("export", "--state", folder, "--out", tmp_path / "evidence", "--case", "demo")
    assert (made.returncode, made.stdout) == (0, f"{tmp_path / 'evidence'}\n"), made.stderr
    assert json.loads((tmp_path / "evidence" / "bundle.json").read_bytes())["export"]["case"] == "demo"
    assert served.terminate() == 0


def test_keys_that_others_can_read_are_refused(folder: Path) -> None:
    (folder / "log.key").chmod(0o644)
    made = call("serve", "--state", folder, "--port", "0")
    assert made.returncode == 1
    assert "others can read this key" in made.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "deployment and db must be strings"),
        ("nonsense", "verifier.toml"),
        ('deployment = "UPPER"', "deployment: "),
        ('deployment = "a.example"\nqueue = 1', "queue: no such key"),
        ('deployment = "a.example"\n[limits]\nqueue = 1', "limits.queue: no such key"),
        ('deployment = "a.example"\n[limits]\nqueue_bytes = -5', "limits.queue_bytes: must be an integer > 0 (got -5)"),
        ('deployment = "a.example"\nlimits = 1', "limits: must be a table"),
        ('deployment = "a.example"\ndb = "nonsense"', "verifier.toml: db: not a database URL"),
    ],
)
def test_configurations_that_are_refused(folder: Path, text: str, says: str) -> None:
    (folder / "verifier.toml").write_text(text)
    made = call("token", "list", "--state", folder)
    assert made.returncode == 1
    assert says in made.stderr


def test_a_folder_that_is_no_state_directory(tmp_path: Path) -> None:
    made = call("serve", "--state", tmp_path)
    assert made.returncode == 2
    assert "keyturn: hint: " in made.stderr


def test_a_missing_database_is_not_made_anew(folder: Path) -> None:
    (folder / "verifier.db").unlink()
    for arguments in (["serve"], ["token", "list"], ["export", "--out", folder / "out"]):
        made = call(*arguments, "--state", folder)
        assert made.returncode == 1
        assert "is not there" in made.stderr
    assert not (folder / "verifier.db").exists()


@pytest.mark.parametrize("command", [["token", "list"], ["serve"], ["doctor"], ["check"], ["export", "--out", "out"]])
def test_a_database_that_is_away_decides_nothing(folder: Path, command: list[str]) -> None:
    (folder / "verifier.toml").write_text(f'deployment = "{DEPLOYMENT}"\ndb = "postgresql://127.0.0.1:1/x"\n')
    made = call(*command, "--state", folder)
    assert made.returncode == 3, made.stderr
    assert made.stderr.startswith("keyturn: error: database: connection failed")


def test_a_database_that_others_hold_decides_nothing_and_one_that_is_damaged_does(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keyturn_verifier.db.engine.BUSY_TIMEOUT_S", 0)
    create: list[str | Path] = ["token", "create", "--state", folder, "--role", "auditor"]
    with closing(sqlite3.connect(folder / "verifier.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        held = call(*create)
        other.rollback()
        assert (held.returncode, "database is locked" in held.stderr) == (3, True), held.stderr
        other.execute("DROP TABLE reader_token")
        dropped = call(*create)
        assert (dropped.returncode, "no such table" in dropped.stderr) == (1, True), dropped.stderr
    (folder / "verifier.db").write_bytes(b"nothing of the kind" * 1_000)
    damaged = call(*create)
    assert (damaged.returncode, "not a database" in damaged.stderr) == (1, True), damaged.stderr


def test_a_commit_whose_outcome_nobody_knows_is_3(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise OutcomeUnknown("canceling wait for synchronous replication")

    monkeypatch.setattr("keyturn_verifier.db.engine._commit", lost)
    made = call("token", "create", "--state", folder, "--role", "auditor")
    assert (made.returncode, made.stdout) == (3, "")
    assert "did not say whether this was stored: canceling wait" in made.stderr
    assert "keyturn: hint: see what is there" in made.stderr


def test_a_command_lets_go_of_the_database_however_it_ends(folder: Path, tmp_path: Path) -> None:
    before = descriptors()
    assert call("token", "list", "--state", folder).returncode == 0
    assert call("export", "--state", folder, "--out", tmp_path / "out").returncode == 0
    assert call("export", "--state", folder, "--out", tmp_path / "out").returncode == 1, "it is there already"
    assert call("check", "--state", folder).returncode == 0
    kept = (folder / "trust.json").read_bytes()
    other = call("init", "--state", tmp_path / "other", "--deployment", DEPLOYMENT)
    assert other.returncode == 0
    (folder / "trust.json").write_bytes((tmp_path / "other" / "trust.json").read_bytes())
    assert call("token", "list", "--state", folder).returncode == 1, "of another verifier"
    (folder / "trust.json").write_bytes(kept)
    assert descriptors() == before


def test_the_lock_is_exclusive_and_goes_with_its_holder(folder: Path) -> None:
    def again() -> None:
        with state.serving(config.load(folder)):
            pass

    with state.serving(config.load(folder)), pytest.raises(VerifierError, match="another process"):
        again()
    again()


def test_the_installed_program_is_called_like_this(repo: Path) -> None:
    program = repo / ".venv" / "bin" / "keyturn-verifier"
    if not os.access(program, os.X_OK):
        pytest.skip("the package is not installed here")
    shown = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    assert shown.returncode == 0
    assert "serve" in shown.stdout


def test_ctrl_c_is_a_line_and_130(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(config, "load", interrupted)
    done = call("token", "list", "--state", folder)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "keyturn: error: interrupted\n")


def test_the_keys_that_a_root_names(tmp_path: Path) -> None:
    """A state directory from before there were leases gets its key once, whoever asks first."""
    folder = tmp_path / "state"
    assert call("init", "--state", folder, "--deployment", DEPLOYMENT).returncode == 0
    made = call("root", "services", "--state", folder)
    keys = keyfiles.load(folder, DEPLOYMENT)
    assert decode(made.stdout.strip().encode(), Services) == keys.services()
    (folder / "lease.key").unlink()
    assert keyfiles.load(folder, DEPLOYMENT).services() is None
    threads = [threading.Thread(target=keyfiles.with_lease, args=(folder, DEPLOYMENT)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, again = (call("root", "services", "--state", folder).stdout for _ in range(2))
    assert first == again != made.stdout
    assert (folder / "lease.key").stat().st_mode & 0o777 == 0o600
    assert not list(folder.glob(".lease-*"))
