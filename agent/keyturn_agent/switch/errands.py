"""What may take long, beside the loop: each errand in a thread of its own, its result handed back to the loop's thread.

An errand that hangs keeps its own key busy and nothing else.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from keyturn_agent.errors import AgentError
from keyturn_protocol.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class Done:
    """The end of an errand: what it returned, or why it failed."""

    key: str
    value: Any
    error: AgentError | ProtocolError | None


class Errands(Protocol):
    """A port, so that tests run errands when they like."""

    def run(self, key: str, errand: Callable[[], Any]) -> bool:
        """Begin one; False, and nothing is begun, while one of the same key goes on."""
        ...

    def busy(self, key: str) -> bool: ...

    def done(self) -> Iterator[Done]:
        """Those that have ended since the last time; never waits."""
        ...


class Threads:
    """A thread for each. They are daemons: the end of the process waits for none of them."""

    def __init__(self) -> None:
        self._busy: set[str] = set()
        self._lock = threading.Lock()
        self._done: queue.SimpleQueue[Done] = queue.SimpleQueue()

    def run(self, key: str, errand: Callable[[], Any]) -> bool:
        with self._lock:
            if key in self._busy:
                return False
            self._busy.add(key)
        threading.Thread(target=self._run, args=(key, errand), name=f"errand {key}", daemon=True).start()
        return True

    def busy(self, key: str) -> bool:
        with self._lock:
            return key in self._busy

    def done(self) -> Iterator[Done]:
        while True:
            try:
                done = self._done.get_nowait()
            except queue.Empty:
                return
            with self._lock:
                self._busy.discard(done.key)
            yield done

    def _run(self, key: str, errand: Callable[[], Any]) -> None:
        try:
            self._done.put(Done(key, errand(), None))
        except (AgentError, ProtocolError) as error:
            self._done.put(Done(key, None, error))
        except Exception as error:
            # Nobody expected it: the key would be busy for ever, and nobody would know.
            self._done.put(Done(key, None, AgentError("errand", f"{type(error).__name__}: {error}")))
