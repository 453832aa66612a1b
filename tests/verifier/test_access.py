"""Who may do what: every role against every route, from one table."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from keyturn_verifier import operators, tokens
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
    ("GET", "/v1/replacements", READ),
    ("GET", "/v1/bundle", BUNDLE),
    ("GET", "/metrics", METRICS),
]


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
    from keyturn_verifier.app import create_app

    public = {"/v1/join", "/v1/segments", "/healthz", "/readyz", "/log/checkpoint", "/log/{path}", "/openapi.json"}
    public |= {"/v1/logs/{node}/{incarnation}/head", "/v1/authority", "/v1/runs/{run}/permit"}
    served_ones = create_app(served[0].service).openapi()["paths"]
    paths = [(m.upper(), path) for path, ways in served_ones.items() for m in ways if path not in public]
    # Statements are posted by anybody, and leases asked for: signatures decide.
    paths.remove(("POST", "/v1/statements"))
    paths.remove(("POST", "/v1/leases"))
    paths.remove(("POST", "/v1/runs/{run}/openings"))
    shapes = [(method, path.partition("?")[0].count("/")) for method, path, _ in ROUTES]
    assert sorted((m, p.count("/")) for m, p in paths) == sorted(shapes)


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
