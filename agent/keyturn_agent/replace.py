"""``enroll --replaces``: a host that was set up again says which node it was, with an operator's signature.

1. Without a statement the host makes its key, and says what an operator has to sign. Nothing is asked of the verifier.
2. With one it is checked here as far as it can be, and shown to the verifier before anything else: if that refuses it,
   nothing was enrolled and no token used up.
"""

from pathlib import Path

from keyturn_agent.enrolment import Pinned
from keyturn_agent.errors import RefusedError, UnreachableError, UsageError
from keyturn_agent.ports import Verifier
from keyturn_agent.signer import FileSigner
from keyturn_agent.store import FolderLock, make_folder
from keyturn_protocol import ids
from keyturn_protocol.api import STATUS, Problem
from keyturn_protocol.canonical import parse
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.ids import NodeId
from keyturn_protocol.keys import node_id_of
from keyturn_protocol.limits import ENVELOPE_BYTES
from keyturn_protocol.statements import Replacement, check_place, parse_statement


def make_node(folder: Path) -> NodeId:
    """This host's node id; its key is made, and survives, if there is none yet."""
    make_folder(folder)
    lock = FolderLock(folder)
    try:
        key_file = folder / "key"
        if key_file.exists():
            return node_id_of(FileSigner.load(key_file).public_key)
        signer = FileSigner.generate()
        signer.save(key_file)
        return node_id_of(signer.public_key)
    finally:
        lock.release()


def node_argument(text: str) -> NodeId:
    """The node of ``--replaces``.

    :raises UsageError: ``bad_node``.
    """
    try:
        return ids.node_id(text)
    except ProtocolError as error:
        raise UsageError("bad_node", f"--replaces: {error}", hint="keyturn nodes lists them") from None


def read_statement(path: Path, pinned: Pinned, old: NodeId, new: NodeId, root: str | None = None) -> bytes:
    """An operator's statement that ``new`` replaces ``old``; whose signature it has is for the verifier to say.

    :param root: hash of the root in force; null before there is one.
    :raises UsageError: ``bad_statement``: it says anything else.
    """
    try:
        with path.open("rb") as file:
            data = file.read(ENVELOPE_BYTES + 1)
        _, said = parse_statement(data)
        check_place(said, pinned.deployment, root)
    except (OSError, ProtocolError) as error:
        raise UsageError("bad_statement", f"--statement: {error}") from None
    if not isinstance(said, Replacement) or (said.old, said.new) != (old, new):
        got = f"{said.old} by {said.new}" if isinstance(said, Replacement) else "another kind of statement"
        raise UsageError("bad_statement", f"--statement: expected that {old} is replaced by {new} (got {got})")
    return data


def show_statement(verifier: Verifier, data: bytes) -> None:
    """Show the statement to the verifier; one that it has already is as good.

    :raises RefusedError: it refuses the statement; nothing was enrolled.
    :raises UnreachableError: it gave no answer; done again, it goes on.
    """
    answer = verifier.state(data)
    if answer.status == 200:
        return
    try:
        problem: Problem | None = parse(answer.body, Problem)
    except ProtocolError:
        problem = None
    known = problem is not None and problem.code in {code.value for code in STATUS}
    if problem is None or not known or answer.status >= 500 or answer.status in (408, 429):
        raise UnreachableError(
            "statement", f"the verifier answered the statement with HTTP {answer.status}; run the command again"
        )
    raise RefusedError(problem.code, f"the verifier refuses the statement: {problem.detail}")
