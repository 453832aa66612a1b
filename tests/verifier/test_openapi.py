"""The OpenAPI document is current, and the server answers as it says, whatever is asked.

What is asked for is junk, or there: a path that names nothing shows only how its route refuses.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from keyturn_protocol.api import SEGMENT_TYPE, ProblemCode
from keyturn_protocol.api_switch import WAIT_S
from keyturn_protocol.canonical import encode
from keyturn_protocol.openings import format_openings
from keyturn_protocol.runs import Amend
from tests.support.office import Office
from tests.support.openapi import FILE, text
from tests.support.starter import Starter, hash_of
from tests.support.verifier import Verifier

DOCUMENT = json.loads(FILE.read_text())
schemathesis.serializer.alias(SEGMENT_TYPE, "application/octet-stream")
OPERATIONS = [(m, p) for p, ways in DOCUMENT["paths"].items() for m in ways]
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
SIGNED = {("post", "/v1/join"), ("post", "/v1/segments"), ("post", "/v1/statements")}
"""What nobody guesses a body for. All else is answered at least once with what was asked for."""


def test_the_committed_document_is_current() -> None:
    assert FILE.read_text(encoding="utf-8") == text(), "python -m tests.support.openapi writes it"


def test_every_problem_code_is_stated_somewhere() -> None:
    stated = set(json.dumps(DOCUMENT).split("urn:keyturn:problem:")[1:])
    codes = {entry.partition('"')[0] for entry in stated}
    assert {str(code) for code in ProblemCode} - codes == {"method_not_allowed"}


@dataclass(frozen=True)
class Served:
    """A verifier with something in every list, and what there is to ask it for."""

    verifier: Verifier
    token: str
    parameters: dict[str, list[Any]]
    """By their names, or by path and name, where that says more."""
    bodies: dict[str, list[bytes]]
    """By path; canonical, as nothing else is read."""

    def there(self, path: str, name: str) -> list[Any]:
        """What a parameter of this path can ask for and get."""
        return self.parameters.get(f"{path} {name}", self.parameters.get(name, []))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Verifier(tmp_path_factory.mktemp("openapi")) as verifier:
        node = verifier.enrolled(usage=3)
        office = Office.opened(verifier)
        hosts = [Starter.enrolled(verifier, number) for number in (1, 2)]
        run, stopped, asked = office.approved(), office.approved(), office.request()
        for one in (run, stopped):
            assert office.give(one, office.openings).status == 204
        leases = [hosts[0].leased(run), hosts[1].leased(None)]
        for host, lease in zip(hosts, leases, strict=True):
            host.report(lease, 2)
        more = office.scope(budget_tflop=3 * office.scope().budget_tflop)
        amendment = office.make_proposal(Amend, run, scope=more, spec=office.view(run).spec)
        proposal = office.ok(amendment, "lab-a/ada")
        suspension = office.suspend(stopped)
        nodes = [node.name.node_id, *(host.node.name.node_id for host in hosts)]
        parameters: dict[str, list[Any]] = {
            **{"run": [run, stopped, asked], "proposal": [proposal], "node": nodes, "incarnation": [1], "start": [0]},
            **{"index": [0], "old_size": [1], "size": [1], "window": [1], "path": ["tile/0/000.p/1"]},
            "/log/tile/entries/{path} path": ["000.p/1"],
            "/v1/leases/{sha256} sha256": [hash_of(lease) for lease in leases],
            "/v1/statements/{sha256} sha256": [run, office.policy, suspension],
            # Nobody has given any of the one that was only asked for.
            "/v1/runs/{run}/openings run": [run, stopped],
        }
        entries = [(host.node.origin, seq) for host in hosts for seq in range(host.node.size + 1)]
        window = {"node_id": nodes[0], "site": None, "reason": "mend", "from_us": 0, "to_us": 1}
        bodies = {
            "/v1/runs/{run}/openings": [format_openings(office.openings)],
            "/v1/leases": [encode({"origin": origin, "seq": seq}) for origin, seq in entries],
            "/v1/findings/close": [encode({"code": "gap", "node_id": one, "reason": "mended"}) for one in nodes],
            "/v1/maintenance": [encode(window)],
        }
        token = verifier.reader_token("admin")
        bearer = {"authorization": f"Bearer {token}", "content_type": "application/json"}
        announced = verifier.client.request("POST", "/v1/maintenance", encode(window), **bearer)
        assert announced.status == 200, announced
        yield Served(verifier, token, parameters, bodies)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=[f"{m.upper()} {p}" for m, p in OPERATIONS])
def test_whatever_is_asked_is_answered_as_stated(served: Served, method: str, path: str) -> None:
    operation = schemathesis.openapi.from_dict(DOCUMENT)[path][method]
    headers = {"authorization": f"Bearer {served.token}"}
    answered: set[int] = set()

    @settings(
        max_examples=16,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(), data=st.data(), known=st.sampled_from(["all", "some", "none"]))
    def ask(case: Any, data: st.DataObject, known: str) -> None:
        for values in (case.path_parameters, case.query):
            for name in sorted(values or {}):
                there = served.there(path, name)
                if there and (known == "all" or (known == "some" and data.draw(st.booleans()))):
                    values[name] = data.draw(st.sampled_from(there))
        if 1 < ((case.query or {}).get("wait_s") or 0) <= WAIT_S:
            case.query["wait_s"] = 1  # a longer wait says no more
        if path in served.bodies and method == "post" and known != "none":
            case.body = data.draw(st.sampled_from(served.bodies[path]))
        answer = case.call(base_url=served.verifier.client.url, headers=headers, timeout=30)
        answered.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    ask()
    assert answered & {200, 204} or (method, path) in SIGNED, answered
