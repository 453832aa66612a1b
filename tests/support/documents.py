"""Reading the project's Markdown."""

import re
from pathlib import Path

from tests.support.paths import REPO

NOT_OURS = {".venv", "build", "dist", ".git", ".hypothesis", ".pytest_cache", ".mypy_cache", ".ruff_cache"}


def markdown_files() -> list[Path]:
    return sorted(path for path in REPO.rglob("*.md") if not NOT_OURS.intersection(path.relative_to(REPO).parts))


def name_of(path: Path) -> str:
    return str(path.relative_to(REPO))


def code_of(markdown: str) -> str:
    """What stands in code fences and between single backticks."""
    fences = re.findall(r"^```\w*\n(.*?)^```", markdown, flags=re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    return "\n".join([*fences, *re.findall(r"`([^`\n]+)`", rest)])


def prose_of(markdown: str) -> str:
    """Everything but code: brackets in code are no links."""
    without_fences = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]+`", "", without_fences)
