"""A tamper operator: who can do it, what is done, and what has to be said about it.

@forgery("anyone", "an entry dropped", says="does not link to what comes before it")
def entry_dropped(world: World) -> Iterable[Bundle]: ...

`says` is a pattern in what the audit prints. What nobody can find is listed as well: its outcome is `pass`.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

from keyturn_protocol.audit import Outcome

By = Literal["anyone", "the host's key", "the verifier's keys", "both keys"]
"""What the forger holds, besides the bundle. `anyone` lists the new hashes in the manifest where that helps."""


class Forgery(NamedTuple):
    by: By
    name: str
    make: Callable[..., Iterable[Any]]
    outcome: Outcome
    says: str
    checkpoint: bool
    """The auditor holds a checkpoint that they got before."""


class Forgeries(list[Forgery]):
    """The operators of one kind, in the order in which they are written."""

    def __call__(
        self, by: By, name: str, *, says: str, outcome: Outcome = "contradicted", checkpoint: bool = False
    ) -> Callable[[Callable[..., Iterable[Any]]], Callable[..., Iterable[Any]]]:
        """Register the function below under a name that no other has."""
        assert (by, name) not in {(f.by, f.name) for f in self}, name

        def add(make: Callable[..., Iterable[Any]]) -> Callable[..., Iterable[Any]]:
            self.append(Forgery(by, name, make, outcome, says, checkpoint))
            return make

        return add


_VARIES = re.compile(
    r"kt\.[a-z]+/node/[0-9a-f]{32}/\d+|logs/[0-9a-f]{32}/\d+/[\d-]+\.(?:segment|receipt)|logs/[0-9a-f]{32}/\d+/|"
    r"statements/[0-9a-f]{64}\.json|leases/[0-9a-f]{64}\.lease|evidence/[0-9a-f]{64}\.segment|\b[0-9a-f]{64}\b"
)


def without_names(message: str) -> str:
    """A message for the table: the names of this run's logs and files as what they are."""

    def name(match: re.Match[str]) -> str:
        text = match[0]
        if text.startswith("kt."):
            return "LOG"
        for ending in (".segment", ".receipt"):
            if text.endswith(ending):
                return ("evidence/…" if text.startswith("evidence") else "LOG/…") + ending
        if text.startswith(("statements/", "leases/")):
            folder, _, name = text.partition("/")
            return f"{folder}/HASH.{name.partition('.')[2]}"
        return "LOG" if text.startswith("logs/") else "HASH"

    return re.sub(r" \((?:expected|got) .*", "", _VARIES.sub(name, message))
