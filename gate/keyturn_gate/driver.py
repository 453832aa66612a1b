"""What a kind of gate can do about chips: a port, and the driver that does nothing.

``observe``       nothing is locked or stopped; what would be is said. Anybody gets around it.
``compute_mode``  see :mod:`~keyturn_gate.compute_mode`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Kind = Literal["observe", "compute_mode"]


class DriverError(Exception):
    """The driver didn't do it; asked again later it may."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A chip at this moment. ``mode`` None: it has none that could be set, and ``detail`` says why."""

    uuid: str
    mode: int | None
    contexts: tuple[int, ...]
    """Pids that compute on it."""
    detail: str | None = None


class Driver(Protocol):
    """A kind of lock. Every method may hang; only the locker's thread calls them.

    All raise :class:`DriverError`.
    """

    @property
    def kind(self) -> Kind: ...

    @property
    def locked_mode(self) -> int:
        """The mode in which nobody can begin to compute on a chip."""
        ...

    def look(self) -> Sequence[Seen]:
        """Every chip, MIG instances in place of a GPU that is divided."""
        ...

    def set_mode(self, uuid: str, mode: int) -> None: ...

    def close(self) -> None:
        """Let go of the library. Modes stay as they are."""
        ...


class Observe:
    """Sees no chips and locks none."""

    kind: Kind = "observe"
    locked_mode = -1

    def look(self) -> Sequence[Seen]:
        return ()

    def set_mode(self, uuid: str, mode: int) -> None:
        raise DriverError(f"observing sets no mode (asked for {mode} on {uuid})")

    def close(self) -> None:
        """Nothing is open."""
