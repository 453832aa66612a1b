"""Runs for people: what was asked for, who has signed, who is missing, what is left; and what commitments open to."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from keyturn_protocol.api import PAGE_ITEMS, ProblemCode
from keyturn_protocol.api_switch import RUNS, RunItem
from keyturn_protocol.chips import chip_table
from keyturn_protocol.lifecycle import State
from keyturn_verifier import run_findings, runs, translog
from keyturn_verifier.auth import Right
from keyturn_verifier.db.engine import reading
from keyturn_verifier.problems import Refusal
from keyturn_verifier.routes.pages import After, Authorization, Limit, allow, cursor, one, page
from keyturn_verifier.routes.permits import RunPath
from keyturn_verifier.routes.read import item
from keyturn_verifier.service import Service

_FIRST = -1


def router(service: Service) -> APIRouter:
    """The routes."""
    routes = APIRouter()

    @routes.get(RUNS)
    def listed(
        authorization: Authorization = None,
        limit: Limit = PAGE_ITEMS,
        after: After = None,
        state: Annotated[State | None, Query(description="only runs in this state")] = None,
    ) -> Response:
        """Runs in the order in which they were asked for."""
        start: tuple[int] | None = cursor(after, tuple[int])
        with reading(service.engine) as connection:
            now_us, _ = allow(service, connection, authorization, Right.SWITCH)
            size = translog.head(connection).size
            with service.switch.caught_up(connection, size) as switch:
                items: list[RunItem] = []
                for index, run in service.switch.requests(_FIRST if start is None else start[0]):
                    made = runs.item(switch, switch.runs[run], index, now_us)
                    items += [made] if state in (None, made.state) else []
                    if len(items) == limit:
                        break
        return page(items, [items[-1].index] if len(items) == limit else None)

    @routes.get(RUNS + "/{run}")
    def shown(run: RunPath, authorization: Authorization = None) -> Response:
        """All of a run on one screen."""
        with reading(service.engine) as connection:
            now_us, _ = allow(service, connection, authorization, Right.SWITCH)
            events = runs.events(connection, run)
            with service.switch.caught_up(connection, translog.head(connection).size) as switch:
                found = switch.runs.get(run)
                if found is None:
                    raise Refusal(ProblemCode.NOT_FOUND, f"no run {run} is here")
                wrong = service.switch.findings()
                accounts = switch.ledger.accounts(run)
                ends, held = run_findings.ends_us(accounts), runs.held(accounts, now_us)
            about = runs.leases_of(connection, run, {lease for lease, _ in wrong})
            said = [each for lease, each in wrong if lease in about]
            findings = [item(one) for one in run_findings.of_run(connection, run, ends, said, now_us, chip_table())]
            checked = runs.checked(connection, held)
            with service.switch.caught_up(connection, 0) as switch:
                return one(runs.view(switch, found, service.switch.requested(run), now_us, checked, events, findings))

    return routes
