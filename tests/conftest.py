"""Fixtures of every area."""

from pathlib import Path

import pytest

from tests.support.optional import require
from tests.support.paths import REPO, shared_folder


def _shared(part: str) -> Path:
    folder = shared_folder() / part
    require(
        "shared",
        folder.is_dir(),
        f"no folder {part} in the shared material (KEYTURN_SHARED names another place)",
    )
    return folder


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def shared_vectors() -> Path:
    """Test vectors made by others; not part of this repository."""
    return _shared("vectors")


@pytest.fixture(scope="session")
def shared_traces() -> Path:
    """Telemetry recorded by others; not part of this repository."""
    return _shared("traces")
