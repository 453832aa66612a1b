"""Counters of one process, and the Prometheus text that shows them beside what the database says.

# TYPE keyturn_receipts_total counter
keyturn_receipts_total 1024
"""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from keyturn_protocol.api import ProblemCode
from keyturn_protocol.lifecycle import State
from keyturn_protocol.statements import KINDS
from keyturn_verifier.switch_state import Counts

TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(slots=True)
class Metrics:
    """What this process has done. Any thread may count."""

    receipts: int = 0
    received_bytes: int = 0
    refusals: dict[ProblemCode, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def receipt(self, size: int) -> None:
        """An upload of ``size`` bytes was receipted."""
        with self._lock:
            self.receipts += 1
            self.received_bytes += size

    def refused(self, code: ProblemCode) -> None:
        """A request was refused."""
        with self._lock:
            self.refusals[code] = self.refusals.get(code, 0) + 1


def text(metrics: Metrics, batches: int, gauges: Mapping[str, tuple[float, str]]) -> bytes:
    """The exposition format; ``gauges``: values of the moment with what they mean."""
    return "".join(_lines(metrics, batches, gauges)).encode()


def of_switch(counts: Counts) -> bytes:
    """The start switch, in the exposition format; what there is none of is 0."""
    return "".join(_of_switch(counts)).encode()


def _of_switch(counts: Counts) -> Iterator[str]:
    runs = {f'{{state="{state}"}}': counts.runs.get(state, 0) for state in State}
    statements = {f'{{kind="{kind}"}}': counts.statements.get(kind, 0) for kind in KINDS}
    for name, type_, help_, values in (
        ("keyturn_runs", "gauge", "Runs by where they stand.", runs),
        ("keyturn_leases_open", "gauge", "Leases under which a host may spend now.", {"": counts.leases_open}),
        ("keyturn_leases_issued_total", "counter", "Leases in the verifier's log.", {"": counts.leases_issued}),
        ("keyturn_statements_total", "counter", "Statements in the verifier's log, by kind.", statements),
    ):
        yield f"# HELP {name} {help_}\n# TYPE {name} {type_}\n"
        yield from (f"{name}{label} {value}\n" for label, value in values.items())


def _lines(metrics: Metrics, batches: int, gauges: Mapping[str, tuple[float, str]]) -> Iterator[str]:
    counters = {
        "keyturn_receipts_total": (metrics.receipts, "Segments that were receipted, repeated ones too."),
        "keyturn_received_bytes_total": (metrics.received_bytes, "Bytes of uploads that were receipted."),
        "keyturn_batches_total": (batches, "Transactions that stored segments."),
    }
    for name, (value, help_) in counters.items():
        yield f"# HELP {name} {help_}\n# TYPE {name} counter\n{name} {value}\n"
    name = "keyturn_refusals_total"
    yield f"# HELP {name} Requests that were refused, by problem code.\n# TYPE {name} counter\n"
    for code in ProblemCode:
        yield f'{name}{{code="{code}"}} {metrics.refusals.get(code, 0)}\n'
    for name, (number, help_) in gauges.items():
        yield f"# HELP {name} {help_}\n# TYPE {name} gauge\n{name} {number:.15g}\n"
