"""Fixtures of every area."""

import gc
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.descriptors import descriptors
from tests.support.optional import require
from tests.support.paths import REPO, shared_folder

# What is imported and collected stays to the end: to look through it for garbage again and again is a tenth of the run.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else a library that counts what it leaves at the end complains


def pytest_configure() -> None:
    """A shell's background job ignores Ctrl-C, and so would every program that a test starts in one."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _shared(part: str) -> Path:
    folder = shared_folder() / part
    require(
        "shared",
        folder.is_dir(),
        f"no folder {part} in the shared material (KEYTURN_SHARED names another place)",
    )
    return folder


SLACK: Final = 32
"""Descriptors that a module may leave behind: what lasts for the session, and connections that are kept for a while."""


@pytest.fixture(autouse=True, scope="module")
def _few_descriptors() -> Iterator[None]:
    """A process runs half of all tests, and may have 1024 descriptors: nobody lets go of too few."""
    before = descriptors()
    yield
    left = descriptors() - before
    assert left <= SLACK, f"{left} descriptors are open that weren't before this module"


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
