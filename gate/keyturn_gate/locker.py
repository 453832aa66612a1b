"""Brings chips into the mode that the grants say, in a thread of its own: a driver that hangs never delays a stop.

Every pass looks at all chips. One that no grant names and that isn't released is locked; every other one gets back the
mode that was found. Somebody who sets another mode meanwhile is root: that is said, the mode counts as the one that
was found, and the chip is locked again.
"""

import logging
import threading
from collections.abc import Callable
from typing import Final

from keyturn_gate import host, processes
from keyturn_gate.driver import Driver, DriverError, Seen
from keyturn_gate.keeper import Keeper, Kept
from keyturn_gate.messages import Chip, State
from keyturn_gate.strays import Look

logger = logging.getLogger(__name__)

_QUIET_S: Final = 5.0
_BUSY_S: Final = 1.0
"""Between two passes: while nothing is wrong, and while something is."""


class Locker:
    """The chips, as the last pass left them.

    :param changed: called from the locker's thread after each pass.
    """

    def __init__(self, driver: Driver, keeper: Keeper, changed: Callable[[], None]) -> None:
        self._driver = driver
        self._keeper = keeper
        self._changed = changed
        self._turn = threading.Condition()
        self._asked = self._done = 0
        self._stop = False
        self._chips: dict[str, Chip] = {}
        self._look: Look | None = None
        self._trouble: str | None = None
        self._said: dict[str, str] = {}
        self._told: dict[str, tuple[int, ...]] = {}
        self._thread = threading.Thread(target=self._run, name="locker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def kick(self) -> int:
        """Ask for a pass over what is kept now; :attr:`done` reaches the number that is returned when it was made."""
        with self._turn:
            self._asked += 1
            self._turn.notify_all()
            return self._asked

    @property
    def done(self) -> int:
        with self._turn:
            return self._done

    @property
    def chips(self) -> dict[str, Chip]:
        with self._turn:
            return dict(self._chips)

    @property
    def trouble(self) -> str | None:
        """Why the driver doesn't answer, or None."""
        with self._turn:
            return self._trouble

    @property
    def look(self) -> Look | None:
        """Who computes where, by the last pass that the driver answered; chips were set by it before this is here."""
        with self._turn:
            return self._look

    def stop(self, seconds: float) -> None:
        """End the thread; a call that hangs is left behind."""
        with self._turn:
            self._stop = True
            self._turn.notify_all()
        self._thread.join(seconds)

    # -- the locker's thread

    def _run(self) -> None:
        while True:
            with self._turn:
                if self._stop:
                    break
                number = self._asked
            busy = self._pass()
            with self._turn:
                self._done = number
            self._changed()
            with self._turn:
                if self._asked == number and not self._stop:
                    self._turn.wait(_BUSY_S if busy else _QUIET_S)
        self._driver.close()

    def _pass(self) -> bool:
        """One pass; returns whether to look again soon."""
        observes = self._driver.kind == "observe"
        if observes and not self._keeper.kept.wonders:
            # It keeps its hands off the driver, which somebody may want to unload, until there is something to see.
            return False
        began_us = host.boottime_us()
        try:
            seen = self._driver.look()
        except DriverError as error:
            self._say("driver", "trouble", str(error))
            with self._turn:
                self._trouble = str(error)
                self._chips = {}
            return True
        self._say("driver", "trouble", "")
        look = Look(
            began_us, {one.uuid: None if one.contexts is None else processes.seen(one.contexts) for one in seen}
        )
        kept = self._keeper.looked(look)
        chips = {} if observes else {each.uuid: self._settle(each, kept) for each in seen}
        with self._turn:
            self._chips, self._trouble, self._look = chips, None, look
        wrong = [chip for chip in chips.values() if chip.state == "unknown"]
        return bool(wrong) or any(grant.closed_us is not None for grant in kept.grants.values())

    def _settle(self, seen: Seen, kept: Kept) -> Chip:
        grants = [grant for grant in kept.grants.values() if seen.uuid in grant.chips]
        opened = kept.released is not None or any(one.closed_us is None and one.job in kept.before for one in grants)
        found, locked = kept.found.get(seen.uuid), self._driver.locked_mode
        if seen.mode is None:
            self._say(seen.uuid, "cannot_lock", f"{seen.uuid} can't be locked: {seen.detail}")
            return self._chip(seen, "cannot_lock", None, seen.detail)
        before = self._chips.get(seen.uuid)
        if found is None or seen.mode != locked:
            if before is not None and before.state == "locked":
                self._keeper.note("relocked", None, f"{seen.uuid} had been set to compute mode {seen.mode}")
            # Before anything is set: after a crash this is what there is to restore.
            self._keeper.find(seen.uuid, seen.mode)
            found = seen.mode
        wanted = found if opened else locked
        if seen.mode != wanted:
            try:
                self._driver.set_mode(seen.uuid, wanted)
            except DriverError as error:
                self._say(seen.uuid, "cannot_lock", f"{seen.uuid} stays in compute mode {seen.mode}: {error}")
                refused = "not supported" in str(error)
                return self._chip(seen, "cannot_lock" if refused else "unknown", found, str(error))
            logger.info("%s is %s", seen.uuid, "open" if opened else "locked")
        self._say(seen.uuid, "cannot_lock", "")
        # Who came under a grant that is ending is the gate's to stop.
        self._contexts(seen, opened=opened or bool(grants))
        if opened and wanted == locked:
            return self._chip(seen, "prohibited", found, "nobody could compute on it before the gate came")
        return self._chip(seen, "open" if opened else "locked", found, None)

    def _chip(self, seen: Seen, state: State, found: int | None, detail: str | None) -> Chip:
        return Chip(uuid=seen.uuid, state=state, found=found, contexts=len(seen.contexts or ()), detail=detail)

    def _contexts(self, seen: Seen, *, opened: bool) -> None:
        """Who computes on a chip that is locked had begun before: said once, and left alone."""
        strangers = () if opened else seen.contexts or ()
        if strangers and strangers != self._told.get(seen.uuid):
            pids = ", ".join(map(str, strangers[:20]))
            self._keeper.note("contexts", None, f"{seen.uuid} is locked, and in use since before: process {pids}")
        self._told[seen.uuid] = strangers

    def _say(self, about: str, kind: str, text: str) -> None:
        """Keep as an event what is new; an empty text is the end of it."""
        key = f"{about} {kind}"
        if text and self._said.get(key) != text:
            self._keeper.note(kind, None, text)
        self._said[key] = text
