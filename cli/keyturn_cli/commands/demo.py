"""``keyturn demo``."""


def demo() -> int:
    """Show all of it on this machine, from recordings."""
    return 0
