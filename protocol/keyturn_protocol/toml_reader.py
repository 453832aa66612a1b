"""TOML that people write, read key by key: what is wrong is named by its path, and nothing is left over unread.

tier[1].decide: not a span (expected a span such as "7d", "48h", "30min" or "60s", got 7)
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, Final

import msgspec

from keyturn_protocol.canonical import Text
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.limits import MAX_INT, TOML_BYTES

_SPAN: Final = re.compile(r"([0-9]{1,9})(s|min|h|d)", re.ASCII)
_SECONDS: Final = {"s": 1, "min": 60, "h": 3_600, "d": 86_400}
_TERA: Final = 10**12
_MISSING: Final = object()


class Table:
    """One table of a document; every key is taken once, and :meth:`end` refuses what wasn't."""

    def __init__(self, values: Mapping[str, Any], path: str, code: Code) -> None:
        self.path = path
        self._values = values
        self._code = code
        self._taken: list[str] = []

    def error(self, key: str, message: str, **details: object) -> ProtocolError:
        return ProtocolError(self._code, f"{self._at(key)}: {message}", **details)

    def _at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def _take(self, key: str, default: object) -> Any:
        self._taken.append(key)
        value = self._values.get(key, default)
        if value is _MISSING:
            raise self.error(key, "is missing")
        return value

    def has(self, key: str) -> bool:
        self._taken.append(key)
        return key in self._values

    def end(self) -> None:
        """Refuse a key that nobody asked for."""
        for key in self._values:
            if key not in self._taken:
                raise self.error(key, "unknown key", expected=", ".join(self._taken))

    def text(self, key: str) -> str:
        value = self._take(key, _MISSING)
        try:
            return msgspec.convert(value, Text)
        except msgspec.ValidationError:
            raise self.error(key, "not text", expected="text of one line", got=value) from None

    def word(self, key: str, of: Iterable[str]) -> Any:
        value = self._take(key, _MISSING)
        if value not in (words := list(of)):
            raise self.error(key, "no such word", expected=" or ".join(words), got=value)
        return value

    def words(self, key: str, of: Iterable[str] | None = None, default: object = _MISSING) -> list[Any]:
        """A list of words, each once; sorted, since their order means nothing."""
        value, known = self._take(key, default), None if of is None else list(of)
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self.error(key, "not a list of words", expected="a list of words", got=value)
        for at, one in enumerate(value):
            if known is not None and one not in known:
                raise self.error(f"{key}[{at}]", "no such word", expected=" or ".join(known), got=one)
        if len(set(value)) != len(value):
            raise self.error(key, "a word stands twice", got=value)
        return sorted(value)

    def flag(self, key: str) -> bool:
        value = self._take(key, _MISSING)
        if not isinstance(value, bool):
            raise self.error(key, "neither true nor false", expected="true or false", got=value)
        return value

    def integer(self, key: str, default: object = _MISSING, *, least: int = 0, most: int = MAX_INT) -> int:
        value = self._take(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self.error(key, "not a whole number", expected=f"one from {least} to {most}", got=value)
        return value

    def span_s(self, key: str, *, least: int = 1) -> int:
        """``"7d"`` in seconds."""
        value = self._take(key, _MISSING)
        found = _SPAN.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            raise self.error(key, "not a span", expected='a span such as "7d", "48h", "30min" or "60s"', got=value)
        seconds = int(found[1]) * _SECONDS[found[2]]
        if not least <= seconds <= 10 * 365 * 86_400:
            raise self.error(key, "not a span in range", expected=f"from {least} s to 10 years", got=value)
        return seconds

    def tflop(self, key: str) -> int:
        """``1e23`` FLOP as TFLOP, exactly: what isn't whole TFLOP is refused."""
        value = self._take(key, _MISSING)
        number = isinstance(value, (int, Decimal)) and not isinstance(value, bool)
        exact = Decimal(value) if number else Decimal("nan")
        if not exact.is_finite() or not 0 <= exact <= MAX_INT * _TERA or exact % _TERA:
            raise self.error(key, "not compute", expected="FLOP such as 1e23, in whole TFLOP (1e12)", got=value)
        return int(exact) // _TERA

    def table(self, key: str, default: object = _MISSING) -> "Table":
        value = self._take(key, default)
        if not isinstance(value, dict):
            raise self.error(key, "not a table", expected="a table", got=value)
        return Table(value, self._at(key), self._code)

    def tables(self, key: str) -> list["Table"]:
        value = self._take(key, _MISSING)
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise self.error(key, "not a list of tables", expected=f"tables [[{self._at(key)}]]", got=value)
        return [Table(one, f"{self._at(key)}[{at}]", self._code) for at, one in enumerate(value)]

    def items(self) -> list[tuple[str, Any]]:
        """All that is in it, for a table whose keys are data."""
        self._taken += self._values
        return list(self._values.items())


def read_toml(text: str, code: Code) -> Table:
    """The document's own table.

    :param code: of every error about it.
    :raises ProtocolError: ``too_large``, or not TOML.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > TOML_BYTES:
        raise ProtocolError(Code.TOO_LARGE, "TOML over its cap", expected=f"<= {TOML_BYTES} bytes", got=size)
    try:
        values = tomllib.loads(text, parse_float=Decimal)
    except (tomllib.TOMLDecodeError, ValueError, RecursionError, ArithmeticError) as error:
        raise ProtocolError(code, f"not TOML: {error}") from None
    return Table(values, "", code)
