"""From the lines of a segment to everything that follows from them: what verifier and auditor do alike.

The lines are taken a few dozen at a time, so that what was measured is added up and gone before the next ones come.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from keyturn_protocol.charging import Charge
from keyturn_protocol.entries import Entry, Usage
from keyturn_protocol.findings import Finding, in_entries
from keyturn_protocol.ids import Hash, LogName
from keyturn_protocol.segment import ChainState, EntryError, follow
from keyturn_protocol.usage import Folding, FoldState, Gap, Rows
from keyturn_protocol.usage_runs import RUN, Shares, read_run


@dataclass(frozen=True, slots=True)
class Digest:
    """What lines come to. ``chain`` and ``fold`` are the states after them; ``events`` all entries but usage."""

    chain: ChainState
    fold: FoldState
    events: tuple[Entry, ...]
    rows: Rows
    gaps: tuple[Gap, ...]
    findings: tuple[Finding, ...]
    charged: Mapping[int, int]
    """What the log charges with each ``lease`` entry, by its seq, in FLOP; nothing where it wasn't asked for."""


def digest(
    name: LogName,
    public_key: bytes,
    chain: ChainState,
    fold: FoldState,
    lines: Sequence[bytes],
    hashes: Sequence[Hash],
    charge: Charge | None = None,
) -> Digest:
    """Follow the lines of a log from ``chain`` on, fold what was used from ``fold`` on, and look for findings.

    The same as :func:`~keyturn_protocol.segment.follow`, :func:`~keyturn_protocol.usage.fold` and
    :func:`~keyturn_protocol.findings.in_entries` one after the other.

    :param hashes: the leaf hashes of ``lines``.
    :param charge: goes on from where it is.
    :raises EntryError: names the first entry that doesn't follow, or else the first that can't be folded.
    """
    origin = name.origin
    folding = Folding(origin, fold)
    events: list[Entry] = []
    findings: list[Finding] = []
    charged: dict[int, int] = {}
    shares: Shares | None = None
    unfolded: EntryError | None = None
    for start in range(0, len(lines), RUN):
        some, their = lines[start : start + RUN], hashes[start : start + RUN]
        read = read_run(chain, some, their, shares)
        if read is not None:
            # One boot, so that these entries say nothing by themselves.
            chain, shares = read.state, read.shares
            events += read.heartbeats
            if read.run is not None and unfolded is None:
                folding.run(read.run)
                if charge is not None:
                    charge.run(read.run)
            continue
        followed = follow(name, public_key, chain, some, their)
        before = None if chain.boot_id is None else (chain.boots, chain.time_us)
        findings += in_entries(origin, before, followed.entries)
        events += [entry for entry in followed.entries if not isinstance(entry, Usage)]
        chain = followed.state
        if unfolded is None:
            try:
                folding.entries(followed.entries)
            except EntryError as error:
                unfolded = error
        if charge is not None and unfolded is None:
            for entry in followed.entries:
                if (flop := charge.entry(entry)) is not None:
                    charged[entry.seq] = flop
    if unfolded is not None:
        raise unfolded
    folded = folding.result()
    return Digest(chain, folded.state, tuple(events), folded.rows, folded.gaps, tuple(findings), charged)
