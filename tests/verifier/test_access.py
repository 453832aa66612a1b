"""Who may do what: every role against every route, from one table; and what is there for those who are nobody."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from keyturn_protocol.tiles import tiles_of
from keyturn_verifier import operators, tokens, translog
from keyturn_verifier.db.engine import writing
from tests.support.node import Node
from tests.support.office import Office
from tests.support.people import ANNA, replaces
from tests.support.starter import Starter, hash_of
from tests.support.verifier import DEPLOYMENT, Verifier

READ, SWITCH, BUNDLE, REVIEW, METRICS = "read", "switch", "bundle", "review", "metrics"
MAY = {
    "operator": {READ, SWITCH, REVIEW, METRICS},
    "auditor": {READ, SWITCH, BUNDLE},
    "admin": {READ, SWITCH, BUNDLE, REVIEW, METRICS},
    "approver": {SWITCH},
}
LOG = "/v1/logs/{node}/1"
ROUTES = [
    ("GET", "/v1/nodes", READ),
    ("GET", "/v1/nodes/{node}", READ),
    ("GET", "/v1/logs", READ),
    ("GET", LOG, READ),
    ("GET", LOG + "/segments", READ),
    ("GET", LOG + "/segments/0", READ),
    ("GET", LOG + "/segments/0/receipt", READ),
    ("GET", LOG + "/proof/inclusion?index=0&size=1", READ),
    ("GET", LOG + "/proof/consistency?old_size=1&size=2", READ),
    ("GET", "/v1/log/proof/inclusion?index=0&size=1", READ),
    ("GET", "/v1/log/proof/consistency?old_size=1&size=1", READ),
    ("GET", "/v1/usage", READ),
    ("GET", "/v1/usage/buckets?bucket=month&by=site", READ),
    ("GET", "/v1/workloads", READ),
    ("GET", "/v1/findings", READ),
    ("GET", "/v1/findings/groups", READ),
    ("POST", "/v1/findings/close", REVIEW),
    ("GET", "/v1/maintenance", READ),
    ("POST", "/v1/maintenance", REVIEW),
    ("POST", "/v1/maintenance/1/cancel", REVIEW),
    ("GET", "/v1/statements", SWITCH),
    ("GET", "/v1/statements/{run}", SWITCH),
    ("GET", "/v1/runs", SWITCH),
    ("GET", "/v1/runs/{run}", SWITCH),
    ("GET", "/v1/runs/{run}/openings", SWITCH),
    ("GET", "/v1/leases", SWITCH),
    ("GET", "/v1/leases/{lease}", SWITCH),
    ("GET", "/v1/allowance", SWITCH),
    ("GET", "/v1/replacements", READ),
    ("GET", "/v1/bundle", BUNDLE),
    ("GET", "/log/tile/entries/000.p/3", READ),
    ("GET", "/metrics", METRICS),
]
NOBODYS_RUN, NOBODYS_NODE = "0" * 64, "0" * 32
PUBLIC: dict[tuple[str, str], list[bytes | None]] = {
    ("GET", "/healthz"): [None],
    ("GET", "/readyz"): [None],
    ("GET", "/openapi.json"): [None],
    ("GET", "/log/checkpoint"): [None],
    ("GET", "/log/{path}"): [None],
    ("GET", "/v1/authority"): [None],
    ("GET", "/v1/logs/{node}/{incarnation}/head"): [None],
    ("GET", "/v1/runs/{run}/permit"): [None],
    ("POST", "/v1/join"): [b"", b'{"token":"x","vkey":"x"}'],
    ("POST", "/v1/leases"): [b"", b'{"origin":"%s/node/%s/1","seq":2}' % (DEPLOYMENT.encode(), NOBODYS_NODE.encode())],
    ("POST", "/v1/runs/{run}/openings"): [b"", b'{"parts":{},"v":1}'],
    ("POST", "/v1/segments"): [b"", b"x"],
    ("POST", "/v1/statements"): [b"", b"{}"],
}
"""Routes that ask for no token, and bodies that anybody can make up for them."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Verifier, Node, dict[str, str]]]:
    with Verifier(tmp_path_factory.mktemp("roles")) as verifier:
        node = verifier.enrolled(usage=2)
        given = {role: verifier.reader_token() for role in MAY}
        with writing(verifier.engine) as connection:
            for number, role in enumerate(MAY, 1):
                connection.execute(
                    text("UPDATE reader_token SET role = :role WHERE id = :id"), {"role": role, "id": number}
                )
        operators.add(verifier.state, ANNA.text, "anna")
        said = replaces(node.name.node_id, "00" * 16, deployment=DEPLOYMENT)
        assert verifier.client.request("POST", "/v1/statements", said).status == 200
        office, host = Office.opened(verifier), Starter.enrolled(verifier, 7)
        given["run"] = office.approved()
        assert office.give(given["run"], office.openings).status == 204
        given["lease"] = hash_of(host.leased(given["run"]))
        given["host"], given["chip"] = host.node.name.node_id, host.uuids[0]
        with writing(verifier.engine) as connection:
            translog.publish(connection, verifier.keys.log, verifier.clock())
        yield verifier, node, given


@pytest.mark.parametrize(("method", "path", "right"), ROUTES, ids=[f"{m} {p}" for m, p, _ in ROUTES])
def test_each_role_may_do_what_the_table_says(
    served: tuple[Verifier, Node, dict[str, str]], method: str, path: str, right: str
) -> None:
    verifier, node, given = served
    target = path.format(node=node.name.node_id, run=given["run"], lease=given["lease"])
    for role, token in ((role, given[role]) for role in MAY):
        answer = verifier.client.request(
            method, target, b"{}" if method == "POST" else None, authorization=f"Bearer {token}"
        )
        if right in MAY[role]:
            assert answer.status not in (401, 403), role
            assert method == "POST" or answer.status == 200, answer
        else:
            assert (answer.status, answer.code) == (403, "forbidden"), role
    for bad in ("Bearer nonsense", "Bearer ", "Basic eDp5"):
        assert verifier.client.request(method, target, None, authorization=bad).status == 401


def test_the_table_has_every_route_that_asks_for_a_token(served: tuple[Verifier, Node, dict[str, str]]) -> None:
    document = json.loads(served[0].client.get("/openapi.json").body)["paths"]
    every = {(m.upper(), path): "security" in says for path, ways in document.items() for m, says in ways.items()}
    assert {route for route, asks in every.items() if not asks} == set(PUBLIC)
    paths = [(method, path.replace("{path}", "000/3")) for (method, path), asks in every.items() if asks]
    shapes = [(method, path.partition("?")[0].count("/")) for method, path, _ in ROUTES]
    assert sorted((m, p.count("/")) for m, p in paths) == sorted(shapes)


def test_nobody_learns_of_a_run_or_a_node(served: tuple[Verifier, Node, dict[str, str]]) -> None:
    """What any client gets without a token, of every route and tile, names no run, lease, node or chip.

    A run's hash is the key to its permit, and a node's id with the number of an entry to a lease: :data:`PUBLIC` is
    safe as long as nothing in it leads to one of them.
    """
    verifier, node, given = served
    names = [given["run"], given["lease"], given["host"], given["chip"], node.name.node_id, "aurora", "language model"]
    secrets = [name.encode() for name in names]
    secrets += [bytes.fromhex(name) for name in names if len(name) in (32, 64)]
    secrets += [base64.b64encode(secret).rstrip(b"=") for secret in secrets]

    size = int(verifier.client.get("/log/checkpoint").body.split(b"\n")[1])
    leaves = b"".join(verifier.leaves()[:size])
    assert all(given[what].encode() in leaves for what in ("run", "lease", "host"))  # else this would be about nothing
    tiles = [tile.path for tile in tiles_of(size)]
    tiles += ["./" + tiles[0], tiles[0].replace("/", "%2f"), "tile/../" + tiles[0], tiles[0].upper(), "/" + tiles[0]]

    filled = {"run": NOBODYS_RUN, "node": NOBODYS_NODE, "incarnation": "1"}
    asked: dict[tuple[str, str], list[bytes | None]] = {
        (method, path): [None if method == "GET" else b"{}"] for method, path, _ in ROUTES if path != "/metrics"
    }
    for (method, path), bodies in (asked | PUBLIC).items():
        for tile in tiles if "{path}" in path else [""]:
            target = path.format(path=tile, lease=NOBODYS_RUN, **filled)
            for body in bodies:
                answer = verifier.client.request(method, target, body)
                said = answer.body + repr(answer.headers).encode()
                assert not [secret for secret in secrets if secret in said], (method, target)
                assert (method, path) in PUBLIC or answer.code == "unauthorized", (method, target, answer)
                assert "entries" not in target.lower() or answer.status in (401, 404), target


def test_metrics_are_for_this_machine_or_a_token(served: tuple[Verifier, Node, dict[str, str]]) -> None:
    client = served[0].client
    assert client.get("/metrics").status == 200
    for header in ("forwarded", "x_forwarded_for", "via"):
        assert client.request("GET", "/metrics", None, **{header: "x"}).status == 401


def test_a_token_of_an_unknown_role_is_not_made(tmp_path: Path) -> None:
    from tests.support.verifier import call

    assert call("init", "--state", tmp_path / "s", "--deployment", "a.example").returncode == 0
    assert call("token", "create", "--state", tmp_path / "s", "--role", "root").returncode == 2
    for role in ("approver", "admin"):
        assert call("token", "create", "--state", tmp_path / "s", "--role", role).returncode == 0
    assert "admin" in call("token", "list", "--state", tmp_path / "s").stdout


def test_what_is_stored_of_a_token_is_not_the_token(served: tuple[Verifier, Node, dict[str, str]]) -> None:
    verifier, _, given = served
    stored = repr(verifier.dump()["reader_token"])
    assert not any(token in stored for token in given.values())
    assert tokens.digest(given["admin"]) in [row[1] for row in verifier.dump()["reader_token"]]
