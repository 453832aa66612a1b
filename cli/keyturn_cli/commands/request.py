"""``keyturn request``: ask for a run, from TOML or options; what hides its spec stays in a file beside it."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from keyturn_cli import consequence, drafts, render_signing, request_toml
from keyturn_cli.commands.acting import Acting, acting
from keyturn_cli.commands.signed import (
    Source,
    check_way,
    confirm,
    deliver,
    key_of,
    show_screen,
    signed,
    source,
    whose,
    write_openings,
)
from keyturn_cli.commands.verbs import (
    ChipOption,
    ChipsOption,
    DtypeOption,
    FlopOption,
    FromOption,
    SiteOption,
    ToOption,
)
from keyturn_cli.errors import CliError, Exit
from keyturn_cli.request_toml import Wanted
from keyturn_cli.signing import read_key
from keyturn_cli.statement_files import unsigned


@acting
def request(
    given: Acting,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE.toml", help="as docs/start-switch.md shows it; options go over it")
    ] = None,
    label: Annotated[str | None, typer.Option("--label", help="what people call it")] = None,
    purpose: Annotated[str | None, typer.Option("--purpose", help="for those who decide")] = None,
    lineage: Annotated[str | None, typer.Option("--lineage", help="of models that build on each other")] = None,
    flop: FlopOption = None,
    chips: ChipsOption = None,
    chip: ChipOption = None,
    site: SiteOption = None,
    dtype: DtypeOption = None,
    start: FromOption = None,
    end: ToOption = None,
    image: Annotated[str | None, typer.Option("--image", metavar="sha256:…", help="the image that runs")] = None,
    config: Annotated[str | None, typer.Option("--config", metavar="FILE", help="a file, or its sha256:…")] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="FILE", help="a manifest, or its sha256:…")] = None,
    command: Annotated[str | None, typer.Option("--command", help="what is started, as a shell would split it")] = None,
) -> int:
    """Ask for a run. --openings names the file that its salts are written to; default: beside the statement."""
    wanted = request_toml.read(
        file,
        {
            "label": label, "purpose": purpose, "lineage": lineage, "flop": flop, "chips": chips,
            "chip_uuids": chip or None, "sites": site or None, "dtypes": dtype or None, "from": start, "to": end,
            "spec": {"image": image, "config": config, "data": data, "argv": _argv(command)},
        },
    )  # fmt: skip
    check_way(given)
    with source(given) as where:
        return _ask(where, wanted)


def _argv(command: str | None) -> list[str] | None:
    try:
        return None if command is None else shlex.split(command)
    except ValueError as error:
        raise CliError(f"--command: {error}".lower(), exit=Exit.USAGE) from None


def _ask(where: Source, wanted: Wanted) -> int:
    given, view = where.given, where.view(None)
    signer = None if given.unsigned or given.key is None else read_key(given.key)
    person = whose(given.person, view.standing, signer)
    openings = drafts.seal(wanted.values)
    said = drafts.request(
        view,
        person,
        label=wanted.label,
        purpose=wanted.purpose,
        lineage=wanted.lineage,
        scope=wanted.scope,
        ancestors=wanted.ancestors,
        openings=openings,
    )
    envelope = unsigned(said)
    digest = envelope.hash.hex()
    found = consequence.of(view, envelope, said, key_of(view, person, signer))
    public = None if signer is None else signer.public
    show_screen(render_signing.of_run(view, said, digest, found, openings, public), given.json)
    if signer is not None:
        confirm(digest, given.expect, "its hash")
        envelope = signed(signer, envelope)
    kept = write_openings(given, digest, openings)
    done = deliver(where, envelope)
    if given.out is None and openings.parts:
        where.give_openings(digest, kept)
    return done
