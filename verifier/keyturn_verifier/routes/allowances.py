"""What is left of the allowance, for people."""

from bisect import bisect_right

from fastapi import APIRouter, Response

from keyturn_protocol.allowance import By
from keyturn_protocol.api import PAGE_ITEMS
from keyturn_protocol.api_switch import ALLOWANCE
from keyturn_verifier import allowances, translog
from keyturn_verifier.auth import Right
from keyturn_verifier.db.engine import reading
from keyturn_verifier.routes.pages import After, Authorization, Limit, allow, cursor, page
from keyturn_verifier.service import Service


def router(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.get(ALLOWANCE)
    def allowance(authorization: Authorization = None, limit: Limit = PAGE_ITEMS, after: After = None) -> Response:
        """What is free without a permit now: of each organisation, each lineage, and each node's diagnostics."""
        start: allowances.Key | None = cursor(after, tuple[By, str])
        with reading(service.engine) as connection:
            now_us, _ = allow(service, connection, authorization, Right.SWITCH)
            with service.switch.caught_up(connection, translog.head(connection).size) as switch:
                keys = allowances.keys(switch)
                if start is not None:
                    keys = keys[bisect_right(keys, allowances.place(start), key=allowances.place) :]
                items = [allowances.item(switch, key, now_us) for key in keys[:limit]]
        return page(items, [items[-1].by, items[-1].name] if len(keys) > limit else None)

    return routes
