"""``keyturn root``: make one from TOML, show who is in it and who has signed, compare two."""

import time
from pathlib import Path
from typing import Annotated

import typer

from keyturn_cli import authorities, render_authority
from keyturn_cli.authorities import Judged
from keyturn_cli.commands.acting import Acting, BundleOption, RootOption, VerifierMaybe
from keyturn_cli.commands.read import JsonOption
from keyturn_cli.commands.signed import Source, source
from keyturn_cli.differences import differences
from keyturn_cli.errors import CliError, Exit
from keyturn_cli.files import read_capped
from keyturn_cli.output import note, print_json, results
from keyturn_cli.root_toml import compile_root
from keyturn_cli.statement_files import read_statement, unsigned, write_new
from keyturn_cli.toml_forms import read_toml
from keyturn_protocol.authority import Authority
from keyturn_protocol.canonical import parse
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.limits import TRUST_BYTES
from keyturn_protocol.policy import Policy
from keyturn_protocol.root import Root, Services, Standing
from keyturn_protocol.statements import kind_of

TomlArgument = Annotated[Path, typer.Argument(metavar="FILE.toml", help="as docs/start-switch.md shows it")]
OutOption = Annotated[Path, typer.Option("--out", metavar="FILE", help="a file that isn't there yet")]
VersionMaybe = Annotated[
    str | None, typer.Argument(metavar="FILE|VERSION", help="a file, or a version; default: the one in force")
]
OneArgument = Annotated[str, typer.Argument(metavar="ONE", help="a file or a version: the older one")]
OtherMaybe = Annotated[
    str | None, typer.Argument(metavar="OTHER", help="the newer one; without it ONE is, against that in force")
]


def root_new(
    file: TomlArgument,
    out: OutOption,
    services: Annotated[
        Path | None,
        typer.Option("--services", metavar="FILE", help="of keyturn-verifier root services; default: as before"),
    ] = None,
    first: Annotated[bool, typer.Option("--first", help="version 1: there is no root yet")] = False,
    verifier: VerifierMaybe = None,
    bundle: BundleOption = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> int:
    """Make the next root from TOML, for the parties to sign."""
    given = Acting(verifier=verifier, bundle=bundle, root=root, json=json)
    before: Standing | None = None
    if not first:
        with source(given) as where:
            before = where.view(None).standing
    made = compile_root(
        read_toml(file, "FILE.toml"), _services(services, before), before, time.time_ns() // 1_000, str(file)
    )
    envelope = unsigned(made)
    write_new(out, envelope.payload)
    if json:
        print_json({"kind": "root", "sha256": envelope.hash.hex(), "version": made.version})
        return Exit.FINE
    render_authority.root(made, envelope.hash.hex(), made.time_us).print(results())
    note(f"{out}: not signed yet; each who signs it: keyturn sign {out} --key FILE --out SIGNED")
    return Exit.FINE


def _services(path: Path | None, before: Standing | None) -> Services:
    if path is None:
        if before is None:
            raise CliError("--services: missing", exit=Exit.USAGE, hint="keyturn-verifier root services prints them")
        return before.root.services
    try:
        services: Services = parse(read_capped(path, TRUST_BYTES, "--services"), Services)
    except ProtocolError as error:
        raise CliError(f"--services {path}: {error}", exit=Exit.USAGE) from None
    return services


def root_show(
    which: VersionMaybe = None,
    verifier: VerifierMaybe = None,
    bundle: BundleOption = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> int:
    """Show a root: parties, persons, keys, thresholds; who has signed it and who is missing."""
    return print_judged(Acting(verifier=verifier, bundle=bundle, root=root, json=json), which, Root)


def root_diff(
    one: OneArgument,
    other: OtherMaybe = None,
    verifier: VerifierMaybe = None,
    bundle: BundleOption = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> int:
    """Show what is other in one root than in another."""
    return print_differences(Acting(verifier=verifier, bundle=bundle, root=root, json=json), one, other, Root)


def print_judged(given: Acting, which: str | None, kind: type[Root] | type[Policy]) -> int:
    """A root or policy as a screen; exit 1 if too few have signed it to be in force."""
    with source(given) as where:
        found = pick(where, which, kind)
    if given.json:
        print_json(authorities.to_json(found))
    else:
        authorities.screen(found, time.time_ns() // 1_000).print(results())
    return Exit.FINE


def print_differences(given: Acting, one: str, other: str | None, kind: type[Root] | type[Policy]) -> int:
    """Every difference, a line each; of ``one`` to what is in force where there is no other."""
    with source(given) as where:
        first, second = (None, one) if other is None else (one, other)
        found = differences(pick(where, first, kind).said, pick(where, second, kind).said)
    if given.json:
        print_json({"items": [{"where": one.where, "old": one.old, "new": one.new} for one in found]})
        return Exit.FINE
    for difference in found:
        results().print(str(difference), soft_wrap=True)
    if not found:
        note("there is no difference")
    return Exit.FINE


def pick(where: Source, which: str | None, kind: type[Root] | type[Policy]) -> Judged:
    """A root or policy in a file, of a version, or, None, the one in force; its signatures verified.

    :raises CliError: there is none, or something else.
    """
    now_us = time.time_ns() // 1_000
    if which is not None and not which.isdecimal():
        envelope, said = read_statement(Path(which))
        if not isinstance(said, kind):
            raise CliError(f"{which}: not a {kind_of(kind)}", exit=Exit.USAGE)
        first = isinstance(said, Root) and said.version == 1
        before = Authority() if first else where.view(None).opened.authority
        return authorities.judge(envelope, said, before, now_us)
    view = where.view(None)
    for event in reversed(view.events):
        if isinstance(event.statement, kind) and which in (None, str(event.statement.version)):
            before = authorities.before(view.opened.authority, event.index)
            return authorities.judge(event.envelope, event.statement, before, event.time_us)
    raise CliError(f"there is no {kind_of(kind)} {which or 'in force'}", exit=Exit.REJECTED)


def _name(kind: type[Root] | type[Policy]) -> str:
    return str(kind.__struct_config__.tag)
