"""What a verifier answers when it refuses a request: what it means, and what to do."""

from collections.abc import Mapping
from typing import Final

from keyturn_protocol.api import ProblemCode

PROBLEMS: Final[Mapping[ProblemCode, tuple[str, str]]] = {
    ProblemCode.BAD_REQUEST: (
        "The request isn't one that the verifier knows: a parameter or body of another form.",
        "The detail names it. Is the client of the same version as the verifier?",
    ),
    ProblemCode.BAD_SEGMENT: (
        "What was uploaded is no segment of a log, or isn't compressed as it should be.",
        "Agents don't write such. Look for a proxy that changes bodies.",
    ),
    ProblemCode.DAMAGED_SEGMENT: (
        "The entries don't hash to the head that the node signed: a damaged copy. Nothing is frozen by it.",
        "The agent sends it again. If that doesn't help, its disk is damaged: keyturn-agent doctor.",
    ),
    ProblemCode.BAD_SIGNATURE: (
        "A signature doesn't verify, or is by a key that may not sign this.",
        "keyturn whoami says who a key speaks for under the root in force; sign with one that does.",
    ),
    ProblemCode.UNAUTHORIZED: (
        "This needs a token, and there is none in the request.",
        "--token-file FILE, or token_file in the settings; the verifier's operator makes tokens.",
    ),
    ProblemCode.TOKEN_UNKNOWN: (
        "The verifier has no such token: mistyped, revoked, or of another verifier.",
        "Ask the verifier's operator for a new one.",
    ),
    ProblemCode.TOKEN_EXPIRED: (
        "The token was good until a moment that is past.",
        "Ask the verifier's operator for a new one.",
    ),
    ProblemCode.TOKEN_USED: (
        "As many hosts have enrolled with this token as it was made for.",
        "Make another: keyturn-verifier token create.",
    ),
    ProblemCode.FORBIDDEN: (
        "The token's role may not do that.",
        "The API's page lists what each role may; ask for a token of one that fits.",
    ),
    ProblemCode.NOT_FOUND: (
        "There is nothing of this name here.",
        "keyturn list and keyturn nodes show what there is. Is it the right verifier?",
    ),
    ProblemCode.UNKNOWN_LOG: (
        "No such log is enrolled or expected here; it may be another deployment's.",
        "Enrol the host again: keyturn-agent enroll.",
    ),
    ProblemCode.METHOD_NOT_ALLOWED: (
        "This address takes another method.",
        "Is the client of the same version as the verifier?",
    ),
    ProblemCode.TIMEOUT: (
        "The body took too long to arrive.",
        "Send it again; agents do so by themselves.",
    ),
    ProblemCode.BEHIND: (
        "The segment doesn't begin where the verifier's copy of the log ends.",
        "The agent goes on from the head that comes with the answer; nothing is to be done.",
    ),
    ProblemCode.ALREADY_ENROLLED: (
        "There is a log of this name already, with another beginning.",
        "A node is enrolled once. A host that was set up again has a new key: keyturn-agent enroll --replaces.",
    ),
    ProblemCode.TOO_LARGE: (
        "The body is over its cap.",
        "The caps are in protocol/spec; a bundle that is too large is exported on the verifier's machine.",
    ),
    ProblemCode.UNSUPPORTED_TYPE: (
        "The body has another media type than is taken here.",
        "Is the client of the same version as the verifier?",
    ),
    ProblemCode.FORK: (
        "The node signed two heads of one size: both are kept as evidence, and the log is frozen.",
        "Find out whether the host was cloned or restored from a snapshot. The agent goes on in a new log.",
    ),
    ProblemCode.LOG_FROZEN: (
        "The log is frozen after a fork and takes nothing any more.",
        "See the finding fork of this node; the agent goes on in a new log.",
    ),
    ProblemCode.LOG_CLOSED: (
        "The log has ended, by its own last entry or because signed entries broke the format.",
        "The agent goes on in a new log. keyturn node NODE says why this one ended.",
    ),
    ProblemCode.INVALID_ENTRIES: (
        "Signed entries that don't follow from the log: they are kept as evidence, and the log is closed.",
        "An agent of this project doesn't write such: find out what runs on that host.",
    ),
    ProblemCode.BAD_STATEMENT: (
        "Not a statement, one for another deployment, or one that breaks its form.",
        "keyturn statement FILE shows what it says; make it again from a new bundle.",
    ),
    ProblemCode.STATEMENT_REFUSED: (
        "Signed by those who may, and against what the log says. The detail begins with the reason's own code.",
        "keyturn explain CODE with that code, such as requester or stale.",
    ),
    ProblemCode.LEASE_REFUSED: (
        "The start switch grants this host no lease for what it asked. The detail begins with the reason's own code.",
        "keyturn explain CODE with that code, such as suspended or chip_taken.",
    ),
    ProblemCode.WAITING: (
        "Hosts that start together get their leases together: fewer have asked so far than there are to be.",
        "Start the other hosts; the agent asks again by itself, for ten minutes.",
    ),
    ProblemCode.BUSY: (
        "Something of this log is still being worked on, or its limit for this minute is used up.",
        "Try again after the time that the answer names; agents do so by themselves.",
    ),
    ProblemCode.OVERLOADED: (
        "The verifier has more to do than it can take now. Nothing was stored.",
        "Try again in a while. If it lasts: /readyz and /metrics of the verifier.",
    ),
    ProblemCode.UNKNOWN_OUTCOME: (
        "The database didn't say whether it committed.",
        "Send the same again: what is there already gets the answer that it got.",
    ),
    ProblemCode.INTERNAL: (
        "The verifier failed. Nothing was stored that wasn't answered.",
        "Its operator finds the reason in the verifier's log; keyturn-verifier check looks at the database.",
    ),
}
