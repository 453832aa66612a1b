"""Who is told how the agent is doing while it runs: systemd, and whoever reads the metrics."""

import os
import socket
from collections.abc import Callable, Sequence
from typing import Final

from keyturn_agent import __version__
from keyturn_agent.config import Config
from keyturn_agent.metrics import Health, exposition, of_agent, of_chips
from keyturn_agent.metrics_out import Outlet
from keyturn_agent.ports import Reading
from keyturn_agent.store import Store
from keyturn_agent.systemd import Notifier
from keyturn_agent.writer import Writer
from keyturn_protocol.entry_inventory import Chip

_PUT_S: Final = 5


class Watch:
    """Silent where nobody asked.

    :param real_s: the host's real time.
    """

    def __init__(self, notifier: Notifier, outlet: Outlet, real_s: Callable[[], int]) -> None:
        self._notifier = notifier
        self._outlet = outlet
        self._real_s = real_s
        self._hostname = socket.gethostname()
        self._chips: Sequence[Chip] = ()
        self._readings: Sequence[Reading | None] = ()
        self._put_s: int | None = None

    @classmethod
    def of(cls, config: Config, real_s: Callable[[], int]) -> "Watch":
        """As the configuration and the environment say.

        :raises UnavailableError: ``no_address``: the address can't be listened on.
        """
        outlet = Outlet(config)
        return cls(Notifier.from_environment(os.environ), outlet, real_s)

    def started(self, origin: str) -> None:
        """The log is open and has its inventory."""
        self._notifier.ready(f"metering into {origin}")

    def sampled(self, chips: Sequence[Chip], readings: Sequence[Reading | None]) -> None:
        if len(chips) == len(readings):
            self._chips, self._readings = chips, readings

    def tick(self, store: Store, writer: Writer) -> None:
        """The loop has gone round."""
        self._notifier.alive()
        if not self._outlet.wanted:
            return
        now_s = self._real_s()
        if self._put_s is None or not 0 <= now_s - self._put_s < _PUT_S:
            self._put_s = now_s
            self._put(store, writer, running=True)

    def stopping(self, store: Store, writer: Writer, reason: str) -> None:
        self._notifier.stopping(reason)
        if self._outlet.wanted:
            self._readings, self._chips = (), ()
            self._put(store, writer, running=False)

    def close(self) -> None:
        self._outlet.close()
        self._notifier.close()

    def _put(self, store: Store, writer: Writer, *, running: bool) -> None:
        spool = store.log.spool
        segments, size = spool.waiting()
        health = Health(
            version=__version__,
            origin=store.log.name.origin,
            incarnation=store.incarnation,
            entries=store.log.size,
            sealed=store.log.sealed,
            receipted=spool.receipted,
            spool_segments=segments,
            spool_bytes=size,
            spool_level=writer.level.value,
            gaps=writer.gaps,
            last_receipt_s=spool.last_receipt_s(),
            running=running,
        )
        self._outlet.put(exposition([*of_agent(health), *of_chips(self._chips, self._readings, self._hostname)]))
