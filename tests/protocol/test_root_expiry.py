"""How long a root is still for, in words, and from when on somebody should know."""

import pytest

from keyturn_protocol.root_expiry import ends_soon, expires_in
from tests.support.parties import BEGIN, DAY, root


@pytest.mark.parametrize(
    ("left_us", "soon", "words"),
    [
        (3650 * DAY, False, "expires in 3,650 days"),
        (30 * DAY + 1, False, "expires in 30 days"),
        (30 * DAY, True, "expires in 30 days"),
        (2 * DAY - 1, True, "expires in 1 day"),
        (1, True, "expires in less than a day"),
        (0, True, "expired less than a day ago"),
        (-3 * DAY, True, "expired 3 days ago"),
    ],
)
def test_the_days_of_a_root_are_counted_whole(left_us: int, soon: bool, words: str) -> None:
    one = root(expires_us=BEGIN + left_us)
    assert (ends_soon(one, BEGIN), expires_in(one, BEGIN)) == (soon, words)
