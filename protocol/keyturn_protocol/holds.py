"""Chips in use at once, of holders that fall silent by themselves."""

from heapq import heappop, heappush


class Holds:
    """How many chips count at a moment. A holder counts until a moment of its own, without anybody saying so."""

    def __init__(self) -> None:
        self.limit = 0
        """As the last grant had it."""
        self._holders: dict[str, tuple[int, int]] = {}
        """Those that counted at the last change: their chips, and until when."""
        self._ends: list[tuple[int, str]] = []
        """A heap with a moment for every holder that is no later than its end."""
        self._sum = 0

    def put(self, holder: str, chips: int, until_us: int, at_us: int) -> None:
        """Set what a holder has from ``at_us`` on; moments never go back."""
        while self._ends and self._ends[0][0] <= at_us:
            _, passed = heappop(self._ends)
            if (ends_us := self._holders.get(passed, (0, 0))[1]) > at_us:
                heappush(self._ends, (ends_us, passed))
            else:
                self._drop(passed)
        had = self._holders.get(holder)
        if had is not None and had[0] == chips and had[1] <= until_us:
            self._holders[holder] = (chips, until_us)
            return
        self._drop(holder)
        if chips and until_us > at_us:
            self._holders[holder] = (chips, until_us)
            self._sum += chips
            heappush(self._ends, (until_us, holder))

    def held(self, at_us: int, *, but: str = "") -> int:
        """How many chips count at a moment no earlier than the last change, those of ``but`` left out."""
        return self._sum - sum(self._holders.get(holder, (0, 0))[0] for holder in {*self._ended(at_us), but})

    def room(self, at_us: int) -> int:
        return self.limit - self.held(at_us)

    def _drop(self, holder: str) -> None:
        self._sum -= self._holders.pop(holder, (0, 0))[0]

    def _ended(self, at_us: int) -> set[str]:
        """Holders whose end passed by a moment: they are at the top of the heap, as far down as it has such moments."""
        found, look = set(), [0]
        while look:
            at = look.pop()
            if at < len(self._ends) and self._ends[at][0] <= at_us:
                holder = self._ends[at][1]
                if self._holders.get(holder, (0, at_us + 1))[1] <= at_us:
                    found.add(holder)
                look += (2 * at + 1, 2 * at + 2)
        return found
