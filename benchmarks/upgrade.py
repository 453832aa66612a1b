"""What a restart of the agent leaves unmeasured, as an upgrade does it: SIGTERM, the end, a start.

The agent runs on 8 GPUs of the tests' NVML stub, sampling once a second, against a verifier of its own. The gap is
the time between two usage entries in the log that the verifier has. Bar: less than 5 s.
"""

import itertools
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _nvml import CHIPS, Host, usage_of
from _report import report_below

from tests.support.verifier import Verifier

RESTARTS, RUN_S = 5, 8


def main() -> None:
    with tempfile.TemporaryDirectory() as name, Host(Path(name)) as host, Verifier(Path(name)) as verifier:
        host.enroll(verifier)
        for _ in range(RESTARTS + 1):
            agent = host.run_agent()
            time.sleep(RUN_S)
            status = agent.end()
            assert status == 0, status
        usage = usage_of(verifier, Path(name) / "bundle")
    gaps = [(after.body.from_us - before.body.to_us) / 1e6 for before, after in itertools.pairwise(usage)]
    found = sorted(gap for gap in gaps if gap)
    assert len(found) == RESTARTS, gaps
    report_below(
        "agent, gap of a restart", max(found), "s", bar=5, least_s=round(found[0], 2), restarts=RESTARTS, chips=CHIPS,
        durability="fdatasync of every entry",
    )  # fmt: skip


if __name__ == "__main__":
    main()
