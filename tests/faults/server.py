"""A verifier on SQLite for fault injection: its commands on one folder, clients that drive it, what must hold after."""

import contextlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import urllib3

from keyturn_protocol.audit import audit
from keyturn_protocol.bundle import parse_trust, receipt_path, segment_path
from keyturn_protocol.chips import chip_table
from keyturn_protocol.ids import Origin
from tests.faults.strace import Call, Fault, calls, injecting, was_injected, watching
from tests.faults.warm import Ended, Running, Warm
from tests.support.node import Client, Node, Reply
from tests.support.verifier import DEPLOYMENT, FolderReader

PRELOAD: Final = (
    "keyturn_verifier.server",
    "keyturn_verifier.export",
    "uvloop",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.lifespan.on",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "sqlalchemy.dialects.postgresql",
    "alembic.command",
    "anyio._backends._asyncio",
)


@dataclass(frozen=True)
class Tokens:
    """What the template's verifier gave out."""

    join: str
    auditor: str
    operator: str


@dataclass
class Site:
    """One verifier's folder and the nodes that send to it."""

    folder: Path
    warm: Warm
    tokens: Tokens | None = None
    nodes: list[Node] = field(default_factory=list)
    receipts: dict[tuple[Origin, int], bytes] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def command(self, name: str) -> list[str]:
        state = ["--state", str(self.state)]
        match name:
            case "init":
                return ["init", *state, "--deployment", DEPLOYMENT]
            case "token":
                return ["token", "create", *state, "--organisation", "acme", "--site", "fra1", "--hosts", "9"]
            case "list":
                return ["token", "list", *state]
            case "auditor" | "operator":
                return ["token", "create", *state, "--role", name]
            case "serve":
                return ["serve", *state, "--port", "0", "--port-file", f"{self.folder}/port"]
            case "export":
                return ["export", *state, "--out", f"{self.folder}/bundle"]
            case _:
                raise AssertionError(name)

    def run(self, name: str) -> str:
        """A command that has to succeed; what it printed."""
        ended = self.warm.run(self.folder, *self.command(name))
        assert ended.status == 0, f"{name} ended with {ended.status}: {ended.err}"
        return ended.out.strip()

    def make(self) -> Tokens:
        """A new verifier."""
        self.folder.mkdir()
        self.run("init")
        self.tokens = Tokens(self.run("token"), self.run("auditor"), self.run("operator"))
        return self.tokens

    def copy(self, folder: Path) -> "Site":
        """A verifier of the same keys and tokens, in another place."""
        folder.mkdir()
        shutil.copytree(self.state, folder / "state")
        (folder / "state").chmod(0o700)
        nodes = [node.copy() for node in self.nodes]
        return Site(folder, self.warm, self.tokens, nodes, dict(self.receipts))

    # -- serving

    def serve(self, trace: Sequence[str] = ()) -> Ended:
        """Serve while the clients do their work, and end it."""
        running = self.warm.start(self.folder, *self.command("serve"), trace=trace)
        try:
            if (client := self.ready(running)) is not None:
                self.drive(client)
        finally:
            if running.alive():
                running.signal(15)
            ended = running.wait()
        return ended

    def serve_once(self) -> None:
        """Fill a verifier."""
        ended = self.serve()
        assert ended.status == 0, ended.err
        (self.folder / "port").unlink()

    def ready(self, running: Running) -> Client | None:
        """A client, once the server is ready; None if it ended before."""
        port = self.folder / "port"
        while not port.exists():
            if not running.alive():
                return None
            time.sleep(0.002)
        return Client(f"http://127.0.0.1:{port.read_text().strip()}", timeout=20)

    def drive(self, client: Client) -> None:
        """What agents, an auditor and an operator do in a minute; whatever fails is asked for again later."""
        assert self.tokens is not None
        if not self.nodes:
            for seed in (1, 2):
                node = Node.new(DEPLOYMENT, seed=seed)
                node.genesis()
                node.inventory(first=seed)
                self.nodes.append(node)
        # A client that finds no server has nothing more to do.
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            for node in self.nodes:
                if not node.sent:
                    _fine(client.join(node, self.tokens.join), 409)
                self._send(client, node)
                node.usage(2)
                self._send(client, node)
                node.usage(2)
                self._send(client, node)
                _fine(client.head(node), 404)
            _fine(client.get("/v1/bundle", self.tokens.auditor))
            close = {"node_id": self.nodes[0].name.node_id, "code": "gap", "reason": "known"}
            body = json.dumps(close, separators=(",", ":"), sort_keys=True).encode()
            headers = {"authorization": f"Bearer {self.tokens.operator}", "content_type": "application/json"}
            _fine(client.request("POST", "/v1/findings/close", body, **headers), 404)
            _fine(client.get("/v1/usage", self.tokens.auditor))
            _fine(client.get("/readyz"))

    def _send(self, client: Client, node: Node) -> None:
        answer = _fine(client.post(node.range(node.sent, node.size)), 404, 409)
        if answer.status == 200:
            known = self.receipts.setdefault((node.origin, node.size), answer.body)
            assert known == answer.body, "another receipt for the same head"
            node.sent = node.size

    def recover(self) -> None:
        """Serve again without a fault: what was not answered is sent again, and gets its receipt."""
        assert self.tokens is not None
        (self.folder / "port").unlink(missing_ok=True)
        running = self.warm.start(self.folder, *self.command("serve"))
        client = self.ready(running)
        try:
            assert client is not None, f"it doesn't start again: {running.err()}"
            for node in self.nodes:
                assert client.join(node, self.tokens.join).status in (200, 409)
                if node.sent < node.size:
                    self._send(client, node)
                assert node.sent == node.size, f"{node.origin}: not taken"
        finally:
            if running.alive():
                running.signal(15)
            ended = running.wait()
        assert ended.status == 0, ended.err
        assert "Traceback" not in ended.err, ended.err

    def check(self) -> None:
        """The audit passes, and every receipt that was handed out is there, byte for byte."""
        self.run("export")
        self.audit()

    def audit(self) -> None:
        bundle = self.folder / "bundle"
        report = audit(FolderReader(bundle), parse_trust((self.state / "trust.json").read_bytes()), chip_table())
        assert report.outcome == "pass", report.reasons
        assert report.entries == sum(node.size for node in self.nodes)
        codes = {finding.code.value for finding in report.findings}
        assert codes <= {"gap"}, codes
        stored = {}
        for path in bundle.rglob("*.segment"):
            start, _, end = path.stem.partition("-")
            name = next(n.name for n in self.nodes if n.name.node_id in str(path))
            stored[name.origin, int(end)] = (
                bundle / receipt_path(segment_path(name, int(start), int(end)))
            ).read_bytes()
        for key, held in self.receipts.items():
            assert stored.get(key) == held, f"{key} was receipted and is not in the bundle"


def _fine(answer: Reply, *also: int) -> Reply:
    """That an answer is no 5xx but 503 with Retry-After."""
    if answer.status == 503:
        assert answer.headers.get("retry-after", "").isdigit(), answer
        return answer
    assert answer.status in (200, *also), answer
    return answer


@dataclass(frozen=True)
class Phase:
    """One command of the verifier that meets the fault. `template`: what it is run on, None for nothing."""

    name: str
    template: str | None

    def _run(self, site: Site, trace: Sequence[str]) -> Ended:
        if self.name == "serve":
            return site.serve(trace)
        return site.warm.start(site.folder, *site.command(self.name), trace=trace).wait()

    def watch(self, site: Site) -> tuple[str, set[Call]]:
        """A run without a fault: how it ended, and its file calls."""
        out = site.folder / "trace"
        ended = self._run(site, watching(out))
        return seen_of(ended), calls(out, site.folder)

    def inject(self, site: Site, call: Call, fault: Fault) -> str | None:
        """A run with one; how it ended, or None where it didn't come to that call."""
        out = site.folder / "trace"
        ended = self._run(site, injecting(out, site.folder, call, fault))
        seen = seen_of(ended)
        if ended.status == 0 and self.name == "token":
            assert ended.out.startswith("ktj_"), "no token was printed"
        return seen if ended.killed or was_injected(out) else None

    def after(self, site: Site) -> None:
        """That what is there is whole, and that the verifier goes on with it."""
        match self.name:
            case "init":
                if not site.state.exists():
                    site.run("init")
                site.run("token")
            case "token":
                before = site.run("list").count("\n")
                site.run("token")
                assert site.run("list").count("\n") == before + 1
                site.recover()
            case "serve":
                site.recover()
                site.check()
            case "export":
                if (site.folder / "bundle").exists():
                    site.audit()
                    (site.folder / "bundle").rename(site.folder / "first")
                site.check()


PHASES: Final = (Phase("init", None), Phase("token", "new"), Phase("serve", "new"), Phase("export", "used"))


def seen_of(ended: Ended) -> str:
    """How a run ended, in words; a trace of Python's is never right."""
    assert "Traceback" not in ended.err, "a foreign exception: " + " | ".join(ended.err.splitlines()[-6:])
    if ended.killed:
        return "killed"
    if ended.status == 0:
        return "went on"
    # 3: a disk that fails under the database leaves open what became of it.
    assert ended.status in (1, 3), f"exit {ended.status}: {ended.err}"
    assert "keyturn: error: " in ended.err, ended.err
    return "ended with its error"
