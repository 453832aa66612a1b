"""How long a root is still for. What goes on under it goes on after that, but no host is enrolled under it any more."""

from typing import Final

from keyturn_protocol.root import Root

SOON_US: Final = 30 * 86_400_000_000
"""So long before it programs begin to say so: the next root takes signatures of more than one organisation."""
_DAY_US: Final = 86_400_000_000


def ends_soon(root: Root, at_us: int) -> bool:
    """Whether somebody should know that a root expires, or that it has."""
    return root.expires_us - at_us <= SOON_US


def expires_in(root: Root, at_us: int) -> str:
    """``expires in 12 days``, ``expired 3 days ago``: whole days, of which the last one is less than one."""
    left_us = root.expires_us - at_us
    days = abs(left_us) // _DAY_US
    much = "less than a day" if days == 0 else "1 day" if days == 1 else f"{days:,} days"
    return f"expires in {much}" if left_us > 0 else f"expired {much} ago"
