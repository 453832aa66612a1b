"""Bundles on disk, a verifier that answers what a test tells it to, and a real one whose parties have settings."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from keyturn_protocol.canonical import encode_record
from tests.support.bundles import Bundle, large
from tests.support.office import Office
from tests.support.verifier import Verifier


def write_bundle(bundle: Bundle, folder: Path) -> Path:
    for path, data in bundle.files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return folder


@pytest.fixture(scope="session")
def made() -> Bundle:
    return large()[1]


@pytest.fixture
def evidence(made: Bundle, tmp_path: Path) -> Path:
    """A clean bundle's folder."""
    return write_bundle(made, tmp_path / "evidence")


@pytest.fixture
def trust(made: Bundle, tmp_path: Path) -> Path:
    """The keys that it is audited with."""
    path = tmp_path / "trust.json"
    path.write_bytes(encode_record(made.trust))
    return path


@dataclass
class Asked:
    path: str
    headers: dict[str, str]


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})


@dataclass
class FakeVerifier:
    """Answers each request with the next answer, the last one again and again."""

    url: str = ""
    answers: list[Answer] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    def give(self, *answers: Answer) -> None:
        self.answers[:] = answers


@pytest.fixture
def verifier() -> Iterator[FakeVerifier]:
    fake = FakeVerifier()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fake.asked.append(Asked(self.path, {k.lower(): v for k, v in self.headers.items()}))
            answer = fake.answers.pop(0) if len(fake.answers) > 1 else fake.answers[0]
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            with contextlib.suppress(OSError):  # the client has had enough, as it should
                self.wfile.write(answer.body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield fake
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with Verifier(tmp_path / "v") as verifier:
        yield Office.opened(verifier)


@pytest.fixture
def asking(office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings with the verifier, the pinned root and an approver's token."""
    (tmp_path / "token").write_text(office.verifier.reader_token("approver"))
    config = tmp_path / "config.toml"
    url, root = office.verifier.client.url, office.root
    config.write_text(f'verifier = "{url}"\nroot = "sha256:{root}"\ntoken_file = "token"\n')
    monkeypatch.setenv("KEYTURN_CONFIG", str(config))
    return tmp_path


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def keyturn(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Run the program here: (exit code, stdout, stderr)."""
    from keyturn_cli import output
    from keyturn_cli.main import main

    for name in ("KEYTURN_TOKEN", "KEYTURN_VERIFIER"):
        monkeypatch.delenv(name, raising=False)
    if "KEYTURN_CONFIG" not in os.environ:
        monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")
    monkeypatch.setenv("KEYTURN_STATE", str(tmp_path / "seen-here"))

    def run(*arguments: object) -> tuple[int, str, str]:
        output.results.cache_clear()
        output.talk.cache_clear()
        capfdbinary.readouterr()
        code = main([str(a) for a in arguments])
        out, err = capfdbinary.readouterr()
        return code, out.decode(), err.decode()

    return run
