"""Notice files: what a run can read of its stop before that comes. A folder that everybody may read.

{"job":"6f0c…","why":"the lease ends","stop_in_s":600,"stop_at_us":81000000,"stop_time_us":1790000000000000,
 "enforced":true}   (one line)
"""

import logging
from pathlib import Path

import msgspec

from keyturn_gate.grants import Held

logger = logging.getLogger(__name__)


class Notices:
    """The files in ``folder``, which is made if it isn't there. One that can't be written holds no stop up."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)

    def give(self, grant: Held, left_us: int, stop_time_us: int, *, enforced: bool) -> None:
        """Write the notice of a grant. ``left_us``: until its stop; ``stop_time_us``: the stop in UTC."""
        notice = {
            "job": grant.job,
            "why": grant.why,
            "stop_in_s": left_us // 1_000_000,
            "stop_at_us": grant.stop_at_us,
            "stop_time_us": stop_time_us,
            "enforced": enforced,
        }
        path = self._folder / f"{grant.job}.json"
        temporary = path.with_suffix(".tmp")
        try:
            temporary.write_bytes(msgspec.json.encode(notice) + b"\n")
            temporary.chmod(0o644)
            temporary.rename(path)
        except OSError as error:
            logger.error("writing %s: %s", path, error)

    def forget(self, job: str) -> None:
        """Remove it: the stop was put off, or the grant is over."""
        try:
            (self._folder / f"{job}.json").unlink(missing_ok=True)
        except OSError as error:
            logger.error("removing the notice of %s: %s", job, error)
