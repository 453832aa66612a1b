"""``keyturn approve | deny | veto | withdraw | suspend | resume | revoke | amend``: what a person says about a run."""

import time
from pathlib import Path
from typing import Annotated

import typer

from keyturn_cli import drafts
from keyturn_cli.commands.acting import Acting, acting
from keyturn_cli.commands.signed import perform
from keyturn_cli.commands.typed import ReasonMaybe, ReasonOption
from keyturn_cli.errors import CliError, Exit
from keyturn_cli.moments import moment_us, tflop
from keyturn_cli.permits import View
from keyturn_cli.request_toml import read_spec
from keyturn_protocol.runs import Decision, Narrowing, Resume, Revoke, RunStatement, Scope

RunArgument = Annotated[
    str | None, typer.Argument(metavar="RUN", help="its hash or how it begins, as r-7f3a81c2; a bundle names its own")
]
OnOption = Annotated[
    str | None, typer.Option("--on", metavar="HASH", help="a proposal or suspension of the run, or how its hash begins")
]
FlopOption = Annotated[str | None, typer.Option("--flop", metavar="N", help="such as 2.4e24")]
ChipsOption = Annotated[int | None, typer.Option("--chips", metavar="N", help="at once")]
ChipOption = Annotated[list[str] | None, typer.Option("--chip", metavar="UUID", help="only these; more than once")]
SiteOption = Annotated[list[str] | None, typer.Option("--site", metavar="NAME", help="only these; more than once")]
DtypeOption = Annotated[list[str] | None, typer.Option("--dtype", metavar="NAME", help="only these; more than once")]
FromOption = Annotated[str | None, typer.Option("--from", metavar="DATE", help="2026-01-31 or 2026-01-31T08:30Z")]
ToOption = Annotated[str | None, typer.Option("--to", metavar="DATE", help="as --from")]


@acting
def approve(
    given: Acting,
    run: RunArgument = None,
    on: OnOption = None,
    flop: FlopOption = None,
    chips: ChipsOption = None,
    chip: ChipOption = None,
    site: SiteOption = None,
    dtype: DtypeOption = None,
    start: FromOption = None,
    end: ToOption = None,
    reason: ReasonMaybe = "",
) -> int:
    """Approve a run, or a proposal about it (--on). The options narrow what is allowed."""
    narrowing = narrowed(flop, chips, chip, site, dtype, start, end)

    def make(view: View, person: str) -> RunStatement:
        subject = drafts.subject_of(view.run, on)
        return drafts.decision(view, person, "approve", subject, narrowing, reason)

    return perform(given, run, make)


def narrowed(
    flop: str | None,
    chips: int | None,
    chip: list[str] | None,
    site: list[str] | None,
    dtype: list[str] | None,
    start: str | None,
    end: str | None,
) -> Narrowing | None:
    """What the options take away; None if nothing."""
    made = Narrowing(
        budget_tflop=None if flop is None else tflop("--flop", flop),
        chips=chips,
        chip_uuids=sorted(set(chip)) if chip else None,
        sites=sorted(set(site)) if site else None,
        dtypes=sorted(set(dtype)) if dtype else None,
        not_before_us=None if start is None else moment_us("--from", start),
        not_after_us=None if end is None else moment_us("--to", end),
    )
    nothing = all(getattr(made, name) is None for name in Narrowing.__struct_fields__)
    return None if nothing else made


@acting
def deny(given: Acting, reason: ReasonOption, run: RunArgument = None, on: OnOption = None) -> int:
    """Say no to a run, or to a proposal about it (--on); so many as the policy says end it."""

    def make(view: View, person: str) -> Decision:
        return drafts.decision(view, person, "deny", drafts.subject_of(view.run, on), None, reason)

    return perform(given, run, make)


@acting
def veto(given: Acting, reason: ReasonOption, run: RunArgument = None, on: OnOption = None) -> int:
    """End a request, or a proposal about a run (--on), alone and for good."""

    def make(view: View, person: str) -> Decision:
        return drafts.decision(view, person, "veto", drafts.subject_of(view.run, on), None, reason)

    return perform(given, run, make)


@acting
def withdraw(given: Acting, run: RunArgument = None, on: OnOption = None, reason: ReasonMaybe = "") -> int:
    """Take back one's own request, or proposal or suspension (--on); of a run with a permit: it is completed."""

    def make(view: View, person: str) -> RunStatement:
        return drafts.withdraw(view, person, drafts.subject_of(view.run, on), reason)

    return perform(given, run, make)


@acting
def suspend(
    given: Acting,
    reason: ReasonOption,
    run: RunArgument = None,
    stop_at: Annotated[
        str | None, typer.Option("--stop-at", metavar="DATE", help="now, or as 2026-01-31T08:30Z; default: the notice")
    ] = None,
) -> int:
    """Stop a run, as one who has a veto. All hosts stop at one moment; resuming takes the quorum."""
    wanted_us = _stop(stop_at)
    return perform(given, run, lambda view, person: drafts.suspend(view, person, wanted_us, reason))


def _stop(text: str | None) -> int | None:
    if text == "now":
        return time.time_ns() // 1_000
    return None if text is None else moment_us("--stop-at", text)


@acting
def resume(given: Acting, reason: ReasonOption, run: RunArgument = None) -> int:
    """Propose that a suspended run goes on; it takes the quorum."""
    return perform(given, run, lambda view, person: drafts.proposal(view, person, Resume, reason))


@acting
def revoke(given: Acting, reason: ReasonOption, run: RunArgument = None) -> int:
    """Propose to end a run for good; it takes the quorum."""
    return perform(given, run, lambda view, person: drafts.proposal(view, person, Revoke, reason))


@acting
def amend(
    given: Acting,
    reason: ReasonOption,
    run: RunArgument = None,
    flop: FlopOption = None,
    chips: ChipsOption = None,
    chip: ChipOption = None,
    site: SiteOption = None,
    dtype: DtypeOption = None,
    start: FromOption = None,
    end: ToOption = None,
    spec: Annotated[
        Path | None, typer.Option("--spec", metavar="FILE.toml", help="another program: the [spec] of a request's TOML")
    ] = None,
) -> int:
    """Propose another scope or spec; what only narrows is in force at once, by the requester or one with a veto."""
    parts = narrowed(flop, chips, chip, site, dtype, start, end)
    if parts is None and spec is None:
        raise CliError("nothing to amend", exit=Exit.USAGE, hint="--flop, --chips, --site, --to, --spec and others")
    sealed = None if spec is None else drafts.seal(read_spec(spec))

    def make(view: View, person: str) -> RunStatement:
        old = view.run.scope
        fields = {name: getattr(parts, name, None) for name in Narrowing.__struct_fields__}
        kept = {name: getattr(old, name) if value is None else value for name, value in fields.items()}
        made = dict(view.run.spec) if sealed is None else drafts.commitments(sealed)
        return drafts.amend(view, person, Scope(**kept), made, reason)

    return perform(given, run, make, sealed)
