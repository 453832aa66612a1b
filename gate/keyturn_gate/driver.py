"""What a kind of gate can do about chips: a port, and the driver that only looks.

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
    contexts: tuple[int, ...] | None
    """Pids that compute on it; None: the driver doesn't say."""
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
    """Locks no chip; sees who computes on them where there is NVML, of which it lets go after each look."""

    kind: Kind = "observe"
    locked_mode = -1

    def look(self) -> Sequence[Seen]:
        try:
            # The binding is only needed for this, and only while there are grants.
            from keyturn_gate.compute_mode import ComputeMode
        except ImportError:
            return ()
        eyes = ComputeMode()
        try:
            return [Seen(each.uuid, None, each.contexts) for each in eyes.look()]
        except DriverError:
            return ()
        finally:
            eyes.close()

    def set_mode(self, uuid: str, mode: int) -> None:
        raise DriverError(f"observing sets no mode (asked for {mode} on {uuid})")

    def close(self) -> None:
        """Nothing is open."""
