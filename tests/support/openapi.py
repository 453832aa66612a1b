"""Writes ``docs/openapi.json``: ``python -m tests.support.openapi``."""

import json
import tempfile
from pathlib import Path

from tests.support.paths import REPO
from tests.support.verifier import Verifier

FILE = REPO / "docs" / "openapi.json"


def text() -> str:
    """The document as a verifier serves it now."""
    with tempfile.TemporaryDirectory() as folder, Verifier(Path(folder)) as verifier:
        served = json.loads(verifier.client.get("/openapi.json").body)
    return json.dumps(served, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
