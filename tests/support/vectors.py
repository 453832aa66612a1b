"""Reading the project's own vectors; tests/vectors/generate.py says how they are written."""

import json
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).parents[1] / "vectors"


def content(value: Any) -> bytes:
    """The bytes that ``{"utf8": …}``, ``{"hex": …}`` or a list of such parts stands for."""
    if isinstance(value, list):
        return b"".join(map(content, value))
    part = bytes.fromhex(value["hex"]) if "hex" in value else value["utf8"].encode()
    return bytes(part * value.get("times", 1))


def vector(name: str) -> dict[str, Any]:
    """One vector, by its path below the folder and without suffix."""
    found: dict[str, Any] = json.loads((VECTORS / f"{name}.json").read_text())
    return found


def names(area: str = "*") -> list[str]:
    return sorted(str(path.relative_to(VECTORS).with_suffix("")) for path in VECTORS.glob(f"{area}/*.json"))
