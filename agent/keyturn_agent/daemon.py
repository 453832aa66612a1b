"""The loop of the agent: sample, write entries, seal. Uploads happen beside it, in the courier's thread."""

import logging
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from keyturn_agent import control
from keyturn_agent.config import Config
from keyturn_agent.courier import Courier
from keyturn_agent.errors import StoreError
from keyturn_agent.live import LiveChip, live_chips
from keyturn_agent.meter import DESTROYED, Meter, gone_meanwhile
from keyturn_agent.metrics_out import Outlet
from keyturn_agent.operator import Hands, Operator
from keyturn_agent.ports import Clock, GpuSource, Sample, Stop
from keyturn_agent.pressure import Level
from keyturn_agent.status import Live, read_listed, read_live, write_listed, write_live
from keyturn_agent.steps import Moved, Steps
from keyturn_agent.store import Store
from keyturn_agent.switch.gate_word import Driver
from keyturn_agent.switch.lessee import Lessee
from keyturn_agent.systemd import Notifier
from keyturn_agent.watch import Watch
from keyturn_agent.writer import Writer
from keyturn_protocol.entries import Body
from keyturn_protocol.entry_inventory import InventoryBody
from keyturn_protocol.entry_log import ClockStepBody, DegradedBody, HeartbeatBody, RetiredBody, ShutdownBody
from keyturn_protocol.limits import MAX_INT

logger = logging.getLogger(__name__)

_ASK_AGAIN_US: Final = 1_000_000
_LOOK_US: Final = 1_000_000
_SOON_US: Final = 50_000
_SAY_S: Final = 2
"""How often the status is written, in seconds of real time."""


class Daemon:
    """One run of the agent over an open store.

    :param real_s: the host's real time, which guards against incarnations without end; also in a replay.
    :param watch: who is told how it goes; nobody by default.
    """

    def __init__(
        self,
        store: Store,
        source: GpuSource,
        clock: Clock,
        courier: Courier,
        stop: Stop,
        config: Config,
        real_s: Callable[[], int],
        watch: Watch | None = None,
        lessee: Lessee | None = None,
    ) -> None:
        self._store = store
        self._source = source
        self._clock = clock
        self._courier = courier
        self._stop = stop
        self._config = config
        self._real_s = real_s
        self._watch = Watch(Notifier(None, None), Outlet(Config()), real_s) if watch is None else watch
        self._lessee = lessee
        ledger = None if lessee is None else lessee.metering
        self._writer = Writer(store, courier, clock, config, real_s, ledger=ledger)
        if lessee is not None:
            lessee.meet_gate()
        # Before anything opens the driver: a pause may hold.
        self._operator = Operator(store, courier, source, clock, real_s)
        inventory = self._inventory()
        now = clock.now()
        self._meter = Meter(inventory, source.declared, config.interval_us, now.time_us - now.mono_us)
        self._steps = Steps(config.clock_step_us)
        self._unreadable: list[int] = []
        self._rows: list[LiveChip] = []
        self._last: Sample | None = None
        self._operator.begin(self._meter, self._hands())
        self._said_s = real_s()
        self._seal_at_us = now.mono_us + config.checkpoint_us
        self._beat_at_us = now.mono_us

    def run(self) -> bool:
        """Meter until the source ends or a stop is asked for; returns whether everything was receipted.

        :raises StoreError: the disk failed; nothing was signed that isn't kept.
        """
        self._courier.start()
        self._carry(ask=True)
        # Nobody waits any more for what was asked of an agent before this one.
        control.take(self._store.folder)
        try:
            self._set_meanwhile()
            self._list()
            if self._lessee is not None:
                self._lessee.begin(self)
            self._look()
            self._watch.started(self._store.log.name.origin)
            reason = self._loop()
            # What waits for the end of this process may be a new driver.
            self._source.stop()
            self._shut_down(reason)
            done = self._drain()
            self._operator.ended(receipted=done)
            return done
        finally:
            self._courier.stop()
            self._source.stop()

    # -- metering

    def _inventory(self) -> InventoryBody:
        """The chips, and what holds them."""
        return msgspec.structs.replace(self._source.inventory(), gate=self._gate)

    @property
    def _gate(self) -> Driver:
        """What the gate does by its own word, and not by our configuration. Without leases nobody asks it."""
        return "none" if self._lessee is None else self._lessee.gate

    def _set_meanwhile(self) -> None:
        """Write down that the wall clock was set while no agent ran, as far as an entry of this boot can tell."""
        before_us = self._store.anchor_us
        step_us = 0 if before_us is None else self._meter.anchor_us - before_us
        if abs(step_us) >= self._config.clock_step_us:
            logger.warning("the wall clock was moved by %d us while the agent was down", step_us)
            now_us = self._clock.now().time_us
            self._write([ClockStepBody(before_us=now_us - step_us, after_us=now_us, step_us=step_us)])

    def _list(self) -> None:
        """Write down which chips there are at the start, and that a pause goes on."""
        chips = self._meter.inventory.chips
        gone = gone_meanwhile(read_listed(self._store.folder), chips)
        if gone:
            self._write([RetiredBody(chips=gone, reason=DESTROYED)])
        self._write([self._meter.inventory, *self._still()])
        write_listed(self._store.folder, chips, retired=gone)
        if (before := read_live(self._store.folder)) is not None:
            self._meter.expect(before.workloads)

    def _still(self) -> list[Body]:
        """What holds from the start of an agent and of a log on: a pause, that owners can't be told, another gate."""
        bodies: list[Body] = [*self._operator.still()]
        if (blind := self._source.blind) is not None:
            logger.warning("%s", blind[1])
            bodies.append(DegradedBody(cause=blind[0], interval_us=None, detail=blind[1]))
        return bodies if self._lessee is None else [*bodies, *self._lessee.still()]

    def _relist(self, reason: str = DESTROYED) -> None:
        """Write down which chips there are now; the reason is that of those which are gone."""
        before = {chip.uuid for chip in self._meter.inventory.chips}
        bodies = self._meter.relist(self._inventory(), reason)
        chips = self._meter.inventory.chips
        # Instances that went while nothing was shown, as while the driver was dead or closed.
        gone = gone_meanwhile(read_listed(self._store.folder), chips)
        if unseen := [uuid for uuid in gone if uuid not in before]:
            bodies.insert(0, RetiredBody(chips=unseen, reason=DESTROYED))
        self._write(bodies)
        # A chip that came isn't read yet; the next sample says what is.
        self._unreadable, self._last = [], None
        write_listed(self._store.folder, chips, retired={*gone, *before} - {chip.uuid for chip in chips})

    def _loop(self) -> str:
        """The loop; returns why it ended."""
        while True:
            sample_at_us = self._source.due_us(self._clock.now().mono_us)
            if sample_at_us is None:
                self._write(self._meter.end("the recording ended"))
                return "the recording ended"
            self._clock.wait_until(
                min(sample_at_us, self._seal_at_us, self._beat_at_us, self._look_at_us()), self._stop
            )
            if self._stop.requested:
                self._write(self._meter.flush())
                return "stopped by the operator"
            if self._operator.ending is not None:
                self._write(self._meter.end("the host was retired"))
                return "retired"
            self._watch.tick(self._store, self._writer)
            now_us = self._clock.now().mono_us
            self._check_clock()
            self._operator.obey()
            if self._lessee is not None:
                self._lessee.turn()
            if now_us >= sample_at_us:
                self._take(self._source.read(now_us))
            if now_us >= self._beat_at_us:
                self._beat_at_us = now_us + self._config.heartbeat_us
                self._write([HeartbeatBody(verifier_checkpoint=self._courier.verifier_checkpoint)])
            if now_us >= self._seal_at_us:
                self._checkpoint()
            self._follow_verifier()
            if self._real_s() - self._said_s >= _SAY_S:
                self._say()

    def _take(self, sample: Sample) -> None:
        if self._lessee is not None:
            self._lessee.sampled(sample)
        taken = self._meter.take(sample)
        self._unreadable = [chip for chip, reading in enumerate(sample.chips) if reading is None]
        self._rows = live_chips(self._meter.inventory.chips, self._last, sample)
        self._last = sample
        self._watch.sampled(self._meter.inventory.chips, sample.chips)
        self._write(taken.bodies)
        if self._source.inventory_changed:
            self._relist()
            self._checkpoint()
        elif taken.workloads_changed:
            # A workload comes or goes: the head says so without delay.
            self._checkpoint()

    def _look_at_us(self) -> int:
        """When to look for requests again; a replay has no driver that could be in the way."""
        if self._lessee is not None:
            return self._clock.now().mono_us + (_SOON_US if self._lessee.busy else _LOOK_US // 4)
        return MAX_INT if self._source.kind == "replay" else self._clock.now().mono_us + _LOOK_US

    def _check_clock(self) -> None:
        """Write down that the wall clock was set, if it was."""
        now = self._clock.now()
        self._move(self._steps.look(now, self._meter.anchor_us, between=self._meter.between))

    def _move(self, moved: Moved | None) -> None:
        """Count UTC anew where the wall clock moved."""
        if moved is None:
            return
        for step in moved.said:
            logger.warning("the wall clock moved by %d us", step.step_us)
        self._write([*self._meter.step_clock(moved.shift_us), *moved.said])

    # -- the log

    def write(self, bodies: Sequence[Body]) -> None:
        """Add entries; for leases, as the two below."""
        self._write(bodies)

    def checkpoint(self) -> None:
        """Sign what is new, and have it sent."""
        self._checkpoint()

    def flush(self) -> None:
        """Write the usage that is open."""
        self._write(self._meter.flush())

    def relist(self) -> None:
        """Write the inventory again, with what the gate does now: the same chips, whose usage goes on."""
        self._write(self._meter.relist(msgspec.structs.replace(self._meter.inventory, gate=self._gate)))

    @property
    def writable(self) -> bool:
        """Whether what is written now is in the log at once."""
        return not self._writer.failed

    def _write(self, bodies: Sequence[Body]) -> None:
        self._writer.write(bodies)

    def _look(self) -> None:
        """Let the room that there is decide how much is written."""
        self._writer.look()
        self._meter.set_interval(self._writer.interval_us)

    def _checkpoint(self) -> None:
        """Say what is still missing, seal, and tell the courier."""
        now = self._clock.now()
        leave = self._courier.leave()
        if not self._courier.asked or (leave is not None and leave.reason == "rollback"):
            # A log that was rolled back signs no more, and until the verifier was asked nobody knows.
            self._seal_at_us = now.mono_us + _ASK_AGAIN_US
            return
        self._seal_at_us = now.mono_us + self._config.checkpoint_us
        self._look()
        self._write(self._meter.missing(now.mono_us))
        if self._writer.seal():
            self._courier.wake()
        self._say()

    def _follow_verifier(self) -> None:
        """Leave the log if the verifier doesn't take it any more, and go on in the next incarnation."""
        if not self._courier.alive:
            raise StoreError("courier", "the upload thread ended; see the log for its error")
        leave = self._courier.leave()
        now_s = self._real_s()
        if leave is None or self._writer.failed or not self._store.may_open_next(now_s, self._config.incarnation_s):
            return
        # What was measured so far belongs to the log that is left. Its bytes are kept and nothing more is signed:
        # after a rollback that would be a second head of some size.
        self._write(self._meter.flush())
        self._store.next_incarnation(leave.reason, leave.why, self._store.stamp(self._clock), now_s)
        self._go_on(leave.reason)

    def _roll(self) -> None:
        """End the log with the next key's announcement, and go on in the next incarnation under that key."""
        self._write(self._meter.flush())
        if self._lessee is not None:
            self._lessee.leave("the log goes on under another key")
        self._store.roll_key(self._store.stamp(self._clock), self._real_s())
        self._go_on("key_roll")

    def _go_on(self, reason: str) -> None:
        """Begin on the log that was just opened: what is there, and what is going on."""
        logger.warning("opened %s (%s)", self._store.log.name.origin, reason)
        self._carry(ask=False)
        self._write([self._meter.inventory, *self._still(), *self._meter.present()])
        self._checkpoint()

    def _hands(self) -> Hands:
        return Hands(
            write=self._write,
            checkpoint=self._checkpoint,
            roll=self._roll,
            relist=self._relist,
            readable=self._readable,
            leased=lambda: self._lessee is not None and self._lessee.holds,
            room=lambda: not self._writer.failed and self._writer.level is not Level.FULL,
        )

    def _readable(self) -> set[str]:
        chips = self._meter.inventory.chips
        return (
            set()
            if self._last is None
            else {chip.uuid for chip, reading in zip(chips, self._last.chips, strict=True) if reading is not None}
        )

    def _carry(self, *, ask: bool) -> None:
        log = self._store.log
        self._courier.carry(log.spool, log.key, ask=ask, before=self._store.before, older=self._store.older())

    def _say(self) -> None:
        self._said_s = self._real_s()
        log = self._store.log
        write_live(
            self._store.folder,
            Live(
                v=1,
                time_us=self._clock.now().time_us,
                origin=log.name.origin,
                size=log.size,
                sealed=log.sealed,
                chips=[chip.uuid for chip in self._meter.inventory.chips],
                unreadable=self._unreadable,
                workloads=[body.id for body in self._meter.present()],
                last_error=self._courier.last_error,
                rows=self._rows,
                unattributed={} if self._last is None else dict(self._last.unattributed),
                paused_until_us=self._operator.paused_until_us,
                gate=None if self._lessee is None else self._lessee.live_gate(),
                leases=[] if self._lessee is None else self._lessee.live_leases(),
            ),
        )

    # -- the end

    def _patience_s(self) -> int:
        """How long the end may wait for the verifier; a stop is quick, since nothing is measured meanwhile."""
        return self._config.stop_s if self._stop.requested else self._config.drain_s

    def _shut_down(self, reason: str) -> None:
        self._watch.stopping(self._store, self._writer, reason)
        now = self._clock.now()
        self._move(self._steps.end(now, self._meter.anchor_us))
        self._write(self._meter.missing(now.mono_us))
        retired = self._operator.ending
        if retired is None:
            self._write([ShutdownBody(reason=reason)])
        self._courier.wait_asked(self._patience_s())
        self._checkpoint()
        fit = self._courier.asked and self._courier.leave() is None and not self._writer.failed
        if retired is not None and fit:
            # The last entry of this log: nothing may follow it.
            self._write([RetiredBody(chips=None, reason=retired.reason)])
            self._writer.seal()
            self._courier.wake()

    def _drain(self) -> bool:
        """Wait for the receipts that are owed; a log that ends meanwhile is followed once."""
        done = self._courier.drain(self._patience_s())
        if self._courier.leave() is not None:
            before = self._store.incarnation
            self._follow_verifier()
            if self._store.incarnation != before:
                self._shut_down("the log before this one ended")
                done = self._courier.drain(self._patience_s())
        self._say()
        log = self._store.log
        # What no head covers wasn't even sent.
        if not done or log.sealed < log.size:
            logger.warning(
                "%d of %d entries are not receipted yet; they are kept and sent at the next start",
                log.size - log.spool.receipted,
                log.size,
            )
            return False
        return True
