"""What ``doctor`` says about the gate: whether it is there, and does what the configuration says of it."""

from pathlib import Path

from keyturn_agent.config import Config
from keyturn_agent.doctor import Check, State
from keyturn_agent.errors import AgentError
from keyturn_agent.switch.gate_word import GateWord, expected_of
from keyturn_agent.switch.gatelink import SOCKET, GateLink
from keyturn_agent.words import count

_PATIENCE_S = 5.0


def gate(config: Config) -> Check:
    """The gate by its own word."""
    state, detail = _look(config)
    return Check(name="gate", state=state, detail=detail)


def _look(config: Config) -> tuple[State, str]:
    if config.gate is None:
        return "skip", "switch.gate isn't set: no gate is asked"
    if config.exec_socket is None:
        return "warn", "switch.exec_socket isn't set: the agent asks no gate, and its log says none"
    link = GateLink(SOCKET if config.gate_socket is None else Path(config.gate_socket))
    word = GateWord(expected_of(config))
    try:
        status = link.status(0, _PATIENCE_S)
    except AgentError as error:
        return "fail", str(error)
    word.answered(status)
    if word.wrong is not None:
        # Where it locks and nobody said that it does, evidence says less than there is; elsewhere nothing is locked.
        return "warn" if word.driver == "compute_mode" else "fail", word.wrong[1]
    if status.released is not None:
        return "warn", f"released by root: {status.released.reason}"
    if status.trouble is not None:
        return "warn", status.trouble
    return "ok", f"{word.driver}, {count(len(status.chips), 'chip')}"
