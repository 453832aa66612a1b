"""A permit bundle under a pinned root: what is known of a run for certain, and what of it wasn't seen before."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from keyturn_cli.client import Client, NotThere
from keyturn_cli.errors import CliError, Exit
from keyturn_cli.files import read_capped
from keyturn_cli.seen import Compared, Leaf, Memory, compare
from keyturn_cli.settings import ROOT
from keyturn_protocol import api_switch
from keyturn_protocol.dsse import Envelope
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.lifecycle import Run
from keyturn_protocol.limits import OPENINGS_BYTES, PERMIT_BUNDLE_BYTES
from keyturn_protocol.openings import Openings, check_openings, parse_openings
from keyturn_protocol.permit import AUTHORITY, Opened, PermitBundle, open_permit_bundle, parse_permit_bundle
from keyturn_protocol.policy import Policy
from keyturn_protocol.root import Standing
from keyturn_protocol.statements import Statement, parse_payload
from keyturn_protocol.values import SpecPart


@dataclass(frozen=True, slots=True)
class Event:
    """A statement, and the leaf that names it."""

    index: int
    time_us: int
    envelope: Envelope
    statement: Statement

    @property
    def hash(self) -> str:
        return self.envelope.hash.hex()


@dataclass(frozen=True, slots=True)
class View:
    """A bundle that was verified."""

    opened: Opened
    at_us: int
    """Now, by this machine's clock; by the newest leaf where that is later."""
    compared: Compared

    @property
    def bundle(self) -> PermitBundle:
        return self.opened.bundle

    @property
    def deployment(self) -> str:
        return self.bundle.deployment

    @property
    def standing(self) -> Standing:
        """The root in force."""
        return self.opened.standing

    @property
    def policy(self) -> tuple[str, Policy] | None:
        """The policy in force, with its hash."""
        policies = self.opened.authority.policies
        return policies[-1][1:] if policies else None

    @property
    def run(self) -> Run:
        """The run that it is about."""
        if self.opened.run is None:
            raise CliError("this bundle is of no run", exit=Exit.USAGE, hint="keyturn bundle RUN --out FILE")
        return self.opened.run

    def keep(self, memory: Memory) -> None:
        """That it was shown."""
        authority = tuple((one.index, one.hash) for one in self.events if one.envelope.kind in AUTHORITY)
        first = self.opened.authority.roots[0][1].hash
        memory.keep(first, None, authority)
        if self.bundle.run is not None:
            memory.keep(first, self.bundle.run, leaves(self.bundle))

    @property
    def events(self) -> tuple[Event, ...]:
        """Every statement in it, in the order of their leaves."""
        return tuple(
            Event(one.index, one.time_us, one.envelope, parse_payload(one.envelope.kind, one.envelope.payload))
            for one in self.bundle.statements
        )

    @property
    def reasons(self) -> Mapping[str, str]:
        """What was said with each statement, by its hash."""
        return {one.hash: getattr(one.statement, "reason", "") for one in self.events}

    @property
    def unseen(self) -> tuple[Event, ...]:
        """What wasn't seen on this machine before; everything, if nothing was."""
        new = set(self.compared.new)
        return tuple(one for one in self.events if (one.index, one.hash) in new)

    @property
    def first_time(self) -> bool:
        """Whether nothing of it was seen here before."""
        return self.compared.new == leaves(self.bundle)


def pinned(root: str | None) -> str:
    """The hex of a pinned root.

    :raises CliError: there is none, or another form.
    """
    if root is None:
        raise CliError(
            "--root: missing: which root is believed is never the verifier's word",
            exit=Exit.USAGE,
            hint="the hash of the root, got from the parties themselves; root = … in the settings spares typing it",
        )
    if not ROOT.fullmatch(root):
        raise CliError(f"--root: must be sha256: and 64 lower-case hex digits (got {root})", exit=Exit.USAGE)
    return root.removeprefix("sha256:")


def from_file(path: Path, root: str | None, memory: Memory) -> View:
    """The view that a bundle in a file gives.

    :raises CliError: it isn't one, or another root is pinned.
    """
    return view(read_capped(path, PERMIT_BUNDLE_BYTES, "--bundle"), root, memory, str(path), live=False)


def from_verifier(client: Client, run: str | None, root: str | None, memory: Memory) -> View:
    """The view that a verifier gives now, of a run or, None, of roots and policies alone."""
    path = api_switch.AUTHORITY if run is None else api_switch.permit_path(run)
    return view(client.content(path, PERMIT_BUNDLE_BYTES), root, memory, client.base, live=True)


def view(data: bytes, root: str | None, memory: Memory, source: str, *, live: bool) -> View:
    """Verify a bundle's bytes under a pinned root, and hold them against what was seen and sent before.

    :param live: a verifier shows it now, so that it can't be an older copy.
    :raises CliError: not a bundle, not under that root, or it hides what was shown before, or taken from here.
    """
    wanted = pinned(root)
    try:
        bundle = parse_permit_bundle(data)
        opened = open_permit_bundle(bundle, wanted, bundle.deployment)
    except ProtocolError as error:
        raise CliError(f"{source}: {error}", exit=Exit.REJECTED) from None
    first = opened.authority.roots[0][1].hash
    compared = compare(memory.last(first, bundle.run), leaves(bundle))
    # Every bundle has all roots and policies: those that were seen with another run have to be in this one too.
    others = compare(memory.last(first, None), leaves(bundle))
    gone, older = compared.gone or others.gone, compared.older or others.older
    if gone or older:
        index, digest = (gone or older)[0]
        hint = "keep both: no verifier takes a leaf back" if gone or live else "it is an older copy: get a new one"
        raise CliError(
            f"{source}: it lacks {digest}, which was leaf {index} when it was last seen here",
            exit=Exit.REJECTED,
            hint=hint,
        )
    _check_sent(bundle, memory, source, live=live)
    return View(opened, max(time.time_ns() // 1_000, bundle.time_us), compared)


def _check_sent(bundle: PermitBundle, memory: Memory, source: str, *, live: bool) -> None:
    """That what a verifier answered to this machine is so: what it said it took is there, at the leaf that it named."""
    shown = set(leaves(bundle))
    for one in memory.sent.answered(digest for _, digest in shown):
        if (one.index, one.sha256) in shown:
            continue
        hint = f"dropped, or never logged: tell the other parties; keyturn statement send {one.path} sends it again"
        if not live and one.index > bundle.index:
            hint = "if it is an older copy, get a new one"
        raise CliError(
            f"{source}: it lacks {one.sha256}, which was sent from here and answered to be leaf {one.index}",
            exit=Exit.REJECTED,
            hint=hint,
        )


def leaves(bundle: PermitBundle) -> tuple[Leaf, ...]:
    """Every leaf that a bundle shows, in their order."""
    found = [(one.index, one.envelope.hash.hex()) for one in bundle.statements]
    if bundle.start is not None:
        found.append((bundle.start.index, bundle.start.lease.hash.hex()))
    return tuple(sorted(found))


def as_last_seen(now: View) -> Opened | None:
    """What the bundle said when it was last seen; None if it never was."""
    new, bundle = {index for index, _ in now.compared.new}, now.bundle
    said = tuple(one for one in bundle.statements if one.index not in new)
    if not said:
        return None
    start = None if bundle.start is None or bundle.start.index in new else bundle.start
    before = PermitBundle(bundle.deployment, bundle.run, said, start)
    return open_permit_bundle(before, now.opened.authority.roots[0][1].hash, now.deployment)


def run_hash(client: Client, reference: str) -> str:
    """The hash of a run, of which a person gave all, or how it begins.

    :raises CliError: no run that the verifier lists begins so, or several do.
    """
    wanted = reference.removeprefix("r-").removeprefix("sha256:")
    if re.fullmatch(r"[0-9a-f]{4,64}", wanted) is None:
        raise CliError(
            f"RUN: must be a hash, or four of its digits or more (got {reference})",
            exit=Exit.USAGE,
            hint="keyturn list",
        )
    if len(wanted) == 64:
        return wanted
    found = [one.run for one in client.items(api_switch.RUNS, api_switch.RunItem) if one.run.startswith(wanted)]
    if len(found) != 1:
        how = "no run begins" if not found else f"{len(found)} runs begin"
        raise CliError(f"RUN: {how} with {wanted}", exit=Exit.REJECTED, hint="keyturn list")
    return found[0]


def served_openings(
    client: Client, run: str, spec: Mapping[SpecPart, str | None], proposal: str | None = None
) -> Openings | None:
    """The openings that a verifier has of a run, or of an amendment of it; None if it has none.

    :param spec: that of the run, or of the amendment.
    :raises CliError: one doesn't open its commitment.
    """
    path = api_switch.openings_path(run)
    try:
        data = client.content(path if proposal is None else f"{path}?proposal={proposal}", OPENINGS_BYTES)
    except NotThere:
        return None
    return _checked(data, spec, client.base)


def read_openings(path: Path, spec: Mapping[SpecPart, str | None]) -> Openings:
    """The openings in a file, each of which opens its commitment.

    :raises CliError: one doesn't.
    """
    return _checked(read_capped(path, OPENINGS_BYTES, "--openings"), spec, f"--openings {path}")


def _checked(data: bytes, spec: Mapping[SpecPart, str | None], source: str) -> Openings:
    try:
        openings = parse_openings(data)
        check_openings(openings, spec)
    except ProtocolError as error:
        raise CliError(f"{source}: {error}", exit=Exit.REJECTED) from None
    return openings
