"""What someone should look at: what a finding means, and what to do. The rules are in ``protocol/spec/findings.md``."""

from collections.abc import Mapping
from typing import Final

from keyturn_protocol.findings import FindingCode

FINDINGS: Final[Mapping[FindingCode, tuple[str, str]]] = {
    FindingCode.GAP: (
        "Time of chips that no usage covers. It counts at the chips' peak: a gap never lowers a total.",
        "Find out why the agent was down or silent, and keep it running. A chip that is gone is retired.",
    ),
    FindingCode.UNMEASURED: (
        "The agent couldn't read a chip for part of the time.",
        "keyturn-agent doctor on that host; a driver that hangs or a lost GPU is the usual reason.",
    ),
    FindingCode.UNATTRIBUTED: (
        "A chip was busy for long while no workload was visible.",
        "Check that the agent sees processes: hidepid, PID namespaces, rights of its user.",
    ),
    FindingCode.UNKNOWN_CHIP: (
        "The chip isn't in the chip table, so its FLOP have no upper bound.",
        "A version of Keyturn that knows the chip; until then its totals are undetermined.",
    ),
    FindingCode.IMPLAUSIBLE: (
        "Counters contradict each other or what the chip can do.",
        "A driver's fault or somebody's: compare with another tool on that host, and look at its driver version.",
    ),
    FindingCode.CLOCK_STEP: (
        "The wall clock was set while the agent ran.",
        "Let time synchronisation run before the agent. One step after a boot is ordinary.",
    ),
    FindingCode.CLOCK_BACK: (
        "The wall clock is earlier after a reboot or in the node's next log: the time between can't be known.",
        "A flat battery of the clock, or somebody set it: check the host before its numbers are believed.",
    ),
    FindingCode.CLOCK_AHEAD: (
        "The log claims to end later than it was received.",
        "Set the host's clock right; silence is counted from the receipt.",
    ),
    FindingCode.RECOVERED: (
        "The agent dropped a torn end of its log after a crash.",
        "Ordinary after a power cut. Often on one host: look at its disk.",
    ),
    FindingCode.DEGRADED: (
        "The agent measures less than before; the detail says why.",
        "The agent's page lists the causes and what helps.",
    ),
    FindingCode.PAUSED: (
        "The operator paused the agent, and said why. The time counts as a gap.",
        "Nothing, if the reason is good.",
    ),
    FindingCode.NEW_INCARNATION: (
        "The node left its log for a new one, and says why.",
        "Ordinary after a key roll; otherwise the reason says what went wrong.",
    ),
    FindingCode.REPLACED: (
        "An operator signed that another node is what this host became.",
        "Check that it is so: from there on the old node owes no time for chips that the new one lists.",
    ),
    FindingCode.REPLACED_ACTIVE: (
        "A node that is said to be replaced went on reporting.",
        "Two hosts, or a copy of one: nothing is taken over until that is cleared up.",
    ),
    FindingCode.INCARNATION_SKIPPED: (
        "The verifier never saw one or more logs of this node in between.",
        "What they held is missing: look for the host's state folder, and upload what is in it.",
    ),
    FindingCode.LOST_HEAD: (
        "A new log forgets receipted entries of the one before, or knows other ones.",
        "The host was restored from a backup or cloned. What was receipted still counts.",
    ),
    FindingCode.FORK: (
        "The node signed two heads of one size: it, or a copy of it, rewrote its log.",
        "Evidence against evidence. Keep the host as it is, and find out who had its key.",
    ),
    FindingCode.INVALID_ENTRIES: (
        "Signed entries that break the format or the chain.",
        "An agent of this project doesn't write such: find out what runs on that host.",
    ),
    FindingCode.UNLOGGED_RECEIPT: (
        "The verifier signed a receipt whose leaf isn't in its log.",
        "Ask its operator: a restored database, or a receipt that was never meant to be seen.",
    ),
    FindingCode.VERIFIER_ROLLBACK: (
        "The verifier lost what it had signed: a node showed a receipt, or quotes a head of another history.",
        "Ask its operator. A database from a backup is the harmless reason, a rewritten log the other.",
    ),
    FindingCode.CHIP_CLAIMED: (
        "Two nodes listed one chip at once: one of them hasn't got it, or one host is metered twice.",
        "Find out which of the two has it. keyturn replace OLD NEW says that a host became another, and ends the old.",
    ),
    FindingCode.LEASE_UNKNOWN: (
        "A node runs under a lease that the verifier's log doesn't have, or that isn't its own. It counts for no run.",
        "Host or verifier is in the wrong: have the host show the lease. Is it signed, the verifier kept it out of "
        "its log, or somebody has its lease key; else the host made it up, or took another's.",
    ),
    FindingCode.LEASE_ROLLBACK: (
        "A node says that it has charged less than it said before: its state came from a backup.",
        "Nothing is gained by it, the higher number counts. Find out who restored the host and why.",
    ),
    FindingCode.LEASE_UNDERCHARGED: (
        "A node says that it has charged less than its own log comes to.",
        "Another version of the chip table is the harmless reason. Otherwise that agent isn't one of this project.",
    ),
    FindingCode.LEASE_OVERRUN: (
        "A node charged more than its lease allowed: what ran wasn't stopped when the lease was used up.",
        "A little is the time to the next sample. More: look at the gate's driver there. More than chips can: a lie.",
    ),
    FindingCode.LEASE_SURVIVORS: (
        "A workload went on on leased chips after the last word on their lease.",
        "Look at what still runs there; the gate's driver observe logs it and stops nothing.",
    ),
    FindingCode.UNLEASED: (
        "A host's agent saw work on a chip that nobody leased, or that outlived its lease; its entry says whose.",
        "Start such work by keyturn-agent exec. Where the gate locks chips, ask who has root on the host.",
    ),
}
