"""What happened to runs at a leaf, as messages: what was said, and each run that is in another state than before."""

from collections.abc import Iterator

from keyturn_protocol.authority import Logged
from keyturn_protocol.lifecycle import Run, state
from keyturn_protocol.runs import Request
from keyturn_protocol.statement_base import kind_of
from keyturn_protocol.switch import Change, Switch
from keyturn_verifier.notify import event


def events(switch: Switch, logged: Logged, change: Change, about: str | None) -> Iterator[bytes]:
    """The messages of a statement; ``switch`` is the one before it.

    :param about: the hash of the run that it is about, if it is about one.
    """
    said, kind = logged.statement, kind_of(logged.statement)
    person = said.requester if isinstance(said, Request) else getattr(said, "person", None)
    data = {"index": logged.index, "kind": kind, "sha256": logged.hash, "run": about, "person": person}
    yield event(f"statement.{kind}", logged.time_us, **data)
    for digest, run in sorted(change.runs.items()):
        before = switch.runs.get(digest)
        now = state(run, logged.time_us)
        if before is None or state(before, logged.time_us) is not now:
            yield moved(run, now, logged.index, logged.time_us)


def moved(run: Run, to: str, index: int, time_us: int) -> bytes:
    """A run is in another state."""
    return event(f"run.{to}", time_us, index=index, run=run.hash, label=run.request.label, state=to)
