"""The page on the start switch is held to the code: its tables name what there is."""

import re
from typing import Any

import msgspec
import pytest

from keyturn_protocol.authority import Why
from keyturn_protocol.canonical import decode
from keyturn_protocol.errors import Code
from keyturn_protocol.lifecycle import State
from keyturn_protocol.limits import PERMIT_BUNDLE_BYTES
from keyturn_protocol.policy import Policy, Tier
from keyturn_protocol.root import Root
from keyturn_protocol.runs import Amend, Decision, Request, Resume, Revoke, Suspend, Withdraw
from keyturn_protocol.statements import Statement
from tests.protocol.test_spec import first_column, page, rows, section
from tests.support.assembly import every_kind

TEXT = page("start-switch")


def own_fields(kind: type) -> list[str]:
    common = {field.encode_name for field in msgspec.structs.fields(Statement)}
    return [f.encode_name for f in msgspec.structs.fields(kind) if f.encode_name not in common]


def test_every_field_of_a_root_and_of_a_policy() -> None:
    assert first_column(section(TEXT, "Root")) == own_fields(Root)
    named = first_column(section(TEXT, "Policy"))
    assert named == own_fields(Policy) + [field.encode_name for field in msgspec.structs.fields(Tier)]


@pytest.mark.parametrize("kind", [Request, Decision, Withdraw, Suspend, Resume, Revoke, Amend])
def test_every_field_of_a_statement_about_a_run(kind: type) -> None:
    table = {row[0].strip("`"): row[1] for row in rows(section(TEXT, "Statements about runs"))}
    assert re.findall(r"`(\w+)`", table[str(kind.__struct_config__.tag)]) == own_fields(kind)  # type: ignore[attr-defined]


def test_every_state_and_every_reason() -> None:
    assert first_column(section(TEXT, "States")) == list(State)
    assert first_column(section(TEXT, "Reasons")) == list(Why)


def test_it_names_the_codes_of_what_it_refuses() -> None:
    for code in (Code.BAD_ROOT, Code.BAD_POLICY, Code.REFUSED):
        assert f"`{code}`" in TEXT


def test_every_field_of_a_permit_bundle() -> None:
    fields: list[str] = list(decode(every_kind().bundle(), dict[str, Any], limit=PERMIT_BUNDLE_BYTES))
    assert sorted(first_column(section(TEXT, "Permit bundle"))) == sorted(fields)
