"""What the kernel says that a run began as, held against the command line that was approved.

What a visitor says that it starts is compared when it asks. That this is what is started is looked at twice: the stub's
own command line ends with it, or the chips stay closed; and once the stub has become the command, it is held
(:mod:`~keyturn_agent.switch.hold`) until its command line was read here. Later it is its own: a process may write over
its command line, and become whatever it likes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from keyturn_agent.errors import RefusedError
from keyturn_agent.procs import PROC
from keyturn_agent.switch.asking import Go, Stopping
from keyturn_agent.switch.door import Visitor
from keyturn_agent.switch.ending import Ending, alive, tell_refusal
from keyturn_agent.switch.gating import Gating
from keyturn_agent.switch.jobs import Jobs, Live
from keyturn_agent.switch.lease_state import SECOND, Now, Phase, Stop
from keyturn_agent.switch.spec import shown
from keyturn_agent.switch.timers import Timers

OTHER: Final = "other_program"
UNSEEN: Final = "program_unseen"
_PATIENCE_US: Final = 60 * SECOND
_INTERPRETERS: Final = 8
"""Words that the kernel puts before a script: four interpreters at most, each with one argument (execve(2))."""


class Programs:
    """The first looks at what jobs run, where their command line was verified."""

    def __init__(self, jobs: Jobs, gating: Gating, ending: Ending, timers: Timers) -> None:
        self._jobs = jobs
        self._gating = gating
        self._ending = ending
        self._timers = timers

    def begin(self, live: Live, stub: Visitor) -> None:
        """Look at the process that says it becomes the command.

        :raises RefusedError: ``other_program``: it begins as something else; ``no_process``.
        """
        if live.ask is None or live.job.spec.argv != "verified":
            return
        words, argv = words_of(stub.pid), live.ask.argv
        if words is None:
            raise RefusedError("no_process", f"process {stub.pid} can't be looked at")
        if words[-len(argv) :] != argv:
            raise self._other(live, words)
        live.looked, live.looked_us = stub, self._jobs.now().mono_us

    def begun(self, stub: Visitor) -> None:
        """A stub became the command, and is held: look at what it is."""
        live = self._of(stub)
        if live is None or live.ask is None or live.phase is not Phase.RUNNING:
            stub.tell(Go(look=False))
            return
        live.looked = None
        words = words_of(stub.pid)
        if words is None:
            self._unseen(live)
        elif not began_as(words, live.ask.argv):
            error, now = self._other(live, words), self._jobs.now()
            tell_refusal(stub, error)
            live.stop = stop = Stop(now.mono_us, str(error))
            enforced, kill_s = self._gating.enforces, self._timers.times(live).kill_s
            live.tell(Stopping(in_ms=0, kill_s=kill_s, enforced=enforced, why=stop.why))
            self._ending.stopped(live, stop)
            return
        stub.tell(Go(look=False))

    def left(self, stub: Visitor) -> None:
        """A stub's connection is closed, as it is when it becomes the command and nothing holds it."""
        live = self._of(stub)
        if live is not None:
            live.looked = None
            if live.phase is Phase.RUNNING and live.job.place is not None and alive(live.job.place):
                self._unseen(live)

    def ended(self, stub: Visitor, status: int) -> None:
        """A stub says that it became nothing."""
        live = self._of(stub)
        if live is not None:
            live.looked = None
            self._ending.end(live, f"the command ended with {status}")

    def step(self, live: Live, now: Now) -> None:
        """Wait no longer for a stub that doesn't become anything."""
        if live.looked is not None and now.mono_us >= live.looked_us + _PATIENCE_US:
            live.looked = None
            self._unseen(live)

    def _of(self, stub: Visitor) -> Live | None:
        return next((live for live in self._jobs if live.looked is stub), None)

    def _unseen(self, live: Live) -> None:
        """What runs is the word of whoever asked, and no renewal says more."""
        live.change(spec=msgspec.structs.replace(live.job.spec, argv="declared"))
        self._jobs.keep()
        self._jobs.degraded(UNSEEN, f"job {live.job.job[:16]}: nobody saw what its first process became")

    def _other(self, live: Live, words: Sequence[str]) -> RefusedError:
        approved = [] if live.ask is None else live.ask.argv
        error = RefusedError(
            OTHER, f"another program than was approved began (expected {shown(approved)}, got {shown(words)})"
        )
        self._jobs.degraded(OTHER, f"job {live.job.job[:16]}: {error}")
        return error


def words_of(pid: int, root: Path = PROC) -> list[str] | None:
    """A process's command line; None where it can't be read or is gone."""
    try:
        data = (root / str(pid) / "cmdline").read_bytes()
    except OSError:
        return None
    return [word.decode("utf-8", "surrogateescape") for word in data.split(b"\0")[:-1]] or None


def began_as(words: Sequence[str], argv: Sequence[str]) -> bool:
    """Whether a command line is what ``execve`` makes of arguments: the same, or of a script what its first line names,
    its path, and the same from there on."""
    if words == argv:
        return True
    before, rest = words[: len(words) - len(argv) + 1], words[len(words) - len(argv) + 1 :]
    if not 2 <= len(before) <= _INTERPRETERS + 1 or rest != argv[1:]:
        return False
    return before[-1] == argv[0] or ("/" not in argv[0] and before[-1].endswith(f"/{argv[0]}"))
