"""The verifier's keys, taken from a root that the auditor has pinned by its hash alone."""

from keyturn_protocol.api import Trust
from keyturn_protocol.bundle import BundleReader, check_trust, statement_path
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.root import Root
from keyturn_protocol.statements import parse_statement


def root_trust(reader: BundleReader, root_sha256: str | None) -> Trust | None:
    """The keys that the pinned root names; None if none is pinned, or the bundle doesn't hold it.

    Nobody's signature is asked about: the hash was brought by the auditor. That the root also is in force, and that
    later ones name the same keys, is for the statements' own audit.

    :param root_sha256: in hex.
    """
    if root_sha256 is None:
        return None
    try:
        envelope, root = parse_statement(reader.read(statement_path(root_sha256)))
        if not isinstance(root, Root) or envelope.hash.hex() != root_sha256:
            raise ProtocolError(Code.BAD_ROOT, "not the pinned root", expected=root_sha256, got=envelope.hash.hex())
        services = root.services
        trust = Trust(v=1, deployment=root.deployment, log_vkey=services.log_vkey, receipt_vkey=services.receipt_vkey)
        check_trust(trust)
    except ProtocolError:
        return None  # what is wrong with it is a contradiction of its leaf
    return trust
