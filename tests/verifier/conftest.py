"""Fixtures of the verifier's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.verifier import Verifier


@pytest.fixture
def verifier(tmp_path: Path) -> Iterator[Verifier]:
    """A new verifier, serving."""
    with Verifier(tmp_path) as started:
        yield started
