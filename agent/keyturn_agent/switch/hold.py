"""Holds a process at the moment at which it has become a command, until somebody has looked at it.

A helper that is no child of it traces it over its one ``execve`` (ptrace(2)): from the end of that on, its command line
is what the kernel was given, and nothing of the command has run yet. Who may trace is the kernel's matter: without a
helper (a container that forbids it, Yama) nothing is held. Like :mod:`~keyturn_agent.switch.stub`, of which this is a
part, it loads nothing of the agent's.
"""

import ctypes
import os
import signal
import socket
from collections.abc import Callable

_SEIZE, _LISTEN, _CONT, _DETACH = 0x4206, 0x4208, 7, 17
_TRACE_EXEC = 0x10
_EVENT_EXEC, _EVENT_STOP = 4, 128
_SET_TRACER = 0x59616D61
_WALL = 0x40000000
_STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)


def over_exec(program: str, look: Callable[[], bool]) -> bool:
    """Have this process held once it has become ``program``; whether it will be.

    :param look: called in the helper while it is held; False kills it.
    """
    if _privileged(program):
        # Traced by a user, it would begin without the rights that are the point of it.
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    held, ours, helpers = os.getpid(), *socket.socketpair()
    try:
        between = os.fork()
        if between == 0:
            # The helper's parent is gone at once: the command finds no child that it never started.
            try:
                if os.fork() == 0:
                    ours.close()
                    _help(libc, held, helpers, look)
            finally:
                os._exit(0)
        helpers.close()
        os.waitpid(between, 0)
        libc.prctl(_SET_TRACER, int.from_bytes(ours.recv(4), "big"), 0, 0, 0)
        ours.sendall(b"?")
        return ours.recv(1) == b"y"
    except OSError:
        # There is no helper: no process more is allowed here, or somebody killed it.
        return False
    finally:
        ours.close()
        helpers.close()
        libc.prctl(_SET_TRACER, 0, 0, 0, 0)


def _help(libc: ctypes.CDLL, held: int, ours: socket.socket, look: Callable[[], bool]) -> None:
    try:
        with ours:
            ours.sendall(os.getpid().to_bytes(4, "big"))
            ours.recv(1)
            traced = libc.ptrace(_SEIZE, held, None, _TRACE_EXEC) == 0
            ours.sendall(b"y" if traced else b"n")
        if traced:
            _follow(libc, held, look)
    finally:
        # What it had traced goes on.
        os._exit(0)


def _follow(libc: ctypes.CDLL, held: int, look: Callable[[], bool]) -> None:
    """Pass on its signals, until it has become the command or has ended."""
    while True:
        status = os.waitpid(held, _WALL)[1]
        if not os.WIFSTOPPED(status):
            return
        number, event = os.WSTOPSIG(status), status >> 16
        if event == _EVENT_EXEC:
            if not look():
                os.kill(held, signal.SIGKILL)
            libc.ptrace(_DETACH, held, None, None)
            return
        if event == _EVENT_STOP and number in _STOPS:
            libc.ptrace(_LISTEN, held, None, None)
        else:
            libc.ptrace(_CONT, held, None, None if event else number)


def _privileged(program: str) -> bool:
    """Whether a program gets more rights than who starts it."""
    for folder in [""] if "/" in program else os.get_exec_path():
        path = os.path.join(folder, program)  # noqa: PTH118 -- pathlib would be loaded for this
        try:
            mode = os.stat(path).st_mode  # noqa: PTH116
        except OSError:
            continue
        try:
            return bool(mode & 0o6000) or bool(os.getxattr(path, "security.capability"))
        except OSError:
            return False
    return False
