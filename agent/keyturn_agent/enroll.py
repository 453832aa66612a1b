"""Enrolment: a key, a join with a token, and a first segment that uses the token up.

A statement that this node replaces another is shown to the verifier before that: see
:mod:`keyturn_agent.replace`. Each step can be cut short by a crash and done again. What is on disk, and when:

1. the key, and the pinned trust file or the pinned root, once the verifier has taken the token;
2. ``config.json``, which makes the folder an enrolled host's;
3. the log with its genesis entry, sealed;
4. the receipt for it, after which the token is used up.
"""

import logging
import time
from pathlib import Path

import msgspec

from keyturn_agent import files
from keyturn_agent.courier import Courier
from keyturn_agent.enrolment import Enrolment, Pinned, format_enrolment, genesis
from keyturn_agent.errors import RefusedError, UnreachableError
from keyturn_agent.log import NodeLog, let_go
from keyturn_agent.log_files import Opened
from keyturn_agent.ports import Clock, Random, Signer, Stamp, Verifier
from keyturn_agent.replace import show_statement
from keyturn_agent.signer import FileSigner
from keyturn_agent.store import Boots, FolderLock, make_folder, read_enrolment
from keyturn_agent.switch.pin import Pin
from keyturn_protocol.api import STATUS, JoinRequest, JoinResponse, Problem
from keyturn_protocol.canonical import decode, encode, parse
from keyturn_protocol.entry_log import Source
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.ids import Deployment, LogName
from keyturn_protocol.keys import node_id_of
from keyturn_protocol.segment import node_key

logger = logging.getLogger(__name__)


def enroll(
    folder: Path,
    url: str,
    token: str,
    pinned: Pinned,
    source: Source,
    *,
    verifier: Verifier,
    clock: Clock,
    random: Random,
    patience_s: float,
    statement: bytes | None = None,
    pin: Pin | None = None,
) -> Enrolment:
    """Enrol this host; done again on the same folder, it goes on where it was.

    :param statement: an operator's, that this node replaces another.
    :param pin: the root that ``pinned`` comes from, if one is pinned.

    :raises RefusedError: the token isn't good, or the folder belongs to another verifier; nothing was changed.
    :raises UnreachableError: the verifier didn't answer in time; done again, it goes on.
    """
    with files.doing(f"looking for {folder}"):
        fresh = not folder.exists()
    make_folder(folder)
    lock = FolderLock(folder)
    try:
        try:
            with files.doing(f"reading {folder}"):
                if statement is not None:
                    show_statement(verifier, statement)
                enrolment = _join(folder, url, token, pinned, source, verifier, pin)
        except BaseException:
            if fresh:
                _forget(folder)
            raise
        with files.doing(f"opening {folder}"):
            log = _first_log(folder, enrolment, clock)
        try:
            _send(log, pinned, verifier, random, patience_s)
        finally:
            log.close()
    finally:
        lock.release()
    return enrolment


def _join(
    folder: Path, url: str, token: str, pinned: Pinned, source: Source, verifier: Verifier, pin: Pin | None
) -> Enrolment:
    """Steps 1 and 2. Announcing the same key twice is allowed, so both are simply done again."""
    known = _known(folder, url, pinned, source)
    if known is not None and pin is not None and known.root_sha256 is None:
        known = _pin(folder, known, pin)
    key_file = folder / "key"
    signer = FileSigner.load(key_file) if key_file.exists() else FileSigner.generate()
    name = LogName(Deployment(pinned.deployment), node_id_of(signer.public_key), 1)
    if known is not None and (folder / "logs" / "1").exists() and any((folder / "logs" / "1").glob("0-*.receipt")):
        logger.info("this host is enrolled already")
        return known
    answer = verifier.join(encode(JoinRequest(token=token, vkey=str(node_key(name.origin, signer.public_key)))))
    if answer.status != 200:
        problem = _problem(answer.body)
        if problem is None or answer.status >= 500 or answer.status in (408, 429):
            raise UnreachableError("join", f"the verifier answered the join with HTTP {answer.status}; try again")
        if known is not None:
            # The first segment may have arrived and used the token up; sending it again gets the same receipt.
            logger.info("join: %s; trying the first segment", problem.detail)
            return known
        raise RefusedError(problem.code, f"the verifier refuses to enrol this host: {problem.detail}")
    try:
        response: JoinResponse = decode(answer.body, JoinResponse)
    except ProtocolError as error:
        raise UnreachableError("join", f"the verifier's answer to the join is not one: {error}") from error
    if response.origin != name.origin:
        raise RefusedError(
            "wrong_deployment",
            f"the verifier enrols for another log (expected {name.origin}, got {response.origin})",
            hint="--trust and --verifier have to be of one deployment",
        )
    if known is not None:
        return known
    enrolment = Enrolment(
        v=2,
        deployment=pinned.deployment,
        node_id=name.node_id,
        public_key=signer.public_key.hex(),
        verifier=url,
        source=source,
        organisation=response.organisation,
        site=response.site,
        trust_sha256=pinned.sha256,
        root_sha256=pinned.root_sha256,
    )
    if not key_file.exists():
        # After this the key survives; without config.json it is only a key that was announced.
        signer.save(key_file)
    with files.doing(f"writing {folder}"):
        files.replace(folder / "trust.json", pinned.data)
        if pin is not None:
            pin.keep()
        # After this the enrolment survives.
        files.replace(folder / "config.json", format_enrolment(enrolment))
    return enrolment


def _pin(folder: Path, known: Enrolment, pin: Pin) -> Enrolment:
    """Pin a root on a host that was enrolled before there was one; its next log says so in the first entry."""
    with files.doing(f"writing {folder}"):
        pin.keep()
        enrolment = msgspec.structs.replace(known, root_sha256=pin.root_sha256)
        # After this no other root is believed.
        files.replace(folder / "config.json", format_enrolment(enrolment))
    logger.info("this host has pinned root sha256:%s", pin.root_sha256)
    return enrolment


def _known(folder: Path, url: str, pinned: Pinned, source: Source) -> Enrolment | None:
    """The enrolment that is there already, if it is the one that is asked for."""
    if not (folder / "config.json").exists():
        return None
    known, _ = read_enrolment(folder)
    rooted = pinned.root_sha256 is not None and known.root_sha256 is not None
    for what, have, want in (
        ("verifier", known.verifier, url),
        ("root", known.root_sha256, pinned.root_sha256)
        if rooted
        else ("trust file", known.trust_sha256, pinned.sha256),
        ("source", known.source, source),
    ):
        if have != want:
            raise RefusedError(
                "enrolled_elsewhere",
                f"{folder} is enrolled with another {what} (expected {have}, got {want})",
                hint="a host that changes its verifier gets a new state folder and a new key",
            )
    return known


def _forget(folder: Path) -> None:
    """Take back an empty folder that was made for nothing. A key in it is kept: it may have been announced."""
    if not (folder / "key").exists():
        (folder / "lock").unlink(missing_ok=True)
        folder.rmdir()


def _first_log(folder: Path, enrolment: Enrolment, clock: Clock) -> NodeLog:
    """Step 3."""
    signer: Signer = FileSigner.load(folder / "key")
    name = LogName(Deployment(enrolment.deployment), node_id_of(signer.public_key), 1)
    place = folder / "logs" / "1"
    if place.exists():
        log = NodeLog.open(place, name, signer)
        if log.size > 1:
            return log
    else:
        now = clock.now()
        boots = Boots(v=1, boot_id=clock.boot_id, boots=1)
        stamp = Stamp(boots.boot_id, boots.boots, now.mono_us, now.time_us)
        with files.doing(f"making {folder}/logs"):
            files.replace(folder / "boots.json", encode(boots))
            place.parent.mkdir(mode=files.PRIVATE_FOLDER, exist_ok=True)
            files.fsync_folder(folder)
        opened = Opened(v=1, opened_s=int(time.time()), reason="enrolled", detail=f"site {enrolment.site}"[:1000])
        root_sha256 = enrolment.root_sha256
        body = genesis(signer.public_key, enrolment.source, enrolment.trust_sha256, root_sha256, None)
        log = NodeLog.create(place, name, signer, opened, body, stamp)
    with let_go(log):
        log.seal()
    return log


def _send(log: NodeLog, pinned: Pinned, verifier: Verifier, random: Random, patience_s: float) -> None:
    """Step 4."""
    courier = Courier(verifier, pinned.receipt_key, pinned.log_key, random, jitter_s=0)
    courier.carry(log.spool, log.key, ask=False)
    courier.start()
    try:
        if courier.drain(patience_s):
            return
        leave, last = courier.leave(), courier.last_error
    finally:
        courier.stop()
    if leave is not None:
        raise RefusedError(leave.reason, f"the verifier doesn't take the first segment: {leave.why}")
    raise UnreachableError(
        "no_receipt",
        f"no receipt for the first segment yet: {last or 'no answer'}",
        hint="run the same command again; it goes on from here",
    )


def _problem(body: bytes) -> Problem | None:
    try:
        problem: Problem = parse(body, Problem)
    except ProtocolError:
        return None
    return problem if problem.code in {code.value for code in STATUS} else None
