"""Numbers in words, for people."""


def count(value: int, one: str) -> str:
    """``1 chip``, ``8 chips``."""
    return f"{value} {one if value == 1 else one + 's'}"
