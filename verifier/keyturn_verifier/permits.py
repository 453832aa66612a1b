"""Permit bundles as hosts ask for them: one read for all who ask at once, built once for each thing that is said.

A thousand hosts that wait for a run are woken by one suspension: all of them get the same bytes.
"""

import asyncio
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, Engine, or_, select

from keyturn_protocol.api import ProblemCode
from keyturn_protocol.dsse import parse_envelope
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.ids import Deployment
from keyturn_protocol.lease import parse_lease
from keyturn_protocol.permit import AUTHORITY, Said, Start, format_permit_bundle
from keyturn_verifier import translog
from keyturn_verifier.db.engine import reading
from keyturn_verifier.db.statement_tables import statement
from keyturn_verifier.db.switch_tables import lease_issued
from keyturn_verifier.errors import stored
from keyturn_verifier.problems import Refusal
from keyturn_verifier.switch_state import SwitchState

KEPT_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Built:
    """A bundle's bytes, and the last leaf that is in it."""

    index: int
    data: bytes


class Permits:
    """The bundles of one process. :meth:`get` belongs to the event loop."""

    def __init__(self, deployment: Deployment, engine: Engine, switch: SwitchState) -> None:
        self._deployment = deployment
        self._engine = engine
        self._switch = switch
        self._asking: dict[str | None, list[asyncio.Future[Built]]] = {}
        self._reading: set[asyncio.Task[None]] = set()
        self._busy: set[str | None] = set()
        self._lock = threading.Lock()
        self._kept: OrderedDict[str | None, Built] = OrderedDict()
        self.built = 0
        """How many were built, for tests."""

    async def get(self, run: str | None) -> Built:
        """The bundle of a run, or of roots and policies alone, with all that was said before this call.

        :raises Refusal: ``not_found``.
        """
        future: asyncio.Future[Built] = asyncio.get_running_loop().create_future()
        self._asking.setdefault(run, []).append(future)
        if run not in self._busy:
            self._busy.add(run)
            task = asyncio.ensure_future(self._answer(run))
            self._reading.add(task)
            task.add_done_callback(self._reading.discard)
        return await future

    async def _answer(self, run: str | None) -> None:
        """Read for all who ask now; who asks meanwhile gets the next read, since this one may be too old for them."""
        try:
            while asking := self._asking.pop(run, []):
                try:
                    built = await asyncio.to_thread(self.read, run)
                except Exception as error:
                    # It is everybody's answer, and problems.py knows what to make of it.
                    for future in asking:
                        if not future.done():
                            future.set_exception(error)
                    continue
                for future in asking:
                    if not future.done():
                        future.set_result(built)
        finally:
            self._busy.discard(run)

    def read(self, run: str | None) -> Built:
        """The same in the caller's own thread, with what is stored now."""
        with reading(self._engine) as connection:
            with self._switch.caught_up(connection, translog.head(connection).size) as switch:
                there = switch.standing is not None if run is None else run in switch.runs
            if not there:
                what = "there is no root here yet" if run is None else f"no run {run} is here"
                raise Refusal(ProblemCode.NOT_FOUND, what)
            newest = self._switch.news(run)
            with self._lock:
                kept = self._kept.get(run)
                if kept is not None and kept.index >= newest:
                    self._kept.move_to_end(run)
                    return kept
            built = self._build(connection, run)
            self.built += 1
            self._keep(run, built)
            return built

    def _keep(self, run: str | None, built: Built) -> None:
        with self._lock:
            self._kept[run] = built
            self._kept.move_to_end(run)
            while len(self._kept) > 1 and sum(len(one.data) for one in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)

    def _build(self, connection: Connection, run: str | None) -> Built:
        said, start = _statements(connection, run), None if run is None else _start(connection, run)
        try:
            data = format_permit_bundle(self._deployment, run, said, start)
        except ProtocolError as error:
            if error.code is not Code.TOO_LARGE:
                raise
            raise Refusal(ProblemCode.OVERLOADED, f"more was said than a bundle may hold: {error}") from None
        return Built(max(said[-1].index, -1 if start is None else start.index), data)


@stored
def _start(connection: Connection, run: str) -> Start | None:
    """The run's first lease."""
    row = lease_issued.c
    query = select(row.note, row.leaf, row.time_us).where(row.run == run).order_by(row.leaf).limit(1)
    found = connection.execute(query).one_or_none()
    return None if found is None else Start(parse_lease(found.note), found.leaf, found.time_us)


@stored
def _statements(connection: Connection, run: str | None) -> list[Said]:
    row = statement.c
    query = select(row.leaf, row.time_us, row.envelope).order_by(row.leaf)
    about = row.kind.in_(AUTHORITY) if run is None else or_(row.run == run, row.kind.in_(AUTHORITY))
    return [Said(parse_envelope(r.envelope), r.leaf, r.time_us) for r in connection.execute(query.where(about))]
