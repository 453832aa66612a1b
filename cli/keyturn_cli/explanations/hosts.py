"""What hosts say: why their logs are degraded, and why an agent or a gate refuses to start a command."""

from collections.abc import Mapping
from typing import Final

_CLIENT: Final = "Is each program of the host of the same version? Restart the service; its journal says more."

CAUSES: Final[Mapping[str, tuple[str, str]]] = {
    "disk_filling": (
        "The disk gets full: receipted segments go first, then usage is written less often.",
        "Make room on the state folder's disk.",
    ),
    "fields_lost": (
        "Something that was measured on a chip no longer is; the detail names chip and fields.",
        "keyturn-agent doctor on that host says why a field isn't measured.",
    ),
    "gate_away": (
        "The gate hasn't answered for a minute: nothing is known to be locked or to be stopped.",
        "systemctl status keyturn-gate on that host; switch.gate_socket has to be where it listens.",
    ),
    "gate_mismatch": (
        "The gate does something else than switch.gate says. One that observes locks nothing and stops nothing.",
        "Set --driver in the gate's unit and switch.gate in the agent's configuration to the same.",
    ),
    "gate_released": (
        "Root released the gate: every chip is open, nothing is stopped. The detail is the reason.",
        "keyturn-gate lock ends it, as does a reboot.",
    ),
    "hidepid": (
        "The processes of other users are hidden from the agent: their compute is nobody's.",
        "Let the agent's account see them: keyturn-agent doctor.",
    ),
    "other_program": (
        "Under a permit another command line began than the one that was compared with it. It was refused or stopped.",
        "Ask who ran exec there: exec itself starts what it names.",
    ),
    "pid_namespace": (
        "The agent isn't in the host's PID namespace: all compute is nobody's.",
        "hostPID: true, or --pid=host.",
    ),
    "program_unseen": (
        "A command began under a permit, and its command line couldn't be read as it did: renewals call it declared.",
        "A policy that wants it verified renews none. Is tracing forbidden on that host, or the command setuid? Else"
        " ask who ran exec there.",
    ),
    "spool_filling": (
        "Entries without a receipt take up most of their room: usage is written less often.",
        "Find out why the verifier isn't reached: keyturn-agent status and doctor.",
    ),
    "survivors": (
        "Processes went on after their lease.",
        "End them on that host, and find out how they left their run.",
    ),
    "verifier_time_ahead": (
        "The verifier's time is more than five minutes ahead of the host's: what it says of time isn't followed.",
        "Compare both clocks with a third: is NTP or PTP running?",
    ),
    "would_refuse": (
        "Work on a chip that nobody leased. A gate that enforces would have prevented it.",
        "Start it with keyturn-agent exec, before the gate enforces.",
    ),
    "would_stop": (
        "The time of a run was over, and nothing stopped it: the gate observes or is released.",
        "If the stop was right, let the gate enforce; if not, look at the run's lease and its budget.",
    ),
}
"""Of ``degraded`` entries. NVML's own causes are named as NVML names them."""

REFUSALS: Final[Mapping[str, tuple[str, str]]] = {
    "bad_agent": ("What listens at the agent's socket isn't this agent, or one of another version.", _CLIENT),
    "bad_file": (
        "A file for exec isn't an ordinary one, or can't be read.",
        "Name the file itself; the detail says which.",
    ),
    "bad_files": ("Files that were named didn't come with the request.", _CLIENT),
    "bad_gate": ("What listens at the gate's socket isn't a gate, or one of another version.", _CLIENT),
    "bad_lease": (
        "A lease that isn't for this host, boot, run and root. It isn't used.",
        "The detail says what differs. If the verifier hands out more of them, somebody should look at it.",
    ),
    "bad_openings": (
        "What --openings says isn't what the request commits to.",
        "Take the file of openings that was made with the request.",
    ),
    "bad_permit": ("The verifier gave the permit of another run.", "Somebody should look at that verifier."),
    "bad_request": ("The gate doesn't know such a request.", _CLIENT),
    "bad_socket": ("The service manager handed over no socket that the gate can use.", "Install both units again."),
    "bad_target": (
        "The processes of the run can't be held as a group or a session.",
        "The detail says why: run it in a scope, a container or a task of its own.",
    ),
    "bad_time": ("The stop is in the past, or more than 400 days away.", "Start the command again."),
    "busy": (
        "Too much is asked at once, or a command runs under this run or lineage here.",
        "Wait for the one before: keyturn-agent status shows what runs.",
    ),
    "chips": (
        "These chips aren't free here, or the run may not have them.",
        "keyturn-agent status shows who has them; --chips names others.",
    ),
    "disk": ("The gate couldn't write its state; nothing was opened.", "Make room on its disk."),
    "exhausted": ("The lease leaves no compute to use.", "keyturn show RUN says what was charged; keyturn amend."),
    "failed": ("The gate couldn't do it; the detail is the system's error.", "Look at the gate's journal."),
    "gate": ("The gate didn't open the chips, so nothing was started.", "keyturn-gate status on that host."),
    "in_use": ("Another gate serves this socket.", "One gate a host: stop the other one."),
    "leased": (
        "A command runs under a lease here: the log can't end, or nobody else knows what was used.",
        "keyturn-agent status shows which; wait for its end, or start the agent and let it end.",
    ),
    "no_account": ("This host has no account of the agent's name.", "Make it, or name the right one with --agent."),
    "no_agent": (
        "No agent answers at this socket.",
        "switch.exec_socket has to be set in the agent's configuration, and the agent has to run.",
    ),
    "no_gate": ("No gate answers at this socket.", "systemctl status keyturn-gate on that host."),
    "no_grant": ("The gate holds nothing of this name: it is over.", "Nothing."),
    "no_job": ("The agent knows no such command.", "It has ended, or another process started it."),
    "no_lease": ("No lease came in the time of --wait.", "What exec said before names the reason; --wait longer."),
    "no_place": ("The command has neither a group nor a session of its own here.", "Run it in a scope or a container."),
    "no_process": ("The command's process went away before it began.", "Start it again."),
    "not_approved": ("The run's quorum isn't met.", "keyturn show RUN says who is missing."),
    "not_released": ("The gate isn't released.", "Nothing."),
    "not_root": ("Only root releases a gate and locks it again.", "Run it as root."),
    "not_you": ("The gate hears only root and the agent's account.", "Run it as root; --agent names the account."),
    "other_boot": ("The request is from before a reboot.", "Start the command again."),
    "other_config": ("The configuration isn't the approved one.", "Start the approved one, or ask: keyturn amend."),
    "other_data": ("The list of data isn't the approved one.", "Start with the approved one, or ask: keyturn amend."),
    "other_image": ("The image isn't the approved one.", "Start the approved one, or ask: keyturn amend."),
    "other_job": ("Another command holds one of these chips at the gate.", "keyturn-gate status shows which."),
    "other_program": (
        "The command line isn't the approved one.",
        "It is compared word for word: start the approved one, or ask: keyturn amend.",
    ),
    "over": ("The run or its grant has ended: it can't be started.", "keyturn show RUN says why."),
    "permit": ("The verifier didn't answer with a permit.", "exec tries again; is the verifier up?"),
    "site": ("The run may not be at this host's site.", "keyturn show RUN names its sites."),
    "stopping": ("The grant is being stopped: it can't be changed.", "Wait for its end."),
    "suspended": ("The run is suspended.", "keyturn show RUN says by whom; the quorum resumes it: keyturn resume."),
    "too_large": ("The request or the permit is over its limit.", "The detail names the limit."),
    "unknown_run": ("The verifier knows no such run.", "--run takes the hash of a request: keyturn list."),
    "unverified": (
        "The policy wants a part verified on the host that wasn't.",
        "Give exec --openings and the file of the part; the hint names them.",
    ),
    "usage": ("The command line of the gate isn't one.", "keyturn-gate --help."),
    "window": ("The run's window hasn't begun.", "keyturn show RUN says when it does."),
}
