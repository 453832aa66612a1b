"""Whose statements count before there is a root: the operators' keys in ``trust.json``, which auditors pin."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from msgspec import structs

from keyturn_protocol.api import OperatorKey, TrustWithOperators
from keyturn_protocol.bundle import decode_anchor, operator_keys
from keyturn_protocol.canonical import encode_record
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.public_keys import parse_public_key
from keyturn_verifier.errors import UsageError, VerifierError

TRUST: Final = "trust.json"


def load(state: Path) -> tuple[OperatorKey, ...]:
    """The operators' keys of a verifier, in the order in which they were added. Read anew for each statement: a key
    that is added or ended counts at once.

    :raises VerifierError: the file can't be read.
    """
    return _anchor(state)[1]


def add(state: Path, text: str, name: str) -> OperatorKey:
    """Let a key sign operators' statements from now on.

    :raises UsageError: it is no such key, or is there already, in whatever form.
    """
    with _alone(state):
        trust, operators = _anchor(state)
        try:
            made = OperatorKey(key=str(parse_public_key(text)), name=name, until_us=None)
            operator_keys([*operators, made])
        except ProtocolError as error:
            raise UsageError(f"--key: {error}") from None
        _write(state, trust, (*operators, made))
    return made


def end(state: Path, key_id: str, at_us: int) -> OperatorKey:
    """Let a key sign nothing any more; what it signed before stays good.

    :raises VerifierError: there is no such key, or it ended already.
    """
    with _alone(state):
        trust, operators = _anchor(state)
        for at, one in enumerate(operators):
            if parse_public_key(one.key).id == key_id:
                if one.until_us is not None:
                    raise VerifierError(f"the key {key_id} has ended already")
                ended = structs.replace(one, until_us=at_us)
                _write(state, trust, (*operators[:at], ended, *operators[at + 1 :]))
                return ended
    raise VerifierError(f"no operator has the key {key_id}", hint="keyturn-verifier operator list")


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """One change at a time: the lock is the folder's, and goes with the process."""
    folder = os.open(state, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _anchor(state: Path) -> tuple[TrustWithOperators, tuple[OperatorKey, ...]]:
    path = state / TRUST
    try:
        anchor = decode_anchor(path.read_bytes())
    except (OSError, ProtocolError) as error:
        raise VerifierError(f"{path}: {error}") from None
    trust = anchor.trust
    operators = anchor.operators or ()
    file = TrustWithOperators(
        v=2,
        deployment=trust.deployment,
        log_vkey=trust.log_vkey,
        receipt_vkey=trust.receipt_vkey,
        operators=list(operators),
    )
    return file, operators


def _write(state: Path, trust: TrustWithOperators, operators: tuple[OperatorKey, ...]) -> None:
    """Replace ``trust.json`` whole; after the rename the new one survives. What nobody could read is not written."""
    data = encode_record(structs.replace(trust, operators=list(operators)))
    try:
        decode_anchor(data)
    except ProtocolError as error:
        raise UsageError(f"{state / TRUST} can hold no more: {error}") from None
    descriptor, made = tempfile.mkstemp(prefix=".trust-", dir=state)
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        Path(made).chmod((state / TRUST).stat().st_mode & 0o777)
        Path(made).rename(state / TRUST)
    except BaseException:
        Path(made).unlink(missing_ok=True)
        raise
    folder = os.open(state, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
