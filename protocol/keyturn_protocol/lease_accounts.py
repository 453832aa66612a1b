"""What one log spends of one subject: what it said that it charged, what of that counts, what it may still spend.

A host says what it charged, and nobody can tell when it lies. Less than the truth is for an audit to find. More than
the truth would let one host use a run up for everybody, in one report. So what counts for the others is

    min(said, max(the highest cap of its leases, what its chips can have done under them))

The second keeps the other hole shut: who computes beyond its lease is charged for it, to the run, as far as any chip
there is can go. What it can't have done stays with the log that said it, and gets it no lease until there was time.
"""

from dataclasses import dataclass, field
from typing import Final

from keyturn_protocol.ids import Origin

TERA: Final = 10**12
_SECOND: Final = 1_000_000
CHIP_TFLOP_S: Final = 100_000
"""More than any chip does in a second, some fifty times what the fastest of the chip table does at its peak; one number
for all, since the chip table is another for each reader and this has to be the same."""
_CHIP_FLOP_US: Final = CHIP_TFLOP_S * TERA // _SECOND


@dataclass(frozen=True, slots=True)
class Grant:
    """One lease, as it is accounted for."""

    hash: str
    sequence: int
    boot_id: str
    chips: tuple[str, ...]
    upto_tflop: int
    expires_us: int
    """No later than this on the host's own clock, which began earlier."""
    adopted: bool = False
    """The log has a word on it."""


@dataclass(slots=True)
class Account:
    """What one log spends of one subject."""

    charged_flop: int = 0
    """The most that it has reported."""
    counted_flop: int = 0
    """What of that counts."""
    possible_flop: int = 0
    """What chips can have done under its leases, up to ``settled_us``."""
    settled_us: int = 0
    open: tuple[Grant, ...] = ()
    """Leases under which it may still spend, oldest first: the one it is on, and one that it hasn't spoken of."""
    cap_tflop: int = 0
    chips: int = 0
    expires_us: int = 0
    """The highest cap of them, how many chips, and when the last of them is over; 0 without any."""
    sequence: int = 0
    """Of its next lease."""
    asked_seq: int = -1
    """Of the entry that the last lease answers."""
    final_seq: int = -1
    """Of its last word: what it asked for before that it won't take."""
    heard_us: int = 0
    written_off_tflop: int = 0
    """What it could have spent when the node left this log for another."""

    @property
    def charged_tflop(self) -> int:
        """What the log has to say of itself."""
        return max(_tflop(self.charged_flop), self.written_off_tflop)

    @property
    def spent_tflop(self) -> int:
        """What of its reports counts."""
        return _tflop(self.counted_flop)

    @property
    def counted_tflop(self) -> int:
        """What counts as charged."""
        return max(self.spent_tflop, self.written_off_tflop)

    @property
    def committed_tflop(self) -> int:
        """What is taken from the budget: a host that spent more than its cap takes what it spent."""
        return max(self.counted_tflop, self.cap_tflop)

    def hold(self, grants: tuple[Grant, ...]) -> None:
        """Set its open leases."""
        self.open = grants
        self.cap_tflop = max((grant.upto_tflop for grant in grants), default=0)
        self.chips = len({chip for grant in grants for chip in grant.chips})
        self.expires_us = max((grant.expires_us for grant in grants), default=0)

    def possible_at(self, at_us: int) -> int:
        """FLOP that its chips can have done by then. Time without a lease, or after its end, is none of theirs."""
        if not self.open:
            return self.counted_flop
        return self.possible_flop + self.chips * _CHIP_FLOP_US * max(0, min(at_us, self.expires_us) - self.settled_us)

    def unbelieved_tflop(self, at_us: int) -> int:
        """What it has reported, and can't have done by then."""
        counts = max(self.counted_flop, min(self.charged_flop, self.possible_at(at_us)))
        return _tflop(self.charged_flop - counts)

    def settle(self, at_us: int, charged_flop: int = 0) -> None:
        """Bring it up to a moment, with what the log reports then."""
        possible = self.possible_at(at_us)
        self.charged_flop = max(charged_flop, self.charged_flop)
        counts = min(self.charged_flop, max(possible, self.cap_tflop * TERA))
        self.counted_flop = max(counts, self.counted_flop)
        self.possible_flop, self.settled_us = possible, at_us


@dataclass(slots=True)
class Subject:
    """What a run, or an allowance, has given out."""

    accounts: dict[Origin, Account] = field(default_factory=dict)
    charged_tflop: int = 0
    committed_tflop: int = 0


def _tflop(flop: int) -> int:
    """Rounded up."""
    return -(-flop // TERA)
