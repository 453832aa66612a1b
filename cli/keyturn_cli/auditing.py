"""Running an audit on this machine's cores: logs side by side, the conclusion in one place."""

import gc
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from threading import Thread
from typing import Final

from keyturn_cli.errors import CliError, Exit
from keyturn_protocol.api import OperatorKey, Trust
from keyturn_protocol.audit import Report, conclude, open_manifest, tasks
from keyturn_protocol.audit_log import LogResult, Task, audit_log
from keyturn_protocol.audit_root import root_trust
from keyturn_protocol.audit_tree import audit_verifier_log
from keyturn_protocol.bundle import BundleReader, check_trust
from keyturn_protocol.checkpoint import Checkpoint, open_checkpoint
from keyturn_protocol.chips import chip_table
from keyturn_protocol.errors import ProtocolError

ALONE: Final = 64
"""Fewer segments than this are done sooner than a second process starts."""

Progress = Callable[[int, int], None]
"""(segments done, segments in all)."""


@dataclass(frozen=True, slots=True)
class Pins:
    """What the auditor brings: keys, a root hash in hex, a checkpoint of the verifier's log; each may be absent."""

    trust: Trust | None = None
    root_sha256: str | None = None
    checkpoint: bytes | None = None
    operators: tuple[OperatorKey, ...] | None = None
    """None: the trust file says nothing about them."""


def run_audit(reader: BundleReader, pins: Pins, jobs: int, progress: Progress) -> Report:
    """Audit a bundle; ``jobs`` processes at most, 0 for one a core.

    :raises ProtocolError: the manifest can't be read.
    :raises CliError: the checkpoint that the auditor brought is none of the pinned key's.
    """
    manifest = open_manifest(reader)
    pinned = pins.trust or root_trust(reader, pins.root_sha256)
    trust = pinned or manifest.verifier
    seen = None if pins.checkpoint is None else _open(pins.checkpoint, trust, pinned=pinned is not None)
    verifier_log = audit_verifier_log(reader, manifest, trust)
    todo = tasks(manifest, verifier_log, trust)
    results = _audit_logs(reader, todo, jobs or os.cpu_count() or 1, progress)
    return conclude(
        reader,
        manifest,
        verifier_log,
        results,
        trust,
        chip_table(),
        pinned=pinned is not None,
        seen=seen,
        root_sha256=pins.root_sha256,
        operators=pins.operators,
    )


def _open(data: bytes, trust: Trust, *, pinned: bool) -> Checkpoint:
    key, _ = check_trust(trust)
    try:
        return open_checkpoint(data, key)
    except ProtocolError as error:
        whose = "the pinned log key" if pinned else "the log key that the bundle names"
        raise CliError(
            f"the given checkpoint is not one by {whose}: {error}",
            exit=Exit.USAGE if pinned else Exit.UNDECIDED,
            hint=None if pinned else "pin the verifier's keys with --root or --trust",
        ) from None


def _audit_logs(reader: BundleReader, todo: Sequence[Task], jobs: int, progress: Progress) -> list[LogResult]:
    """The result of each task, in the order of ``todo``."""
    total, done = sum(len(task.segments) for task in todo), 0
    jobs = min(jobs, len(todo))
    if jobs <= 1 or total < ALONE:
        results = []
        for task in todo:
            results.append(audit_log(reader, task))
            progress(done := done + len(task.segments), total)
        return results
    found: dict[int, LogResult] = {}
    # A fresh server forks the workers: nothing of this process, its threads and terminal, goes along.
    pool = ProcessPoolExecutor(jobs, get_context("forkserver"), initializer=_keep, initargs=(reader,))
    try:
        longest_first = sorted(range(len(todo)), key=lambda i: -len(todo[i].segments))
        futures = {pool.submit(_work, todo[i]): i for i in longest_first}
        for future in as_completed(futures):
            found[futures[future]] = future.result()
            progress(done := done + len(todo[futures[future]].segments), total)
    except BrokenProcessPool:
        raise CliError("a worker of the audit was killed", exit=Exit.UNDECIDED, hint="less memory: --jobs 1") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return [found[i] for i in range(len(todo))]


_reader: list[BundleReader] = []
"""The reader of a worker process."""


def _keep(reader: BundleReader) -> None:
    """Begin a worker: what was imported stays for good, and entries are garbage as soon as they are folded."""
    if (parent := parent_process()) is not None:
        Thread(target=_end_with, args=(parent.sentinel,), name="parent", daemon=True).start()
    _reader[:] = [reader]
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _end_with(sentinel: int) -> None:
    """End this worker when the program does. One that is killed tells nobody; the kernel closes its end of a pipe."""
    wait([sentinel])
    os._exit(Exit.UNDECIDED)


def _work(task: Task) -> LogResult:
    return audit_log(_reader[0], task)
