"""Which entry of a damaged segment was changed: the chain names it, where a tree only says that something did."""

from collections.abc import Sequence

from keyturn_protocol.entries import parse_entry
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.limits import SEGMENT_BYTES
from keyturn_protocol.merkle import Frontier, leaf_hash
from keyturn_protocol.segment import parse_segment


def locate(
    data: bytes, end: int, prev: str, frontier: Frontier, error: ProtocolError, after: str | None = None
) -> tuple[str, int | None]:
    """A message and the entry that was changed; None where it isn't an entry.

    :param prev: the leaf hash, in hex, that the segment's first entry must link to.
    :param frontier: the verified log before the segment; its size is the segment's start.
    :param error: why the segment was refused.
    :param after: the link that the next segment begins with, if there is one; a hint, unverified.
    """
    start = frontier.size
    lines = data[:SEGMENT_BYTES].partition(b"\n\n")[0].split(b"\n")[: end - start]
    before, broken = prev, list[int]()
    for i, line in enumerate(lines):
        try:
            entry = parse_entry(line)
        except ProtocolError as refused:
            return f"entry {start + i} was changed: {refused}", start + i
        if entry.seq != start + i:
            return f"entry {start + i} was changed: it says that it is entry {entry.seq}", start + i
        if entry.prev != before:
            broken.append(i)
        before = leaf_hash(line).hex()
    if broken:
        first = broken[0]
        # A changed entry breaks its successor's link; a changed link breaks its own as well.
        own = first == 0 or first + 1 in broken or _link_was_changed(data, lines, frontier)
        culprit = start + first - (not own)
        return f"entry {culprit} was changed: entry {start + first} does not link to what comes before it", culprit
    if start + len(lines) < end:
        return f"entry {start + len(lines)} was changed or cut off: {error}", start + len(lines)
    if error.code is Code.WRONG_ROOT and after not in (None, before):
        return f"entry {end - 1} was changed: entry {end} does not link to what comes before it", end - 1
    if error.code is Code.WRONG_ROOT:
        # The head is the node's and every link holds: the last entry, unless a forger linked a whole tail again.
        return f"entry {end - 1} was changed, or earlier ones with their links: {error}", end - 1
    return str(error), None


def _link_was_changed(data: bytes, lines: Sequence[bytes], frontier: Frontier) -> bool:
    """Whether the last entry's link was changed rather than the entry that it links to: no successor tells.

    With the link restored, the entries hash to the signed root again.
    """
    try:
        signed = parse_segment(data).checkpoint.root
        link = parse_entry(lines[-1]).prev
    except ProtocolError:
        return False
    restored = lines[-1].replace(link.encode(), leaf_hash(lines[-2]).hex().encode())
    return frontier.extend(map(leaf_hash, [*lines[:-1], restored])).root() == signed
