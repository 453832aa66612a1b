"""Whether this host has an allowance at all: that of an organisation in the root, which its join token named."""

from pathlib import Path

from keyturn_agent.enrolment import Enrolment
from keyturn_agent.errors import RefusedError
from keyturn_agent.switch.pin import Pin
from keyturn_protocol.authority import Refused
from keyturn_protocol.lease_rules import check_organisation
from keyturn_protocol.root import Standing


def check_allowance(standing: Standing, organisation: str) -> None:
    """That a host of an organisation has an allowance under a root.

    :raises RefusedError: ``organisation``.
    """
    try:
        check_organisation(standing, organisation)
    except Refused as error:
        raise RefusedError(error.why, f"no allowance: {error}", hint=f"keyturn explain {error.why}") from None


def newest_root(folder: Path, enrolment: Enrolment) -> Standing | None:
    """The newest root that this host has seen; None where it pinned none.

    :raises StoreError: what it keeps of it is gone or damaged.
    """
    if enrolment.root_sha256 is None:
        return None
    return Pin.load(folder, enrolment.deployment, enrolment.root_sha256).authority.standing
