"""What is forged about the start switch is found, by what is said about it here; what can't be found is said too."""

import re
from functools import cache

import pytest

from keyturn_cli.auditing import Pins, run_audit
from keyturn_cli.report import EXITS
from keyturn_protocol.audit import Report
from tests.faults import table
from tests.faults.tamper.forgery import Forgery, without_names
from tests.faults.tamper.switch import forgery as forgeries
from tests.faults.tamper.switch import switched
from tests.support.bundles import Bundle


def audited(bundle: Bundle, checkpoint: bytes | None = None) -> Report:
    pins = Pins(root_sha256=switched().site.hall.root, checkpoint=checkpoint)
    return run_audit(bundle, pins, 1, lambda *_: None)


@cache
def clean() -> Report:
    return audited(switched().bundle, switched().kept)


def test_nothing_is_wrong_with_what_is_forged() -> None:
    assert (clean().outcome, clean().reasons) == ("pass", ())
    assert not [one for one in clean().findings if one.code.startswith("lease_")]


@pytest.mark.parametrize("forgery", forgeries, ids=lambda f: f"{f.by}: {f.name}".replace(" ", "_"))
def test_it_is_found(forgery: Forgery) -> None:
    made = list(forgery.make(switched()))
    assert made, "no variant"
    table.record_all(
        *("tamper", f"start switch, {forgery.by}", forgery.name),
        expected="not found: nothing in it contradicts anything" if forgery.says == "^$" else "found",
        seen=[judge(forgery, bundle) for bundle in made],
    )


def judge(forgery: Forgery, bundle: Bundle) -> str:
    """What the audit said, for the table; asserts that it is the right thing."""
    report = audited(bundle, switched().kept if forgery.checkpoint else None)
    codes = sorted({f.code for f in report.findings if f.code.startswith("lease_")})
    lines = [without_names(f"{c.where}: {c.message}") for c in report.contradictions]
    assert report.outcome == forgery.outcome, (forgery.name, report.reasons)
    right = [line for line in [*lines, *codes] if re.search(forgery.says, line)]
    assert right or (forgery.says == "^$" and not codes), (forgery.says, lines, codes)
    said = "" if not lines else ": " + re.sub(r"(?<=[ (])\d+", "N", right[0])[:110]
    return f"exit {int(EXITS[report.outcome])}{said}" + "".join(f"; finding `{code}`" for code in codes)
