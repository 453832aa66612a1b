"""Lists that are computed from everything stored, once for all of their pages.

A list is kept under what it was computed from: its kind and filter, the size of the verifier's log, which grows with
all that such a list rests on, and the moment up to which silence counts. Pages name that moment in their cursors.
One list is computed at a time: a hundred readers who ask for all totals at once don't take the machine.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection

from keyturn_protocol.api import ProblemCode
from keyturn_verifier import translog
from keyturn_verifier.problems import Refusal

LISTS: Final = 8
ITEMS: Final = 200_000
"""Kept in all; a list that is larger alone is kept while it is the newest."""
WAIT_S: Final = 20.0
FRESH_US: Final = 1_000_000
"""A new list is an old one again within this time, if nothing was written since."""


@dataclass(frozen=True, slots=True)
class _Kept:
    until_us: int
    size: int
    items: list[Any]


class Computed:
    """The lists of one process; any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self.made = 0
        """How many were computed, for tests and metrics."""

    def get(
        self,
        connection: Connection,
        what: Hashable,
        until_us: int | None,
        now_us: int,
        make: Callable[[int], list[Any]],
    ) -> tuple[list[Any], int]:
        """A list and the moment that it is of.

        :param until_us: the moment that a cursor names; None for a first page.
        :raises Refusal: ``overloaded``: others are being computed.
        """
        with self._turn():
            size = translog.head(connection).size
            if until_us is None:
                kept = self._kept.get((what, None))
                if kept is None or kept.size != size or not 0 <= now_us - kept.until_us < FRESH_US:
                    kept = self._make(what, now_us, size, make)
                    self._keep((what, None), kept)
            else:
                kept = self._kept.get((what, until_us)) or self._make(what, until_us, size, make)
            return kept.items, kept.until_us

    def _make(self, what: Hashable, until_us: int, size: int, make: Callable[[int], list[Any]]) -> _Kept:
        kept = _Kept(until_us, size, make(until_us))
        self.made += 1
        self._keep((what, until_us), kept)
        return kept

    def _keep(self, key: Hashable, kept: _Kept) -> None:
        self._kept[key] = kept
        self._kept.move_to_end(key)
        while len(self._kept) > 2 * LISTS or (
            len(self._kept) > 2 and sum(len(one.items) for one in self._kept.values()) > 2 * ITEMS
        ):
            self._kept.popitem(last=False)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=WAIT_S):
            raise Refusal(ProblemCode.OVERLOADED, "other lists are being computed; ask again")
        try:
            yield
        finally:
            self._lock.release()
