"""Asks for leases in the log, checks and keeps those that come, and asks anew before they end.

Each step is durable before the next one rests on it: the nonce in a signed entry, the lease on disk before anything is
charged to it.
"""

import logging
import secrets

from keyturn_agent.errors import RefusedError
from keyturn_agent.ports import Answer, SwitchVerifier
from keyturn_agent.switch import lease_answer
from keyturn_agent.switch.asking import Leased, Told
from keyturn_agent.switch.errands import Done, Errands
from keyturn_agent.switch.gatelink import NOTICES
from keyturn_agent.switch.jobs import Jobs, Live
from keyturn_agent.switch.lease_answer import RETRY_S, NoLease, Note, NotYet, TooLate
from keyturn_agent.switch.lease_check import AHEAD_US, BehindError, Wanted, check_lease
from keyturn_agent.switch.lease_state import SECOND, Asked, Holding, Job, Now, Phase, renew_us
from keyturn_agent.switch.permits import Permits
from keyturn_agent.switch.spec import still
from keyturn_agent.switch.timers import Timers
from keyturn_protocol.canonical import fit_text
from keyturn_protocol.entry_switch import PermitBody, SpecChecks
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.lease import Lease, SignedLease, lease_subject, parse_lease
from keyturn_protocol.permit import Opened

logger = logging.getLogger(__name__)


class Leasing:
    """The leases of jobs. ``notices``: whether there is a gate, which leaves its notices for whoever runs."""

    def __init__(
        self,
        jobs: Jobs,
        errands: Errands,
        verifier: SwitchVerifier,
        permits: Permits,
        timers: Timers,
        *,
        notices: bool,
    ) -> None:
        self._jobs = jobs
        self._errands = errands
        self._verifier = verifier
        self._permits = permits
        self._timers = timers
        self._notices = notices

    # -- asking

    def ask(self, live: Live) -> None:
        """Ask for a lease in the log: what was asked for, and by whom, is signed before the verifier answers."""
        nonce = secrets.token_hex(32)
        hands = self._jobs.hands
        if hands.writable:
            hands.write([request(live.job, nonce, still(live.job.spec, live.replaced), first=live.lease is None)])
        log = self._jobs.store.log
        if not hands.writable:
            # Whose place in the log nobody knows can't be shown to the verifier: it is asked anew once there is room.
            self._again(live, "there is no room on the disk of this host")
            live.renew_us = None if live.renew_us is None else live.again_us
            return
        asked = Asked(origin=log.name.origin, seq=log.size - 1, nonce=nonce, mono_us=log.chain.mono_us)
        self._jobs.seal()
        live.change(asked=asked)
        live.again_us = self._jobs.now().mono_us
        if live.phase is Phase.LOOKING:
            live.move(Phase.ASKING)
            live.tell(Told(text="asking for a lease"))
        self._jobs.keep()

    def step(self, live: Live, now: Now) -> None:
        """Have the request's receipt, then the lease."""
        asked, log = live.job.asked, self._jobs.store.log
        if asked is None or asked.origin != log.name.origin:
            # The log was left for another one: what was asked in it counts for nothing.
            if now.mono_us >= live.again_us:
                self.ask(live)
            return
        if log.spool.receipted <= asked.seq or now.mono_us < live.again_us:
            return
        verifier = self._verifier
        origin, seq = asked.origin, asked.seq
        self._errands.run(f"lease {live.job.job}", lambda: verifier.lease(origin, seq))

    def renew(self, live: Live, now: Now) -> None:
        """Have the next lease of a job, once it is time for it; not of one that somebody stops, nor before an agent
        that was started again has seen whether somebody does."""
        due = live.renew_us is not None and now.mono_us >= live.renew_us
        if live.job.asked is not None:
            self.step(live, now)
        elif due and live.heard is None and live.opened is not None:
            self.ask(live)

    # -- what is answered

    def answered(self, live: Live, done: Done) -> None:
        """
        :raises RefusedError: there is no lease for this job.
        """
        if done.error is None:
            self._hear(live, done.value)
        else:
            self._again(live, f"the verifier doesn't answer: {done.error}; still waiting")

    def _hear(self, live: Live, answer: Answer) -> None:
        now = self._jobs.now()
        live.again_us = now.mono_us + RETRY_S * SECOND
        match lease_answer.said(answer):
            case Note(data=data):
                self._adopt(live, data)
            case TooLate():
                self.ask(live)
                live.again_us = now.mono_us + SECOND
            case NoLease(why=why, detail=detail) if live.lease is None:
                raise RefusedError(why, f"no lease: {detail}", hint=f"keyturn explain {why}")
            case NoLease(detail=detail, retry_s=retry_s) | NotYet(detail=detail, retry_s=retry_s):
                live.again_us = now.mono_us + retry_s * SECOND
                live.tell(Told(text=fit_text(f"no lease yet: {detail}")))

    def _adopt(self, live: Live, data: bytes) -> None:
        """Check a lease, keep it, and only then charge to it."""
        asked, opened = live.job.asked, live.opened
        if asked is None or opened is None:
            return
        try:
            lease = self._checked(live.job, asked, opened, data)
        except BehindError as error:
            logger.warning("%s; looking at the permit again", error)
            self._again(live, str(error))
            self._permits.look(live)
            return
        except ProtocolError as error:
            # Garbage in place of a lease: asked again, it may be one.
            self._again(live, str(error))
            return
        now = self._jobs.now()
        if lease.time_us > now.time_us + AHEAD_US:
            self._jobs.degraded("verifier_time_ahead", f"a lease of {lease.time_us}, {now.time_us} here")
        first = live.lease is None
        if first and self._timers.spent_us(live, lease, self._jobs.now()) <= self._jobs.now().mono_us + SECOND:
            raise RefusedError(
                "exhausted", f"what is left, up to {lease.upto_tflop} TFLOP, lasts for less than a stop takes"
            )
        self._keep(live, asked, parse_lease(data), first=first)

    def _checked(self, job: Job, asked: Asked, opened: Opened, data: bytes) -> Lease:
        name = self._jobs.store.enrolment
        wanted = Wanted(
            job.kind,
            job.run,
            job.lineage,
            name.organisation,
            name.node_id,
            job.boot_id,
            asked.nonce,
            tuple(job.chips),
        )
        subject = lease_subject(parse_lease(data).lease)
        sequence = self._jobs.sequence(subject, asked.origin)
        charged_flop = self._jobs.metering.charged_flop(subject)
        return check_lease(data, wanted, opened, self._permits.epoch(job.run), sequence, charged_flop)

    def _keep(self, live: Live, asked: Asked, signed: SignedLease, *, first: bool) -> None:
        """Keep a lease that was checked; then say in the log that it is used."""
        jobs, lease = self._jobs, signed.lease
        holding = Holding(sha256=signed.hash.hex(), origin=asked.origin, drawn_us=asked.mono_us)
        live.lease = lease
        live.change(lease=holding, asked=None)
        jobs.adopted(lease_subject(lease), asked.origin, lease.sequence)
        if first:
            # What was measured up to here was under no lease.
            jobs.hands.flush()
        jobs.metering.notes.add(signed)
        # After this the lease is this host's, and is never adopted again.
        jobs.keep()
        jobs.report(live, "adopted", None)
        live.renew_us = renew_us(holding, lease)
        if first:
            live.move(Phase.LEASED)
            live.token = secrets.token_hex(32)
            job = live.job
            notice = f"{NOTICES}/{job.job}.json" if self._notices else None
            live.tell(
                Leased(
                    job=job.job, token=live.token, lease=holding.sha256, chips=job.chips, spec=job.spec, notice=notice
                )
            )
        jobs.keep()

    def _again(self, live: Live, why: str) -> None:
        live.again_us = self._jobs.now().mono_us + RETRY_S * SECOND
        live.tell(Told(text=fit_text(f"no lease yet: {why}")))


def request(job: Job, nonce: str, spec: SpecChecks, *, first: bool = True) -> PermitBody:
    """The entry that asks for a lease. Hosts of a group begin together; whoever has begun waits for nobody.

    :param spec: what is known of what runs, against what is approved now.
    """
    return PermitBody(
        chips=job.chips,
        group=job.group,
        hosts=job.hosts if first else 1,
        kind=job.kind,
        lineage=job.lineage,
        nonce=nonce,
        run=job.run,
        spec=spec,
    )
