"""What ``doctor`` says about the allowance: small work that needs nobody's consent, and the host it isn't for."""

from pathlib import Path

from keyturn_agent.doctor import Check
from keyturn_agent.errors import AgentError, RefusedError
from keyturn_agent.store import read_enrolment
from keyturn_agent.switch.entitlement import check_allowance, newest_root


def allowance(folder: Path) -> Check:
    """Whether the organisation that this host was enrolled for is one of the newest root that it has seen."""
    try:
        enrolment, _ = read_enrolment(folder)
    except AgentError:
        return Check(name="allowance", state="skip", detail="not enrolled")
    try:
        standing = newest_root(folder, enrolment)
        if standing is None:
            return Check(name="allowance", state="skip", detail="no root is pinned: nothing runs under a lease here")
        check_allowance(standing, enrolment.organisation)
    except RefusedError as error:
        return Check(name="allowance", state="warn", detail=f"{error}; {error.hint}")
    except AgentError as error:
        return Check(name="allowance", state="fail", detail=str(error))
    detail = f"{enrolment.organisation} is an organisation of root version {standing.root.version}"
    return Check(name="allowance", state="ok", detail=detail)
