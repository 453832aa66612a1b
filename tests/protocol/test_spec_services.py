"""The pages on receipts, the verifier's log and bundles are held to the code: examples, fields, codes, routes."""

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from keyturn_protocol import api, api_read
from keyturn_protocol.bundle import LogRef, Manifest, receipt_path
from keyturn_protocol.canonical import encode_record
from keyturn_protocol.keys import parse_vkey
from keyturn_protocol.leaves import Export, ExportBody, Leaf, LeftOut
from keyturn_protocol.segment import parse_segment
from keyturn_protocol.tiles import decode_bundle
from tests.support.bundles import small
from tests.support.optional import require_program
from tests.support.paths import REPO

SPEC = REPO / "protocol" / "spec"
PAGES = ("bundle", "receipt", "verifier-log")


def page(name: str) -> str:
    return (SPEC / f"{name}.md").read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """What stands under a heading, deeper headings included."""
    found = re.search(rf"^(#+) {re.escape(heading)}\n", text, flags=re.MULTILINE)
    assert found is not None, heading
    rest = text[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, flags=re.MULTILINE)
    return rest if end is None else rest[: end.start()]


def first_cells(text: str) -> list[str]:
    """Every word in backticks in the first column of the tables."""
    cells = re.findall(r"^\| ([^|]*)\|", text, flags=re.MULTILINE)
    return [word for cell in cells for word in re.findall(r"`([^`]+)`", cell)]


def fields(kind: type) -> set[str]:
    return {f.encode_name for f in msgspec.structs.fields(kind)}


def tag(kind: Any) -> str:
    return str(kind.__struct_config__.tag)


@cache
def examples() -> dict[str, str]:
    bundle = small()[1]
    shown = {p: d.decode() for p, d in bundle.files.items() if not p.startswith("verifier-log/tile")}
    leaves = decode_bundle(bundle.files["verifier-log/tile/entries/000.p/5"], 5)
    shown |= {f"leaf/{i}": leaf.decode() for i, leaf in enumerate(leaves)}
    return {name: text.rstrip("\n") for name, text in (shown | {"trust": encode_record(bundle.trust).decode()}).items()}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_begins_with_an_example_and_its_examples_are_real(name: str) -> None:
    text = page(name)
    found = re.findall(r"<!-- bundle (\S+) -->\n```\n(.*?)\n```\n", text, flags=re.DOTALL)
    assert found
    assert "<!-- bundle" in text.partition("\n## ")[0]
    for which, shown in found:
        assert shown == examples()[which], which


@pytest.mark.parametrize("kind", get_args(Leaf), ids=tag)
def test_every_leaf_type_has_a_section_with_its_fields(kind: type) -> None:
    text = section(page("verifier-log"), f"`{tag(kind)}`")
    assert set(first_cells(text)) == fields(kind.__annotations__["body"])


def test_no_other_leaf_type_is_described() -> None:
    named = re.findall(r"^### `(\w+)`$", page("verifier-log"), flags=re.MULTILINE)
    assert sorted(named) == sorted(tag(kind) for kind in get_args(Leaf))
    assert fields(Export) | {"type"} == set(first_cells(section(page("verifier-log"), "Leaves").partition("### ")[0]))
    assert all(f"`{f}`" in page("verifier-log") for f in fields(LeftOut))


def test_every_field_of_a_manifest_and_of_a_trust_file_is_described() -> None:
    text = section(page("bundle"), "Manifest")
    manifest, _, rest = text.partition("A log:")
    log, _, trust = rest.partition("`trust.json`:")
    assert set(first_cells(manifest)) == fields(Manifest)
    assert set(first_cells(log)) == fields(LogRef)
    operators = {f"operators.{field}" for field in fields(api.OperatorKey)}
    assert set(first_cells(trust)) == fields(api.TrustWithOperators) | operators
    assert fields(api.Trust) == fields(api.TrustWithOperators) - {"operators"}
    assert all(f"`{f}`" in manifest for f in fields(ExportBody))


def test_every_problem_code_is_described_with_its_status() -> None:
    text = section(page("receipt"), "Errors")
    named = dict(re.findall(r"^\| `(\w+)` \| (\d{3}) \|", text, flags=re.MULTILINE))
    assert named == {str(code): str(api.STATUS[code]) for code in api.ProblemCode}
    assert fields(api.Problem) <= set(first_cells(text))


def test_the_example_of_a_problem_is_one() -> None:
    (shown,) = re.findall(r"<!-- problem -->\n```\n(.*?)\n```\n", page("receipt"), flags=re.DOTALL)
    assert shown == encode_record(api.problem(api.ProblemCode.TOKEN_UNKNOWN, "no such join token")).decode()


@pytest.mark.parametrize(
    ("heading", "kinds"),
    [
        ("Join", [api.JoinRequest, api.JoinResponse]),
        ("NodeLog", [api.NodeLog]),
        ("WorkloadTotal", [api.WorkloadTotal]),
        ("FindingItem", [api.FindingItem]),
    ],
)
def test_every_field_of_a_body_is_described(heading: str, kinds: list[type]) -> None:
    assert set(first_cells(section(page("receipt"), heading))) == {f for kind in kinds for f in fields(kind)}


@pytest.mark.parametrize("kind", [api_read.StatementItem, api_read.ReplacementItem])
def test_every_field_of_what_lists_say_of_statements_is_described(kind: type) -> None:
    assert set(first_cells(section(page("statements"), kind.__name__))) == fields(kind)


def test_every_route_of_statements_is_named() -> None:
    text = section(page("statements"), "At a verifier")
    for path in (f"POST {api.STATEMENTS}", f"GET {api.STATEMENTS}", f"GET {api_read.REPLACEMENTS}"):
        assert f"`{path}`" in text


def test_pages_have_items_and_next() -> None:
    head = section(page("receipt"), "Pages").partition("####")[0]
    assert set(first_cells(head)) == fields(api.Page)
    assert f"{api.PAGE_ITEMS:,}" in head
    assert all(f"`{f}`" in page("receipt") for f in fields(api.FlopInterval))


def test_every_route_and_type_is_named() -> None:
    text = section(page("receipt"), "Routes")
    head = api.head_path("<node_id>", 1).replace("/1/", "/<incarnation>/")
    for path in (api.JOIN, api.SEGMENTS, api.NODES, api.WORKLOADS, api.USAGE, api.FINDINGS, api.HEALTH, head):
        assert f" {path}`" in text, path
    assert f"`GET {api.LOG}/checkpoint`" in text
    for kind in (api.SEGMENT_TYPE, api.PLAIN_TYPE, api.PROBLEM_TYPE):
        assert f"`{kind}`" in text


def test_codes_that_the_decision_names_are_problem_codes() -> None:
    named = set(re.findall(r"`([a-z_]+)`", section(page("receipt"), "Deciding about a segment")))
    assert named - {"checkpoint"} <= {str(code) for code in api.ProblemCode} | {"retry-after"}


def test_the_shell_of_the_receipts_page_checks_a_receipt(tmp_path: Path) -> None:
    for program in ("sh", "openssl", "od"):
        require_program(program)
    bundle = small()[1]
    path = bundle.segments()[0]
    text = parse_segment(bundle.files[path]).note.text
    files = {
        "checkpoint": text,
        "receipt": bundle.files[receipt_path(path)],
        "public_key": parse_vkey(bundle.trust.receipt_vkey).public_key,
    }
    (script,) = re.findall(r"```sh\n(.*?)```", page("receipt"), flags=re.DOTALL)
    for changed, code in (({}, 0), ({"checkpoint": text.replace(b"3\n", b"4\n")}, 1)):
        for name, data in (files | changed).items():
            (tmp_path / name).write_bytes(data)
        done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == code, done.stderr
