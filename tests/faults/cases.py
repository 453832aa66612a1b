"""Which calls are made to fail, in the long form and in the short one; and the rows about them."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

import pytest
from _pytest.mark.structures import ParameterSet

from tests.faults.strace import Call, Fault
from tests.faults.table import LONG, record

SAMPLE: Final = 3
"""Cases of each command in the short form, which meets one kind of fault."""
RUNS: Final = 2 if LONG else 1
"""Runs without a fault whose calls are listed: threads don't always take turns in the same way."""
_TRIES: Final = 4
"""A run that didn't come to a call, since its threads took turns in another way, is done again so often."""
_MISSED_PERCENT: Final = 10
"""On a busy machine the uploads of a run fall otherwise, and files named by their entries are others."""


class Command(Protocol):
    """A command of a program that meets a fault."""

    @property
    def name(self) -> str: ...


def pairs(commands: Sequence[Command]) -> list[ParameterSet]:
    """Parameters of a test: each command with each fault; in the short form with one."""
    return [
        pytest.param(command, fault, id=f"{command.name.replace(' ', '-')}-{fault.name}")
        for number, command in enumerate(commands)
        for at, fault in enumerate(Fault)
        if LONG or at == number % len(Fault)
    ]


def choose(calls: Iterable[Call], fault: Fault) -> list[Call]:
    """All the calls that a fault makes a case of; a spread sample of them in the short form.

    `KEYTURN_FAULTS_ONLY` takes those whose name contains it.
    """
    cases = [
        call for call in sorted(calls) if call.takes(fault) and os.environ.get("KEYTURN_FAULTS_ONLY", "") in str(call)
    ]
    if LONG:
        return cases
    return cases[len(cases) // (2 * SAMPLE) :: max(1, len(cases) // SAMPLE)][:SAMPLE]


Seen = list[tuple[str, str]]
"""What was seen, case by case: the kind of the call, and how the run with the fault ended."""


def meet(
    part: str,
    command: str,
    fault: Fault,
    cases: Iterable[Call],
    one: Callable[[Call], str | None],
    *,
    together: int = 1,
) -> Seen:
    """Run each case; fail with all that went wrong, or return what was seen.

    :param one: runs a case and says what was seen; None where it was not reached.
    :param together: so many at a time, of cases that mostly wait.
    """
    seen: Seen = []
    wrong: list[str] = []
    missed: list[Call] = []

    def meet_one(call: Call) -> None:
        try:
            for _ in range(_TRIES):
                if (how := one(call)) is not None:
                    seen.append((call.kind, how))
                    break
            else:
                missed.append(call)
        except AssertionError as error:
            wrong.append(f"{fault.name} at {call}: {str(error)[:2000]}")
            print(f"{part}, {command}: {wrong[-1]}", flush=True)  # a long run says at once what it found

    with ThreadPoolExecutor(together) as pool:
        # What is no assertion ends all of it.
        list(pool.map(meet_one, cases))
    count = len(seen) + len(wrong) + len(missed)
    if wrong:
        pytest.fail(f"{len(wrong)} of {count} cases of {command}:\n" + "\n".join(wrong), pytrace=False)
    assert len(missed) * 100 <= count * _MISSED_PERCENT + 100, f"not reached: {', '.join(map(str, missed))}"
    return seen


def write_down(part: str, fault: Fault, seen: Seen, expected: str) -> None:
    """The rows of cases that held."""
    for kind, how in seen:
        record("faults", part, f"{fault.name} at {kind}", expected=expected, seen=how)
