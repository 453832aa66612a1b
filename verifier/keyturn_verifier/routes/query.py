"""What a reading route is asked for: only what it knows, since a mistyped filter would show everything."""

from fastapi import Request

from keyturn_protocol.api import ProblemCode
from keyturn_verifier.problems import Refusal

_API = "/v1/"
_SHOWN = 64


async def only_known(request: Request) -> None:
    """Every parameter of a ``GET`` under ``/v1`` is one of its route's, and given once.

    Elsewhere nothing is filtered: probes, tiles and metrics may be asked for with what a cache or a load balancer adds.

    :raises Refusal: ``bad_request``, naming the parameter and those that there are.
    """
    route = request.scope["route"]
    if request.method != "GET" or not route.path.startswith(_API):
        return
    known = sorted(field.alias for field in route.dependant.query_params)
    seen: set[str] = set()
    for name, _ in request.query_params.multi_items():
        if name not in known:
            there = ", ".join(known) or "none"
            raise Refusal(ProblemCode.BAD_REQUEST, f"query.{name[:_SHOWN]}: no such parameter (known: {there})")
        if name in seen:
            raise Refusal(ProblemCode.BAD_REQUEST, f"query.{name}: must be given once")
        seen.add(name)
