"""What every code means that a person is shown, and what to do about it: one table, for ``keyturn explain``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from keyturn_cli.explanations.findings import FINDINGS
from keyturn_cli.explanations.hosts import CAUSES, REFUSALS
from keyturn_cli.explanations.problems import PROBLEMS
from keyturn_cli.explanations.switch import REASONS

KINDS: Final[Mapping[str, Mapping[Any, tuple[str, str]]]] = {
    "the switch refuses": REASONS,
    "the verifier answers": PROBLEMS,
    "finding": FINDINGS,
    "a host's log is degraded": CAUSES,
    "a host refuses": REFUSALS,
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """One code. The same word can be of two kinds: a fork is a finding, and an answer to who uploads one."""

    code: str
    kind: str
    means: str
    do: str


def codes() -> list[str]:
    """Every code, each once."""
    return sorted({str(code) for table in KINDS.values() for code in table})


def explain(code: str) -> list[Explanation]:
    """What a code means, by kind; nothing if there is none of this name."""
    found = []
    for kind, table in KINDS.items():
        for one, (means, do) in table.items():
            if one == code:
                found.append(Explanation(str(one), kind, means, do))
    return found
