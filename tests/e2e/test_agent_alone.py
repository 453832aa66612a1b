"""A GPU host installs the agent and nothing else: it runs there, and nothing of the server is present."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from keyturn_protocol.entries import Usage
from tests.agent.fakes import TOKEN, FakeVerifier, over_http
from tests.support.optional import require
from tests.support.paths import REPO

pytestmark = pytest.mark.timeout(400)

SERVER_PACKAGES = [
    "alembic",
    "fastapi",
    "httptools",
    "psycopg",
    "pydantic",
    "rich",
    "sqlalchemy",
    "sqlmodel",
    "starlette",
    "typer",
    "uvicorn",
    "uvloop",
]

# What pip says when it reaches no index at all; anything else that goes wrong is a failure of ours.
NO_NETWORK = ("NewConnectionError", "ConnectTimeoutError", "NameResolutionError", "Network is unreachable")


def run(*command: str | Path, cwd: Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Runs a program as a host would: no PYTHONPATH, nothing of the checkout in reach."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def succeed(*command: str | Path, cwd: Path, timeout: float = 60) -> str:
    """The standard output of a command that has to exit with 0."""
    done = run(*command, cwd=cwd, timeout=timeout)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment with the wheel, its [agent] extra and no more."""
    place = tmp_path_factory.mktemp("host")
    build: list[str | Path] = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", place]
    succeed(*build, cwd=REPO)
    (wheel,) = place.glob("keyturn-*.whl")

    environment = place / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q"]

    lock = REPO / "requirements" / "agent.txt"
    installed = run(*pip, "--retries", "1", "--require-hashes", "-r", lock, cwd=place, timeout=300)
    unreachable = any(sign in installed.stderr for sign in NO_NETWORK)
    require("index", not unreachable, "no package index can be reached")
    assert installed.returncode == 0, installed.stderr

    # Without an index, so that this fails when the lock leaves out something that the extra names.
    succeed(*pip, "--no-index", f"{wheel}[agent]", cwd=place, timeout=120)
    return environment / "bin"


def replay_recording(host: Path, place: Path) -> None:
    """Runs the agent of `host` on a recording until it ends, with its state in `place`.

    The verifier is this process: the host has none.
    """
    verifier = FakeVerifier()
    state, trust, token = place / "state", place / "trust.json", place / "token"
    trust.write_bytes(verifier.pinned.data)
    token.write_text(TOKEN)
    agent = host / "keyturn-agent"
    recording = REPO / "hardware_fixtures" / "h100_pcie_training" / "recording.jsonl"
    with over_http(verifier) as url:
        enroll = ["enroll", "--state", state, "--verifier", url, "--trust", trust, "--token-file", token]
        assert "enrolled" in succeed(agent, *enroll, cwd=place)
        succeed(agent, "run", "--state", state, "--recording", recording, "--fast", cwd=place)
    assert any(isinstance(entry, Usage) for entry in verifier.entries())
    assert '"spool_segments":0' in succeed(agent, "status", "--state", state, "--json", cwd=place)


def test_agent_shows_its_help(host: Path, tmp_path: Path) -> None:
    assert "usage: keyturn-agent" in succeed(host / "keyturn-agent", "--help", cwd=tmp_path)


def test_every_module_of_agent_and_protocol_imports(host: Path, tmp_path: Path) -> None:
    walk = (
        "import importlib, pkgutil\n"
        "for name in ('keyturn_protocol', 'keyturn_agent'):\n"
        "    package = importlib.import_module(name)\n"
        "    for found in pkgutil.walk_packages(package.__path__, name + '.'):\n"
        "        if not found.name.endswith('__main__'):\n"
        "            print(importlib.import_module(found.name).__name__)\n"
    )
    assert "keyturn_agent.cli" in succeed(host / "python", "-c", walk, cwd=tmp_path).split()


@pytest.mark.parametrize("package", SERVER_PACKAGES)
def test_nothing_of_the_server_is_there(host: Path, tmp_path: Path, package: str) -> None:
    look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is not None)"
    assert run(host / "python", "-c", look, cwd=tmp_path).returncode == 0, f"{package} came with the agent"


@pytest.mark.parametrize(("program", "extra"), [("keyturn", "cli"), ("keyturn-verifier", "verifier")])
def test_the_other_programs_say_which_extra_they_need(host: Path, tmp_path: Path, program: str, extra: str) -> None:
    done = run(host / program, "--help", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"keyturn: hint: pip install 'keyturn[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_agent_runs_on_a_recording(host: Path, tmp_path: Path) -> None:
    replay_recording(host, tmp_path)
