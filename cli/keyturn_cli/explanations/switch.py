"""Why the start switch refuses a statement or a lease: what it means, and what to do."""

from collections.abc import Mapping
from typing import Final

from keyturn_protocol.authority import Why

REASONS: Final[Mapping[Why, tuple[str, str]]] = {
    Why.UNKNOWN: (
        "It is about a run, proposal or suspension that isn't in the log.",
        "Take the hash from keyturn list or keyturn show. A proposal that another event ended is gone: propose again.",
    ),
    Why.WRONG_KIND: (
        "A statement of another kind is needed here.",
        "Look at what it says with keyturn statement FILE, and make the one that is meant.",
    ),
    Why.OTHER_ROOT: (
        "It was made under another root than the one in force: a new root came in between, or it is for elsewhere.",
        "keyturn root show, check the new root, then make and sign the statement again.",
    ),
    Why.OTHER_POLICY: (
        "It names another policy than its request does, or than the one in force.",
        "A pending request lapses with a new policy: ask again. A run with a permit keeps the policy of its request.",
    ),
    Why.NO_POLICY: (
        "No policy is in force yet, so nobody can ask for a run.",
        "keyturn policy new makes one; it comes into force when enough of the root's parties have signed.",
    ),
    Why.NOT_A_PERSON: (
        "The root in force has no such person.",
        "keyturn whoami says who a key speaks for. A person is added by a new root.",
    ),
    Why.OTHER_SIGNER: (
        "Signed by somebody else than it names, or by more than one key.",
        "One person, one key: sign it again with the key that keyturn whoami shows for that person.",
    ),
    Why.KEY_NOT_VALID: (
        "The key isn't valid yet, no longer is, or was called compromised.",
        "Sign with another key of the same person; a new root lists new keys.",
    ),
    Why.NOT_ENTITLED: (
        "This person may not do that: no veto, not the requester, or of a class that may not ask.",
        "keyturn policy show says which class may do what; ask someone of it.",
    ),
    Why.REQUESTER: (
        "Who asks for a run never counts for it. Where the policy says so, nor does anybody of the same organisation.",
        "Someone else has to approve; keyturn show RUN says who is missing.",
    ),
    Why.TOO_LATE: (
        "After a deadline, or after the effect that it would have prevented.",
        "Ask again. A suspension that took effect is lifted by the quorum: keyturn resume.",
    ),
    Why.DECIDED: (
        "What it decides about was decided before, or ended because something else happened.",
        "keyturn show RUN says what is open now. To stop a run that has its permit: keyturn suspend.",
    ),
    Why.OVER: (
        "The run has ended, or the lease is closed.",
        "Nothing brings it back: make a new request.",
    ),
    Why.WIDENS: (
        "A narrowing that allows more than was asked for.",
        "Narrow to a part of what was asked. More than that takes an amendment by the requester.",
    ),
    Why.BROKEN: (
        "It breaks a rule of its kind: a denial without a reason, a commitment that the tier asks for is missing.",
        "The message says which; make the statement again.",
    ),
    Why.NO_PERMIT: (
        "The run isn't approved yet.",
        "Before that, deny it or veto it; nothing of it can be suspended, resumed or amended.",
    ),
    Why.NOT_SUSPENDED: (
        "There is nothing to resume.",
        "keyturn show RUN says where the run stands.",
    ),
    Why.OVERRULED: (
        "What this party did alone, suspending or narrowing, was undone without it, or has lasted as long as it may.",
        "Another party with a veto has to suspend, or to narrow.",
    ),
    Why.STALE: (
        "It answers other events than there were: something happened in between, or it is an old one again.",
        "Get a new bundle, look at what changed (keyturn diff), and make the statement again.",
    ),
    Why.VERSION: (
        "It isn't the next version of the root or policy in force.",
        "keyturn root new and keyturn policy new number it after the one in force, if they see that one.",
    ),
    Why.THRESHOLD: (
        "Too few have signed, or too few whose keys count.",
        "keyturn root show FILE and keyturn policy show FILE say who is missing; pass the file on to be signed.",
    ),
    Why.EXHAUSTED: (
        "Nothing of the budget is left, or all is out on leases, or the host reported more than its chips can do.",
        "keyturn show RUN says what is charged and what is out. More budget takes keyturn amend and its approvals.",
    ),
    Why.TOO_MANY_CHIPS: (
        "More chips at once than the permit or the allowance lets run.",
        "Start on fewer, wait until a silent host's chips come free (5 min), or amend the run.",
    ),
    Why.OWES_REPORT: (
        "The node hasn't said what its last lease used, and a renewal takes that.",
        "keyturn-agent status on that host; once its log reaches the verifier, the next lease comes by itself.",
    ),
    Why.TOO_MUCH: (
        "More than others have to keep: by a person or a party about this run, of one person's requests pending or"
        " within a day, or of all roots and policies.",
        "Withdraw requests that aren't meant any more; those of 24 h count nevertheless. A veto is always taken, and a"
        " party's suspension has room of its own. Roots have room that policies leave.",
    ),
    Why.SAID_BEFORE: (
        "The very same statement is in the log already, and counts once.",
        "Nothing, if it was sent again. To say it anew, make it anew: another time makes it another statement.",
    ),
    Why.CHIP_TAKEN: (
        "A chip is under another lease: of another run, or of another node that says it has that chip.",
        "End what runs on it, or wait until that lease is over. One chip on two nodes: find out which of them has it.",
    ),
    Why.ASSURANCE: (
        "The node's evidence is worth less than the run's tier asks for.",
        "Run it on nodes of that assurance level, or amend the run under a policy that asks for less.",
    ),
    Why.UNVERIFIED: (
        "The tier asks that the host checks a part of the spec itself, and it couldn't.",
        "Give keyturn-agent exec the openings and what they open: the image's digest, the config file.",
    ),
    Why.SITE: (
        "The node isn't at a site of the permit, or the chip isn't one of its chips.",
        "keyturn show RUN says where it may run. Other sites or chips take keyturn amend and its approvals.",
    ),
    Why.WINDOW: (
        "It is before or after the time for which the run was approved.",
        "keyturn show RUN says when; another window takes keyturn amend and its approvals.",
    ),
    Why.SUSPENDED: (
        "The run is suspended, so no host gets a lease.",
        "keyturn show RUN says who suspended it and why; keyturn resume takes the quorum.",
    ),
    Why.NOT_YET: (
        "Fewer hosts of the group have asked than are to start together.",
        "Start the others: all get their leases when the last one asks. Nobody is charged while they wait.",
    ),
    Why.UNKNOWN_CHIP: (
        "The chip table doesn't know the chip, so its peak has no bound and no lease would hold it.",
        "A version of Keyturn that knows the chip. Until then it can't run under a permit or the allowance.",
    ),
    Why.ORGANISATION: (
        "The host was enrolled for an organisation that no party of the root in force is of, so it has no allowance.",
        "Enrol the host anew with a join token for an organisation of the root, or put its own into the next root.",
    ),
    Why.REPLACED: (
        "An operator signed that this host became another node, so that its old node gets no more leases.",
        "Start it on the host as it is now, under its new node; keyturn node NODE shows which nodes a host was.",
    ),
    Why.CHIP_CLAIMED: (
        "Another node named the chip first, lists it and was heard of in the last half hour: it is that node's.",
        "Moved: start the old host's agent without it, retire that host, or wait. Else find out which of them has it.",
    ),
}
