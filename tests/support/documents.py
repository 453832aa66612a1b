"""Reading the project's files, above all its Markdown."""

import re
import subprocess
from pathlib import Path

from tests.support.optional import require, require_program
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


def tracked_files() -> list[Path]:
    """What a clone would have, as it is in the working tree."""
    git = require_program("git")
    listed = subprocess.run([git, "ls-files", "-z"], cwd=REPO, capture_output=True, check=False)
    require("git", listed.returncode == 0, "not a git checkout")
    return [REPO / name for name in listed.stdout.decode().split("\0") if name and (REPO / name).is_file()]
