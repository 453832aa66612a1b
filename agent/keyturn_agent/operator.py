"""Does what operators ask of the running agent. What it does is signed before it is answered.

A request takes no time of the metering: what has to wait for the verifier is looked at again with each turn of the
loop.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from keyturn_agent import control, pausing
from keyturn_agent.courier import Courier
from keyturn_agent.errors import AgentError, RefusedError, UsageError
from keyturn_agent.keyring import refuse_sealed
from keyturn_agent.meter import Meter
from keyturn_agent.ports import Clock, GpuSource
from keyturn_agent.status import mark_retired, read_listed, write_listed
from keyturn_agent.store import Store
from keyturn_protocol.canonical import fit_text
from keyturn_protocol.entries import Body
from keyturn_protocol.entry_log import PausedBody, RetiredBody
from keyturn_protocol.ids import Origin

logger = logging.getLogger(__name__)

RECEIPT_S: Final = 25
"""How long a key roll waits for each of its receipts before it is answered (real time)."""


@dataclass(frozen=True, slots=True)
class Hands:
    """What wishes need of the daemon, in its thread.

    :param write: appends entries.
    :param checkpoint: seals them and says how the agent is.
    :param roll: ends the log with the next key's announcement and goes on in the next one.
    :param relist: writes a new inventory; the reason is that of chips that it leaves out.
    :param readable: the uuids of the chips that the last sample has.
    :param leased: whether anything runs under a lease.
    :param room: whether there is room for entries.
    """

    write: Callable[[Sequence[Body]], None]
    checkpoint: Callable[[], None]
    roll: Callable[[], None]
    relist: Callable[[str], None]
    readable: Callable[[], set[str]]
    leased: Callable[[], bool]
    room: Callable[[], bool]


@dataclass(slots=True)
class _Roll:
    """A key roll that waits: first for the receipt of ``size`` entries of ``origin``, then for that log's end."""

    id: str
    origin: Origin
    size: int
    until_s: int
    done: bool = False


class Operator:
    """The daemon's side of :mod:`~keyturn_agent.control`, in the daemon's thread.

    :param real_s: the host's real time.
    """

    def __init__(
        self,
        store: Store,
        courier: Courier,
        source: GpuSource,
        clock: Clock,
        real_s: Callable[[], int],
    ) -> None:
        self._store = store
        self._courier = courier
        self._source = source
        self._clock = clock
        self._real_s = real_s
        self._roll: _Roll | None = None
        self._ending: control.RetireRequest | None = None
        self._pausing = self._kept()
        self._meter: Meter
        self._hands: Hands

    def _kept(self) -> pausing.Pausing | None:
        """Keep to a pause that an agent before this one began: nothing opens the driver before its end."""
        found = pausing.kept(self._store.folder)
        if found is None or self._source.kind == "replay":
            return None
        left_us = found.left_us(self._clock)
        if left_us <= 0:
            pausing.forget(self._store.folder)
            return None
        logger.warning("still paused for %d s: %s", left_us // 1_000_000, found.reason)
        self._source.close()
        return found

    def begin(self, meter: Meter, hands: Hands) -> None:
        """From here on requests are obeyed."""
        self._meter, self._hands = meter, hands

    @property
    def paused_until_us(self) -> int | None:
        """The end of the pause (UTC), or None."""
        return None if self._pausing is None else self._clock.now().time_us + self._pausing.left_us(self._clock)

    @property
    def ending(self) -> control.RetireRequest | None:
        """The wish that this host be retired: the loop ends with it."""
        return self._ending

    def still(self) -> list[PausedBody]:
        """The pause that goes on, for the start of an agent and of a log."""
        if self._pausing is None:
            return []
        return [PausedBody(for_us=max(0, self._pausing.left_us(self._clock)), reason=self._pausing.reason)]

    def obey(self) -> None:
        """Do what the operator asks, go on with what waits, and end a pause that is over."""
        if self._roll is not None:
            self._go_on(self._roll)
        try:
            match control.take(self._store.folder):
                case control.PauseRequest() as request:
                    self._pause(request)
                case control.ResumeRequest(id=request_id):
                    self._resume_asked(request_id)
                case control.KeyRollRequest() as request:
                    self._begin_roll(request)
                case control.RetireRequest() as request:
                    self._retire(request)
                case None if self._pausing is not None and self._pausing.left_us(self._clock) <= 0:
                    self._resume()
                case None:
                    return
        except _NoError as no:
            self._answer(no.id, str(no.error), no.error.code, no.error.hint)

    def ended(self, *, receipted: bool) -> None:
        """The run is over: answer the wish that ended it."""
        if self._ending is None:
            return
        if self._store.log.chain.closed != "retired":
            why = self._courier.last_error or "its last entry could not be written"
            self._answer(self._ending.id, f"this host was not retired: {why}", "not_retired")
        elif not receipted:
            self._no_receipt(self._ending.id, "the retirement is not receipted yet")
        else:
            mark_retired(self._store.folder)
            self._answer(self._ending.id, "this host is retired; its log has ended", None)

    # -- pause and resume

    def _pause(self, request: control.PauseRequest) -> None:
        if self._source.kind == "replay":
            raise _no(request, "not_live", "a replay holds no driver")
        try:
            self._source.close()
        except RefusedError as error:
            if self._pausing is None:
                # Nothing was let go, so there is nothing to sign: what hangs is a gap of its own.
                self._source.reopen()
            raise _NoError(request.id, error) from None
        now = self._clock.now()
        self._pausing = pausing.Pausing(
            v=1,
            boot_id=self._clock.boot_id,
            until_mono_us=now.mono_us + request.for_us,
            until_us=now.time_us + request.for_us,
            for_us=request.for_us,
            reason=request.reason,
        )
        pausing.keep(self._store.folder, self._pausing)
        self._hands.write([*self._meter.flush(), PausedBody(for_us=request.for_us, reason=request.reason)])
        self._hands.checkpoint()
        self._answer(request.id, "paused", None)

    def _resume_asked(self, request_id: str) -> None:
        paused = self._pausing is not None
        self._resume()
        detail = "metering goes on" if paused else "the agent isn't paused"
        self._answer(request_id, detail, None if paused else "not_paused")

    def _resume(self) -> None:
        if self._pausing is not None:
            logger.info("metering goes on")
            self._pausing = None
            pausing.forget(self._store.folder)
            self._source.reopen()
            self._hands.checkpoint()

    # -- a new key

    def _begin_roll(self, request: control.KeyRollRequest) -> None:
        try:
            refuse_sealed(self._store.keyring)
        except RefusedError as error:
            raise _NoError(request.id, error) from None
        if self._roll is not None:
            raise _no(request, "busy", "a key roll is going on already")
        if not self._hands.room():
            raise _no(request, "no_room", "there is no room for new entries", "see keyturn-agent status")
        if self._store.before is not None:
            raise _no(request, control.NO_RECEIPT, "the end of the log before the last roll is not receipted yet")
        # The verifier first has everything up to here: a folder that was rolled back must not sign a new key.
        self._hands.checkpoint()
        log = self._store.log
        self._roll = _Roll(request.id, log.name.origin, log.size, self._real_s() + RECEIPT_S)
        self._courier.hurry()

    def _go_on(self, roll: _Roll) -> None:
        """Look again at a roll that waits for receipts."""
        log = self._store.log
        if (leave := self._courier.leave()) is not None or (not roll.done and log.name.origin != roll.origin):
            why = "the verifier took no more of it" if leave is None else leave.why
            self._roll = None
            self._answer(roll.id, f"this log can't go on: {why}", "rejected")
        elif not roll.done and log.spool.receipted >= roll.size and log.sealed >= roll.size:
            self._hands.roll()
            roll.done, roll.until_s = True, self._real_s() + RECEIPT_S
            self._courier.hurry()
        elif roll.done and self._settled():
            self._roll = None
            self._answer(roll.id, f"the key was rolled; the log goes on as {log.name.origin}", None)
        elif self._real_s() > roll.until_s:
            self._roll = None
            what = "the roll is not receipted yet; the agent goes on trying" if roll.done else "the key was not rolled"
            self._no_receipt(roll.id, what)

    def _settled(self) -> bool:
        self._store.settle_keys()
        return self._store.before is None

    # -- retirements

    def _retire(self, request: control.RetireRequest) -> None:
        if request.chips is None:
            if self._hands.leased():
                raise _no(request, "leased", "a command runs under a lease here", "keyturn-agent status shows which")
            if not self._hands.room():
                raise _no(request, "no_room", "there is no room for the last entry", "see keyturn-agent status")
            # Answered when the log has ended.
            self._ending = request
            return
        wanted = set(request.chips)
        known = {chip.uuid for chip in read_listed(self._store.folder)}
        if strange := sorted(wanted - known):
            raise _no(request, "no_chip", f"not a chip of this host: {', '.join(strange)}")
        if working := sorted(wanted & self._hands.readable()):
            hint = "a chip that is retired is one that is gone: take it out first, or stop the agent"
            raise _no(request, "still_metered", f"still metered: {', '.join(working)}", hint)
        try:
            self._source.forget(wanted)
        except AgentError as error:
            raise _NoError(request.id, error) from None
        listed = {chip.uuid for chip in self._meter.inventory.chips}
        if absent := sorted(wanted - listed):
            self._hands.write([RetiredBody(chips=absent, reason=request.reason)])
        if wanted & listed:
            self._hands.relist(request.reason)
        write_listed(self._store.folder, self._meter.inventory.chips, retired=wanted)
        self._hands.checkpoint()
        self._answer(request.id, f"retired {', '.join(sorted(wanted))}", None)

    # -- answers

    def _no_receipt(self, request_id: str, what: str) -> None:
        why = self._courier.last_error or "no answer from the verifier yet"
        hint = "run the same command again once the verifier answers"
        self._answer(request_id, f"{what}: {why}", control.NO_RECEIPT, hint)

    def _answer(self, request_id: str, detail: str, refused: str | None, hint: str | None = None) -> None:
        reply = control.Reply(
            id=request_id,
            refused=refused,
            detail=fit_text(detail),
            hint=None if hint is None else fit_text(hint),
            until_us=self.paused_until_us,
        )
        control.answer(self._store.folder, reply)


class _NoError(Exception):
    """A request is refused."""

    def __init__(self, request_id: str, error: AgentError) -> None:
        self.id = request_id
        self.error = error


def _no(request: control.Request, code: str, message: str, hint: str | None = None) -> _NoError:
    return _NoError(request.id, UsageError(code, message, hint=hint))
