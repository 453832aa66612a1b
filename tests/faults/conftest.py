"""Fixtures of the faults."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_MEMORY = Path("/dev/shm")
_ROOM = 2 * 1024 * 1024 * 1024


@pytest.fixture(scope="module")
def quick_folder() -> Iterator[Path]:
    """A folder in memory where there is one with room: the calls are the same, and their disk isn't waited for."""
    room = 0
    if os.access(_MEMORY, os.W_OK):
        found = os.statvfs(_MEMORY)
        room = found.f_bavail * found.f_frsize
    folder = Path(tempfile.mkdtemp(prefix="keyturn-faults-", dir=_MEMORY if room > _ROOM else None))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
