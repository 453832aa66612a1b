"""Does what operators ask of the running agent: pause and resume. What it does is signed before it is answered."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from keyturn_agent import control
from keyturn_agent.errors import RefusedError
from keyturn_agent.meter import Meter
from keyturn_agent.ports import GpuSource
from keyturn_protocol.canonical import fit_text
from keyturn_protocol.entries import Body, PausedBody

logger = logging.getLogger(__name__)


class Operator:
    """The daemon's side of :mod:`~keyturn_agent.control`, in the daemon's thread.

    :param write: appends entries.
    :param checkpoint: seals them and says how the agent is.
    """

    def __init__(
        self,
        folder: Path,
        source: GpuSource,
        meter: Meter,
        write: Callable[[Sequence[Body]], None],
        checkpoint: Callable[[], None],
    ) -> None:
        self._folder = folder
        self._source = source
        self._meter = meter
        self._write = write
        self._checkpoint = checkpoint
        self._resume_at_us: int | None = None

    @property
    def paused_until_us(self) -> int | None:
        """The end of the pause (UTC), or None."""
        return None if self._resume_at_us is None else self._resume_at_us + self._meter.anchor_us

    def obey(self, now_us: int) -> None:
        """Do what the operator asks, and end a pause that is over."""
        paused = self._resume_at_us is not None
        match control.take(self._folder):
            case control.PauseRequest() as request:
                self._pause(request, now_us)
            case control.ResumeRequest(id=request_id):
                self._resume()
                detail = "metering goes on" if paused else "the agent isn't paused"
                self._answer(request_id, detail, None if paused else "not_paused")
            case None if self._resume_at_us is not None and now_us >= self._resume_at_us:
                self._resume()
            case None:
                pass

    def _resume(self) -> None:
        if self._resume_at_us is not None:
            logger.info("metering goes on")
            self._source.reopen()
            self._resume_at_us = None
            self._checkpoint()

    def _pause(self, request: control.PauseRequest, now_us: int) -> None:
        if self._source.kind == "replay":
            self._answer(request.id, "a replay holds no driver", "not_live")
            return
        try:
            self._source.close()
        except RefusedError as error:
            if self._resume_at_us is None:
                # Nothing was let go, so there is nothing to sign: what hangs is a gap of its own.
                self._source.reopen()
            self._answer(request.id, str(error), error.code, error.hint)
            return
        self._write([*self._meter.flush(), PausedBody(for_us=request.for_us, reason=request.reason)])
        self._resume_at_us = now_us + request.for_us
        self._checkpoint()
        self._answer(request.id, "paused", None)

    def _answer(self, request_id: str, detail: str, refused: str | None, hint: str | None = None) -> None:
        reply = control.Reply(
            id=request_id,
            refused=refused,
            detail=fit_text(detail),
            hint=None if hint is None else fit_text(hint),
            until_us=self.paused_until_us,
        )
        control.answer(self._folder, reply)
