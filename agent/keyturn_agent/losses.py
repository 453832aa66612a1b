"""What isn't measured, and why: ``degraded`` when a loss begins, ``gap`` when it ends and at each checkpoint. Pure.

These entries explain. How much is missing comes from the usage entries, which show it as samples 0 or not at all.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from keyturn_agent.sampler import Lost, Span
from keyturn_protocol.entry_log import DegradedBody, GapBody
from keyturn_protocol.entry_usage import FIELDS
from keyturn_protocol.limits import TEXT_CHARS
from keyturn_protocol.values import Slug

FIELDS_LOST: Final[Slug] = "fields_lost"


@dataclass(frozen=True, slots=True)
class _Open:
    """A loss that goes on: since when (UTC), and why."""

    from_us: int
    cause: Slug


class Losses:
    """The losses of all chips of one inventory."""

    def __init__(self, chips: int) -> None:
        self._chips = chips
        self._open: dict[int, _Open] = {}
        self._measured: list[tuple[bool, ...] | None] = [None] * chips

    def see(self, from_us: int, to_us: int, spans: Sequence[Span | Lost]) -> list[GapBody | DegradedBody]:
        """The spans of one sample, between two moments of UTC."""
        ended: dict[int, list[tuple[int, _Open]]] = {from_us: [], to_us: []}
        begun: dict[Slug, list[int]] = {}
        for chip, span in enumerate(spans):
            cause = span.cause if isinstance(span, Lost) else None
            known = self._open.get(chip)
            if known is not None and known.cause != cause:
                ended[from_us].append((chip, self._open.pop(chip)))
                known = None
            if not isinstance(span, Lost):
                continue
            if known is None:
                self._open[chip] = _Open(from_us, span.cause)
                if not span.over:
                    begun.setdefault(span.cause, []).append(chip)
            if span.over:
                ended[to_us].append((chip, self._open.pop(chip)))
        bodies: list[GapBody | DegradedBody] = [*self._gaps(ended[from_us], from_us)]
        bodies += (_degraded(cause, self._name(chips)) for cause, chips in begun.items())
        if fields := self._fields_lost(spans):
            bodies.append(_degraded(FIELDS_LOST, fields))
        return [*bodies, *self._gaps(ended[to_us], to_us)]

    def so_far(self, now_us: int) -> list[GapBody]:
        """The losses that go on, up to ``now_us`` (UTC); each call's gaps contain those of the call before."""
        return self._gaps(sorted(self._open.items()), now_us)

    def step_clock(self, step_us: int) -> None:
        """The wall clock was set; the losses that go on began at the same moment as before, under another name."""
        self._open = {chip: replace(loss, from_us=max(0, loss.from_us + step_us)) for chip, loss in self._open.items()}

    def relist(self, origin: Sequence[int | None]) -> "Losses":
        """The same losses over other chips.

        :param origin: for each chip its number so far, or None if it is new.
        """
        new = Losses(len(origin))
        for chip, before in enumerate(origin):
            if before is not None:
                new._measured[chip] = self._measured[before]
                if before in self._open:
                    new._open[chip] = self._open[before]
        return new

    def _fields_lost(self, spans: Sequence[Span | Lost]) -> str:
        lines: list[str] = []
        for chip, span in enumerate(spans):
            if isinstance(span, Lost):
                continue
            now = tuple(value is not None for value in (*span.sums, *span.maxima))
            before = self._measured[chip]
            if before is not None:
                lost = [f for f, had, has in zip(FIELDS, before, now, strict=True) if had and not has]
                if lost:
                    lines.append(f"chip {chip}: {', '.join(lost)}")
            self._measured[chip] = now
        return "; ".join(lines)

    def _gaps(self, losses: Iterable[tuple[int, _Open]], to_us: int) -> list[GapBody]:
        groups: dict[_Open, list[int]] = {}
        for chip, loss in losses:
            groups.setdefault(loss, []).append(chip)
        return [
            GapBody(
                chips=None if len(chips) == self._chips else chips,
                from_us=loss.from_us,
                to_us=max(loss.from_us, to_us),
                cause=loss.cause,
                detail=None,
            )
            for loss, chips in groups.items()
        ]

    def _name(self, chips: Sequence[int]) -> str:
        if len(chips) == self._chips:
            return "no chip can be read"
        return "cannot be read: chip " + ", ".join(map(str, chips))


def _degraded(cause: Slug, detail: str) -> DegradedBody:
    short = detail if len(detail) <= TEXT_CHARS else detail[: TEXT_CHARS - 1] + "…"
    return DegradedBody(cause=cause, interval_us=None, detail=short)
