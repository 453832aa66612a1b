"""``keyturn audit`` on a disk that hangs: ``python -m tests.cli.stuck BUNDLE MARKS``.

Each worker process leaves a file named by its id in the folder MARKS and then waits for its first segment.
"""

import multiprocessing
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from keyturn_cli import auditing
from keyturn_cli.auditing import Pins, run_audit
from keyturn_cli.reader import FolderReader


@dataclass(frozen=True, slots=True)
class Stuck(FolderReader):
    """A bundle that only the first process can read."""

    marks: str

    def read(self, path: str) -> bytes:
        if multiprocessing.parent_process() is not None:
            Path(self.marks, str(os.getpid())).touch()
            time.sleep(3600)
        return FolderReader.read(self, path)


if __name__ == "__main__":
    auditing.ALONE = 0  # type: ignore[misc]
    run_audit(Stuck(sys.argv[1], sys.argv[2]), Pins(), 2, lambda done, of: None)
