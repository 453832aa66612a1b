"""A lab, an operator and a regulator with keys in files, and a verifier that is a fold: bundles as files, no server."""

import time
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from keyturn_protocol.dsse import parse_envelope
from keyturn_protocol.openings import Opening, Openings, commitment, format_openings
from keyturn_protocol.runs import Request
from tests.support.assembly import Assembly
from tests.support.hosts import Key
from tests.support.parties import DAY, NAME, SECOND, scope

OPENINGS = Openings(
    v=1,
    parts={
        "argv": Opening(salt="01" * 32, value=["python", "train.py", "--lr", "1e-4"]),
        "image": Opening(salt="02" * 32, value="sha256:" + "3" * 64),
    },
)


def key_file(folder: Path, who: str) -> Path:
    """The key of a person of :mod:`tests.support.parties` in a file."""
    path = folder / f"{who.replace('/', '-')}.pem"
    if not path.exists():
        path.write_bytes(Key(who).private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        path.chmod(0o600)
    return path


class Desk(Assembly):
    """Takes what the command line signed, now, as a verifier would; gives what it has as files."""

    def __init__(self, folder: Path, *, ago_s: int = 600, **changes: Any) -> None:
        self.folder, self.step = folder, 0
        self.begin_us = time.time_ns() // 1_000 - ago_s * SECOND
        super().__init__(**changes)

    @property
    def now_us(self) -> int:
        """As long ago as it began, and a second a leaf."""
        return self.begin_us + self.step * SECOND

    @now_us.setter
    def now_us(self, value: int) -> None:
        self.step = 0 if not hasattr(self, "root") else self.step + 1

    @property
    def pin(self) -> str:
        """The root, as people pin it."""
        return f"sha256:{self.root}"

    def key(self, who: str) -> Path:
        return key_file(self.folder, who)

    def sent(self, path: Path) -> str:
        """Take a statement out of a file; returns its hash."""
        return self.take(parse_envelope(path.read_bytes()))

    def file(self, run: str | None = None) -> Path:
        """The bundle as it is now, in a new file."""
        path = self.folder / f"bundle-{self.switch.index}-{(run or 'authority')[:8]}.json"
        path.write_bytes(self.bundle(run))
        return path

    def openings(self, openings: Openings = OPENINGS) -> Path:
        path = self.folder / "openings.json"
        path.write_bytes(format_openings(openings))
        return path

    def request(self, **changes: Any) -> Request:
        """For a hundred days from now; of its program, image and arguments are opened, the rest is hidden or free."""
        spec: dict[str, Any] = {part: commitment(part, one).hex() for part, one in OPENINGS.parts.items()}
        window = {"not_before_us": self.begin_us, "not_after_us": self.begin_us + 100 * DAY}
        fields = {"spec": spec | {"config": "4" * 64, "data": None}, "scope": scope(**window)}
        return super().request(**fields | changes)


__all__ = ["NAME", "OPENINGS", "Desk"]
