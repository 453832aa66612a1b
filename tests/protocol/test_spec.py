"""protocol/spec is held to the code: examples are bytes of the vectors, tables name what there is."""

import re
from typing import Any, get_args

import msgspec
import pytest

from keyturn_protocol import limits
from keyturn_protocol.entries import Entry
from keyturn_protocol.entry_inventory import Chip, InventoryBody, PciDevice
from keyturn_protocol.entry_log import GenesisBody, Previous
from keyturn_protocol.entry_switch import LeaseBody, LeaseGap, PermitBody, SpecChecks
from keyturn_protocol.entry_usage import FIELDS, Share, UsageBody
from keyturn_protocol.entry_workloads import Parent, WorkloadStartedBody
from keyturn_protocol.errors import Code
from keyturn_protocol.public_keys import CURVES
from keyturn_protocol.statements import KINDS, SIGNED_BY, Statement
from keyturn_protocol.usage import SHARED, Gap, UsageRow
from tests.support.paths import REPO
from tests.support.streams import canonical
from tests.support.vectors import content, vector

SPEC = REPO / "protocol" / "spec"
PAGES = [
    "canonical-json",
    "identities",
    "c2sp-profile",
    "node-log",
    "segment",
    "usage",
    "statements",
    "sshsig",
]
NESTED: dict[type, list[type]] = {
    GenesisBody: [Previous],
    InventoryBody: [Chip, PciDevice],
    UsageBody: [Share],
    WorkloadStartedBody: [Parent],
    PermitBody: [SpecChecks],
    LeaseBody: [LeaseGap],
}
EXAMPLE = re.compile(r"<!-- (vector|totals|armor|pae) (\S+) -->\n```\n(.*?)\n```\n", re.DOTALL)


def page(name: str) -> str:
    return (SPEC / f"{name}.md").read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert found is not None, heading
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of all table rows, heads and rules left out."""
    cells = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    rules = {at for at, row in enumerate(cells) if set("".join(row)) <= {"-", ":"}}
    return [row for at, row in enumerate(cells) if at not in rules and at + 1 not in rules]


def first_column(text: str) -> list[str]:
    return [row[0].strip("`") for row in rows(text)]


def encoded_fields(kind: type) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(kind)]


def example(kind: str, name: str) -> str:
    case = vector(name)
    if kind == "totals":
        return canonical(case["want"]["value"]["totals"]).decode()
    if kind == "pae":
        return str(case["want"]["value"])
    given: Any = case["input"]
    if kind == "armor":
        return str(given["armor"]).rstrip("\n")
    if isinstance(given, str):
        return given
    for step in ("note", "segments", "envelope"):
        if step in given:
            given = given[step]
    return content(given).decode().rstrip("\n")


@pytest.mark.parametrize("name", PAGES)
def test_page_begins_with_an_example(name: str) -> None:
    before = page(name).split("\n## ")[0]
    assert EXAMPLE.search(before) is not None


@pytest.mark.parametrize("name", PAGES)
def test_examples_are_bytes_of_the_vectors(name: str) -> None:
    text = page(name)
    found = EXAMPLE.findall(text)
    assert len(found) == text.count("<!-- ")
    for kind, which, shown in found:
        assert shown == example(kind, which), which
        assert "value" in vector(which)["want"]


@pytest.mark.parametrize("name", PAGES)
def test_pages_of_one_kind(name: str) -> None:
    assert re.match(r"# [^\n]+\n\n", page(name))


def test_index_names_every_page() -> None:
    index = page("README")
    for path in SPEC.glob("*.md"):
        assert path.stem == "README" or path.stem in index, f"{path.name} is not in the index"
    for link in re.findall(r"\]\(([a-z0-9-]+\.md)", index):
        assert (SPEC / link).is_file()


def test_key_words_are_explained() -> None:
    explained = page("README").split("are to be interpreted")[0]
    for name in PAGES:
        for word in re.findall(
            r"\b(?:MUST NOT|MUST|SHOULD NOT|SHOULD|MAY|REQUIRED|RECOMMENDED|OPTIONAL|SHALL)\b", page(name)
        ):
            assert f'"{word}"' in explained, f"{name}: {word}"


def test_every_code_is_in_the_table_of_errors() -> None:
    assert sorted(first_column(section(page("README"), "Errors"))) == sorted(Code)


@pytest.mark.parametrize("name", PAGES)
def test_codes_that_a_page_names_exist(name: str) -> None:
    text = page(name)
    named = set(re.findall(r"`((?:bad|not|too|unknown|broken|wrong)_[a-z_]+)`", text))
    assert named <= {*Code, "not_measured"}


def test_every_code_is_named_by_a_page() -> None:
    text = "".join(page(name) for name in PAGES)
    text += page("start-switch")
    later = {Code.BAD_CHIP_TABLE, Code.BAD_BUNDLE, Code.BAD_TRUST}
    assert [code for code in Code if f"`{code}`" not in text and code not in later] == []


def test_every_limit_is_in_the_table_of_limits() -> None:
    table = {row[0].strip("`"): int(row[1]) for row in rows(section(page("README"), "Limits"))}
    assert table == {name: value for name, value in vars(limits).items() if name.isupper() and isinstance(value, int)}


def test_every_entry_type_has_a_section_with_its_fields() -> None:
    text = page("node-log")
    types = section(text, "Types")
    assert types.strip() == ""
    headings = re.findall(r"^### `(\w+)`$", text, flags=re.MULTILINE)
    tags = {kind.__struct_config__.tag: kind for kind in get_args(Entry)}
    assert sorted(headings) == sorted(map(str, tags))
    for tag, kind in tags.items():
        body = kind.__annotations__["body"]
        want = encoded_fields(body)
        for nested in NESTED.get(body, []):
            want += encoded_fields(nested)
        found = [name.split(".")[-1] for name in first_column(section(text, f"`{tag}`"))]
        assert found == want or sorted(found) == sorted(want), tag


def test_nested_records_are_all_known() -> None:
    """A record inside of a body that this test doesn't know would go unchecked."""
    for kind in get_args(Entry):
        body = kind.__annotations__["body"]
        inside = {
            name
            for field in msgspec.structs.fields(body)
            for name in re.findall(r"keyturn_protocol\.entry_\w+\.(\w+)", str(field.type))
        }
        assert inside == {nested.__name__ for nested in NESTED.get(body, [])}


def test_every_entry_has_the_fields_of_the_table() -> None:
    found = first_column(section(page("node-log"), "Every entry"))
    for kind in get_args(Entry):
        assert sorted(found) == sorted([*encoded_fields(kind), "type"])


def test_values_of_literals_are_named() -> None:
    """Each word that a field can be is in its row."""
    text, seen = page("node-log"), 0
    for kind in get_args(Entry):
        body = kind.__annotations__["body"]
        lines = section(text, f"`{kind.__struct_config__.tag}`")
        for record in [body, *NESTED.get(body, [])]:
            for field in msgspec.structs.fields(record):
                for word in re.findall(r"'([a-z_]+)'", str(field.type) if "Literal" in str(field.type) else ""):
                    assert f"`{word}`" in lines, f"{field.name}: {word}"
                    seen += 1
    assert seen > 20


def test_every_kind_of_statement_is_in_the_table_with_who_signs_it() -> None:
    """The fields of the others are held by test_spec_switch."""
    text = page("statements")
    common = [*encoded_fields(Statement), "type"]
    table = rows(section(text, "Kinds"))
    assert sorted(row[0].strip("`") for row in table[: len(common)]) == sorted(common)
    signers = {kind: row[1].split("`")[1] for row in table[len(common) :] for kind in re.findall(r"`(\w+)`", row[0])}
    assert signers == SIGNED_BY
    assert re.findall(r"^### `(\w+)`$", text, flags=re.MULTILINE) == ["replacement"]
    own = [f for f in encoded_fields(KINDS["replacement"]) if f not in common]
    assert first_column(section(text, "`replacement`")) == own


def test_every_algorithm_of_a_key_is_named() -> None:
    named = re.findall(r"`([^`]+)`", "".join(row[0] for row in rows(section(page("statements"), "Keys"))))
    assert named == list(CURVES)
    signed = re.findall(r"`([^`]+)`", "".join(row[0] for row in rows(section(page("sshsig"), "Format"))[-4:]))
    assert signed == list(CURVES)[1:]


def test_bits_of_the_basis() -> None:
    table = [row for row in rows(page("usage")) if row[0].isdigit()]
    bits = {int(row[at]): row[at + 1].strip("`") for row in table for at in (0, 2, 4, 6)}
    assert {bit: name for bit, name in bits.items() if bit < len(FIELDS)} == dict(enumerate(FIELDS))
    assert {1 << bit for bit in bits if bit >= len(FIELDS)} == {SHARED}


def test_fields_of_rows_and_gaps() -> None:
    last = rows(section(page("usage"), "Totals"))[-1]
    row, gap = (re.findall(r"`(\w+)`", cell) for cell in last)
    assert [*row, *FIELDS] == encoded_fields(UsageRow)
    assert gap == encoded_fields(Gap)
