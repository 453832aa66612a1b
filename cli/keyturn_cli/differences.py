"""What is other in one version than in another, field by field, in words."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from keyturn_cli.switch_text import value
from keyturn_protocol.statement_base import Statement

_NOT_CONTENT: Final = frozenset({"v", "time_us", "root", "previous", "version"})
"""Of a statement itself: differ between any two versions."""
_KEYS: Final = ("id", "name", "key", "vkey", "run")
"""What tells the members of a list apart, the first that they have."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One field, or one member of a list. ``old`` None: added; ``new`` None: gone."""

    where: str
    old: str | None
    new: str | None

    def __str__(self) -> str:
        if self.old is None:
            return f"+ {self.where}: {self.new}"
        return f"- {self.where}: {self.old}" if self.new is None else f"  {self.where}: {self.old} → {self.new}"


def differences(old: Any, new: Any, where: str = "") -> list[Difference]:
    """Every difference between two values of one type, in the order of their fields."""
    return list(_walk(old, new, where, where.rpartition(".")[2]))


def _walk(old: Any, new: Any, where: str, name: str) -> Iterator[Difference]:
    if old == new:
        return
    match old, new:
        case msgspec.Struct(), msgspec.Struct():
            yield from _members(_fields(old), _fields(new), where)
        case dict(), dict():
            yield from _members(old, new, where)
        case (list(), list()) if _keyed(old) and _keyed(new):
            ours, theirs = _by_key(old), _by_key(new)
            yield from _members(ours, theirs, where)
            common = [key for key in ours if key in theirs]
            if common != [key for key in theirs if key in ours]:
                yield Difference(f"{where}: order", ", ".join(common), ", ".join(k for k in theirs if k in ours))
        case _:
            yield Difference(where, value(name, old), value(name, new))


def _members(old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> Iterator[Difference]:
    for key in [*old, *(key for key in new if key not in old)]:
        at = f"{where}.{key}" if where else key
        if key not in new:
            yield Difference(at, whole(key, old[key]), None)
        elif key not in old:
            yield Difference(at, None, whole(key, new[key]))
        else:
            yield from _walk(old[key], new[key], at, key)


def whole(name: str, of: Any) -> str:
    """A value with all that is in it, on one line."""
    if isinstance(of, msgspec.Struct):
        return ", ".join(f"{key} {whole(key, part)}" for key, part in _fields(of).items())
    if isinstance(of, list) and _keyed(of):
        return "; ".join(whole(name, one) for one in of) or "none"
    return value(name, of)


def _fields(of: msgspec.Struct) -> dict[str, Any]:
    left_out = _NOT_CONTENT if isinstance(of, Statement) else frozenset()
    return {
        field.encode_name: getattr(of, field.name)
        for field in msgspec.structs.fields(of)
        if field.encode_name not in left_out
    }


def _keyed(of: Sequence[Any]) -> bool:
    return all(isinstance(one, msgspec.Struct) for one in of)


def _by_key(of: Sequence[Any]) -> dict[str, Any]:
    found = {}
    for one in of:
        key = next(getattr(one, name) for name in _KEYS if hasattr(one, name))
        found[str(key)] = one
    return found
