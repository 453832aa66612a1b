"""Statements for tests: operators with keys of both ways to sign, and replacements that they sign."""

from typing import Any

from keyturn_protocol.api import OperatorKey
from tests.support.ssh_signer import SshKey
from tests.vectors.people import FileKey, replacement, signed
from tests.vectors.pieces import canonical

ANNA, BEN = FileKey("anna"), SshKey("ecdsa-sha2-nistp256", "ben")
MALLORY = FileKey("mallory")


def operator(key: FileKey | SshKey, name: str = "someone", until_us: int | None = None) -> OperatorKey:
    return OperatorKey(key=key.text, name=name, until_us=until_us)


OPERATORS = [operator(ANNA, "anna"), operator(BEN, "ben")]


def replaces(old: str, new: str, *keys: FileKey | SshKey, deployment: str = "kt.example", **changes: Any) -> bytes:
    """The envelope of a replacement, signed by Anna unless others are named."""
    payload = canonical(replacement(deployment=deployment, old=old, new=new, **changes))
    return canonical(signed(payload, *(keys or (ANNA,))))
