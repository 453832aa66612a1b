"""Forged bundles: each is found, by what is said about it here; what can't be found is said too."""

import re
from functools import cache

import pytest

from keyturn_cli.auditing import Pins, run_audit
from keyturn_cli.report import EXITS
from keyturn_protocol.audit import Report
from keyturn_protocol.errors import ProtocolError
from tests.faults import table
from tests.faults.tamper.bundle import FORGERIES
from tests.faults.tamper.forgery import Forgery, without_names
from tests.faults.tamper.world import world
from tests.support.bundles import Bundle

SAMPLE = 2
"""Variants of an operator that `make test` takes, spread over all of them."""


def audited(bundle: Bundle, checkpoint: bytes | None = None) -> Report:
    return run_audit(bundle, Pins(trust=bundle.trust, checkpoint=checkpoint), 1, lambda *_: None)


@cache
def clean() -> Report:
    return audited(world().bundle, world().kept)


def test_nothing_is_wrong_with_what_is_forged() -> None:
    assert (clean().outcome, clean().reasons) == ("pass", ())
    forked = audited(world(fork=True).bundle)
    assert {f.code for f in forked.findings if f.severity == "critical"} == {"fork"}


@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda f: f"{f.by}: {f.name}".replace(" ", "_"))
def test_it_is_found(forgery: Forgery) -> None:
    made = list(forgery.make(world()))
    assert made, "no variant"
    if not table.LONG:
        made = made[:: max(1, len(made) // SAMPLE)]
    said = []
    for at, bundle in enumerate(made):
        assert bundle.files != world().bundle.files, at
        said.append(judge(forgery, bundle))
    table.record_all(
        *("tamper", f"bundle, {forgery.by}", forgery.name),
        expected="not found: nothing in it contradicts anything" if forgery.outcome == "pass" else "found",
        seen=said,
    )


def judge(forgery: Forgery, bundle: Bundle) -> str:
    """What the audit said, for the table; asserts that it is the right thing."""
    try:
        report = audited(bundle, world().kept if forgery.checkpoint else None)
    except ProtocolError as error:
        refused = error
    else:
        return _judged(forgery, report)
    assert forgery.outcome == "contradicted", refused
    assert "manifest" in forgery.name or re.search(forgery.says, str(refused)), refused
    return f"exit 1: the manifest is refused ({refused.code})"


def _judged(forgery: Forgery, report: Report) -> str:
    said = [*map(without_names, _lines(report))]
    assert report.outcome == forgery.outcome, (forgery.name, said)
    right = [line for line in said if re.search(forgery.says, line)]
    assert right or forgery.outcome == "pass", (forgery.says, said)
    codes = sorted({f.code for f in report.findings} - {f.code for f in clean().findings})
    more = "".join(f"; finding `{code}`" for code in codes)
    return f"exit {int(EXITS[report.outcome])}{': ' + _short(right[0]) if right else ''}{more}"


def _lines(report: Report) -> list[str]:
    """The reasons as `keyturn audit` prints them."""
    entry = [f"{c.where}{'' if c.seq is None else f' (entry {c.seq})'}: {c.message}" for c in report.contradictions]
    return [*entry, *report.reasons[len(report.contradictions) :]]


def _short(line: str) -> str:
    """One line for all variants: their numbers differ."""
    line = re.sub(r"(?<=[ (])\d+", "N", line.partition(" (got")[0])
    return line if len(line) < 110 else line[:100].rpartition(" ")[0] + " …"
