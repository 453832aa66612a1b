"""What code this agent is: its version and the hash that it signs into the first entry of each log.

The hash can be made in a shell, in the folder where both packages are installed::

    find keyturn_agent keyturn_protocol -name '*.py' -o -name '*.toml' \\
      | LC_ALL=C sort | xargs sha256sum | sha256sum

It says which code the operator claims to run. Only attestation can show that this code is what runs.
"""

from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final

import keyturn_agent
import keyturn_protocol
from keyturn_agent import __version__

_ENDINGS: Final = (".py", ".toml")


@cache
def code_sha256() -> str:
    """SHA-256 over ``sha256sum`` lines of all source files of the agent and of the protocol, sorted by path."""
    found: dict[str, Path] = {}
    for package in (keyturn_agent, keyturn_protocol):
        for root in package.__path__:
            for path in Path(root).rglob("*"):
                if path.suffix in _ENDINGS and path.is_file():
                    found[f"{package.__name__}/{path.relative_to(root).as_posix()}"] = path
    lines = (f"{sha256(found[name].read_bytes()).hexdigest()}  {name}\n" for name in sorted(found))
    return sha256("".join(lines).encode()).hexdigest()


__all__ = ["__version__", "code_sha256"]
