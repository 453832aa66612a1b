"""The documents are held to the code: what they name exists."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.support.documents import code_of, markdown_files, name_of, prose_of, tracked_files
from tests.support.paths import REPO

# In pieces, so that this file doesn't hold what it looks for.
REGISTRY_HOSTS = [
    "pypi" + ".org",
    "python" + "hosted.org",
    "npm" + "js.org",
    "proxy." + "golang.org",
    "crates" + ".io",
    "deb." + "debian.org",
]


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    return table


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (REPO / "Makefile").read_text(), flags=re.MULTILINE))


def anchors_of(markdown: str) -> set[str]:
    """The anchors that a renderer makes of headings."""
    headings = re.findall(r"^#+ +(.+?)\s*$", markdown, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_make_targets_named_in_documents_exist(document: str) -> None:
    named = set(re.findall(r"\bmake ([a-z][a-z-]*)", code_of((REPO / document).read_text())))
    assert named, f"{document} names no make target"
    assert named <= make_targets()


def test_every_make_target_has_a_line_of_help() -> None:
    makefile = (REPO / "Makefile").read_text()
    described = set(re.findall(r"^([a-z][a-z-]*):.*## ", makefile, flags=re.MULTILINE))
    assert described == make_targets()


@pytest.mark.parametrize("path", markdown_files(), ids=name_of)
def test_relative_links_resolve(path: Path) -> None:
    links = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose_of(path.read_text()))
    broken = []
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in anchors_of(target.read_text())):
            broken.append(link)
    assert broken == []


def test_every_decision_record_is_listed() -> None:
    folder = REPO / "docs" / "adr"
    records = {path.name for path in folder.glob("[0-9]*.md")}
    listed = set(re.findall(r"\]\(([0-9][^)]*\.md)\)", (folder / "README.md").read_text()))
    assert records, "no decision records"
    assert listed == records


def test_decision_records_are_numbered_without_holes() -> None:
    numbers = sorted(int(path.name[:4]) for path in (REPO / "docs" / "adr").glob("[0-9]*.md"))
    assert numbers == list(range(1, len(numbers) + 1))


def test_console_scripts_named_in_readme_exist() -> None:
    named = set(re.findall(r"\bkeyturn(?:-[a-z]+)*(?![\w-])", code_of((REPO / "README.md").read_text())))
    scripts = set(project()["scripts"])
    assert named >= scripts, "README leaves out a console script"
    assert named <= scripts | {"keyturn"}


def test_extras_named_in_readme_exist() -> None:
    named = re.findall(r"keyturn\[([a-z,]+)\]", (REPO / "README.md").read_text())
    assert named
    assert {extra for group in named for extra in group.split(",")} <= set(project()["optional-dependencies"])


def test_changelog_has_the_version() -> None:
    assert f"## [{project()['version']}]" in (REPO / "CHANGELOG.md").read_text()


def test_no_registry_host_in_tracked_files() -> None:
    found = [
        f"{name_of(path)}: {host}"
        for path in tracked_files()
        for host in REGISTRY_HOSTS
        if host.encode() in path.read_bytes()
    ]
    assert found == []


@pytest.mark.parametrize("path", sorted((REPO / "requirements").glob("*.txt")), ids=name_of)
def test_locks_are_hashed_and_name_no_place(path: Path) -> None:
    lock = path.read_text()
    assert not re.search(r"--(index-url|extra-index-url|find-links|trusted-host)|file://|^-e ", lock, re.MULTILINE)
    requirements = [line for line in re.sub(r"\\\n", " ", lock).splitlines() if line and line[0] not in "# "]
    assert requirements
    assert [line for line in requirements if "--hash=sha256:" not in line] == []


def test_locks_agree() -> None:
    """The environment can be filled from any of them in any order."""

    def pins(name: str) -> set[str]:
        return set(re.findall(r"^[\w.\[\],-]+==[^\s;]+", (REPO / "requirements" / name).read_text(), re.MULTILINE))

    assert pins("agent.txt") <= pins("run.txt") <= pins("dev.txt")
