"""What the commitments of a run open to: given by whoever knows it, read by those who decide."""

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query, Response
from sqlalchemy import Connection

from keyturn_protocol.api import ProblemCode
from keyturn_protocol.api_switch import RUNS
from keyturn_protocol.errors import Code, ProtocolError
from keyturn_protocol.lifecycle import Run
from keyturn_protocol.limits import OPENINGS_BYTES
from keyturn_protocol.openings import Openings, parse_openings
from keyturn_protocol.runs import Amend
from keyturn_verifier import openings, translog
from keyturn_verifier.auth import Right
from keyturn_verifier.db.engine import reading, writing
from keyturn_verifier.patterns import HEX_64
from keyturn_verifier.problems import Refusal
from keyturn_verifier.routes.body import body_of
from keyturn_verifier.routes.pages import HEADERS, JSON, Authorization, allow
from keyturn_verifier.routes.permits import RunPath
from keyturn_verifier.service import Service

Proposal = Annotated[str | None, Query(pattern=HEX_64, description="of this amendment, not of the run as it is")]
_PATH: Final = RUNS + "/{run}/openings"


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter()
    body = body_of(service, OPENINGS_BYTES)

    def find(connection: Connection, run: str) -> Run:
        with service.switch.caught_up(connection, translog.head(connection).size) as switch:
            found = switch.runs.get(run)
        if found is None:
            raise Refusal(ProblemCode.NOT_FOUND, f"no run {run} is here")
        return found

    @routes.get(_PATH)
    def given(run: RunPath, authorization: Authorization = None, proposal: Proposal = None) -> Response:
        """What was given so far, of the run's spec as it is or of an amendment's."""
        with reading(service.engine) as connection:
            allow(service, connection, authorization, Right.SWITCH)
            found = find(connection, run)
            spec = found.spec
            if proposal is not None:
                asked = found.proposals.get(proposal)
                if asked is None or not isinstance(asked.statement, Amend):
                    raise Refusal(ProblemCode.NOT_FOUND, f"no amendment {proposal} of this run is open")
                spec = asked.statement.spec
            data = openings.of_spec(connection, run, spec)
        if data is None:
            raise Refusal(ProblemCode.NOT_FOUND, "no opening was given yet")
        return Response(data, media_type=JSON, headers=HEADERS)

    @routes.post(_PATH)
    def give(run: RunPath, raw: Annotated[bytes, Depends(body)]) -> Response:
        """Give openings; anybody may, since each must open a commitment of the run. Again changes nothing."""
        try:
            said: Openings = parse_openings(raw)
        except ProtocolError as error:
            code = ProblemCode.TOO_LARGE if error.code is Code.TOO_LARGE else ProblemCode.BAD_REQUEST
            raise Refusal(code, str(error)) from None
        with reading(service.engine) as connection:
            wrong = openings.fitting(said, find(connection, run))
        if wrong is not None:
            raise Refusal(ProblemCode.BAD_REQUEST, f"{wrong}: this opens no commitment of the run")
        with writing(service.engine) as connection:
            openings.keep(connection, run, said)
        return Response(status_code=204, headers=HEADERS)

    return routes
