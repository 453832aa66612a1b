"""The OpenAPI document is current, and the server answers as it says, whatever is asked."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from keyturn_protocol.api import SEGMENT_TYPE, ProblemCode
from tests.support.openapi import FILE, text
from tests.support.verifier import Verifier

DOCUMENT = json.loads(FILE.read_text())
schemathesis.serializer.alias(SEGMENT_TYPE, "application/octet-stream")
OPERATIONS = [(m, p) for p, ways in DOCUMENT["paths"].items() for m in ways]
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def test_the_committed_document_is_current() -> None:
    assert FILE.read_text(encoding="utf-8") == text(), "python -m tests.support.openapi writes it"


def test_every_problem_code_is_stated_somewhere() -> None:
    stated = set(json.dumps(DOCUMENT).split("urn:keyturn:problem:")[1:])
    codes = {entry.partition('"')[0] for entry in stated}
    assert {str(code) for code in ProblemCode} - codes == {"method_not_allowed"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Verifier, str]]:
    with Verifier(tmp_path_factory.mktemp("openapi")) as verifier:
        verifier.enrolled(usage=3)
        token = verifier.reader_token("admin")
        yield verifier, token


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=[f"{m.upper()} {p}" for m, p in OPERATIONS])
def test_whatever_is_asked_is_answered_as_stated(served: tuple[Verifier, str], method: str, path: str) -> None:
    verifier, token = served
    operation = schemathesis.openapi.from_dict(DOCUMENT)[path][method]

    @settings(
        max_examples=12,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        answer = case.call(base_url=verifier.client.url, headers={"authorization": f"Bearer {token}"}, timeout=30)
        case.validate_response(answer, checks=CHECKS)

    ask()
