"""Every code with which an agent or a gate refuses, and every cause of a degraded log, is explained; and no other."""

import re
from pathlib import Path

import keyturn_agent
import keyturn_gate
from keyturn_agent import losses, pressure, procs
from keyturn_agent.switch import gate_word, programs, strangers
from keyturn_cli.explanations.hosts import CAUSES, REFUSALS
from keyturn_protocol.values import SPEC_PARTS
from tests.support.paths import REPO

AGENT, GATE = Path(keyturn_agent.__path__[0]), Path(keyturn_gate.__path__[0])
SWITCH = "".join(path.read_text() for path in sorted((AGENT / "switch").glob("*.py")))
ROOT = "".join(path.read_text() for path in sorted(GATE.glob("*.py")))


def test_every_refusal_is_explained() -> None:
    found = set(re.findall(r'(?:Refused|Unreachable|Behind)Error\(\s*"([a-z_]+)"', SWITCH))
    found |= set(re.findall(r'\b_no\(\s*\w+,\s*"(leased)"', (AGENT / "operator.py").read_text()))
    found |= set(re.findall(r'GateError\(\s*"([a-z_]+)"', ROOT))
    assert 'f"other_{_NAME[part]}"' in SWITCH
    found |= {f"other_{'program' if part == 'argv' else part}" for part in SPEC_PARTS}
    files = set(re.findall(r'UsageError\(\s*"(bad_file)"', SWITCH))
    assert set(REFUSALS) == found | files


def test_every_cause_is_explained() -> None:
    found = {pressure.FILLING, pressure.DISK_FILLING, losses.FIELDS_LOST, procs.OTHER_NAMESPACE, procs.HIDEPID}
    found |= {
        gate_word.MISMATCH,
        gate_word.AWAY,
        strangers.WOULD_REFUSE,
        strangers.SURVIVORS,
        programs.OTHER,
        programs.UNSEEN,
    }
    found |= set(re.findall(r'\.degraded\(\s*"([a-z_]+)"', SWITCH)) | set(re.findall(r'return "(gate_\w+)"', SWITCH))
    assert set(CAUSES) == found


def test_the_pages_name_the_switchs_causes() -> None:
    pages = (REPO / "docs" / "gate.md").read_text() + (REPO / "docs" / "agent.md").read_text()
    for cause in set(CAUSES) - {"disk_filling", "spool_filling", "fields_lost"}:
        assert f"`{cause}`" in pages, cause


def test_they_are_in_order_and_short() -> None:
    for table in (CAUSES, REFUSALS):
        assert list(table) == sorted(table)
        for means, do in table.values():
            assert means.endswith(".")
            assert do.endswith((".", "?"))
            assert max(len(means), len(do)) < 200
