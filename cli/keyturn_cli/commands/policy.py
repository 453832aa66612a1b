"""``keyturn policy``: compile one from TOML, check what it comes to, try a request on it, show and compare."""

import time
from pathlib import Path
from typing import Annotated

import typer

from keyturn_cli import render_authority, render_policy
from keyturn_cli.commands.acting import Acting, BundleOption, RootOption, VerifierMaybe
from keyturn_cli.commands.read import JsonOption
from keyturn_cli.commands.root import (
    OneArgument,
    OtherMaybe,
    OutOption,
    TomlArgument,
    VersionMaybe,
    pick,
    print_differences,
    print_judged,
)
from keyturn_cli.commands.signed import Source, source
from keyturn_cli.errors import CliError, Exit
from keyturn_cli.files import read_capped
from keyturn_cli.output import note, print_json, results
from keyturn_cli.statement_files import read_statement, statement_in, unsigned, write_new
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.limits import ENVELOPE_BYTES, TOML_BYTES
from keyturn_protocol.policy import Policy
from keyturn_protocol.policy_toml import compile_policy
from keyturn_protocol.root import Root, Standing, stand
from keyturn_protocol.runs import Request
from keyturn_protocol.simulate import check, simulate

UnderOption = Annotated[
    Path | None, typer.Option("--under", metavar="FILE", help="a root in a file, signed or not; default: in force")
]
PolicyMaybe = Annotated[
    str | None, typer.Argument(metavar="FILE|VERSION", help="TOML, a statement or a version; default: in force")
]


def policy_new(
    file: TomlArgument,
    out: OutOption,
    verifier: VerifierMaybe = None,
    bundle: BundleOption = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> int:
    """Compile the next policy from TOML, for the parties to sign; one that can't both approve and refuse isn't."""
    with source(Acting(verifier=verifier, bundle=bundle, root=root, json=json)) as where:
        view = where.view(None)
    made = _compiled(file, read_capped(file, TOML_BYTES, "FILE.toml"), view.standing, view.policy)
    report = check(made, view.standing, view.at_us)
    if report.faults:
        raise CliError("; ".join(report.faults), exit=Exit.REJECTED, hint=f"keyturn policy check {file}")
    envelope = unsigned(made)
    write_new(out, envelope.payload)
    if json:
        print_json({"kind": "policy", "sha256": envelope.hash.hex(), "version": made.version})
        return Exit.FINE
    render_authority.policy(made, envelope.hash.hex()).print(results())
    note(f"{out}: not signed yet; each who signs it: keyturn sign {out} --key FILE --out SIGNED")
    return Exit.FINE


def policy_show(
    which: VersionMaybe = None,
    verifier: VerifierMaybe = None,
    bundle: BundleOption = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> int:
    """Show a policy: tiers, allowance, stop; who has signed it and who is missing."""
    return print_judged(Acting(verifier=verifier, bundle=bundle, root=root, json=json), which, Policy)


def policy_diff(
    one: OneArgument,
    other: OtherMaybe = None,
    verifier: VerifierMaybe = None,
    bundle: BundleOption = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> int:
    """Show what is other in one policy than in another."""
    return print_differences(Acting(verifier=verifier, bundle=bundle, root=root, json=json), one, other, Policy)


def policy_check(
    which: PolicyMaybe = None,
    under: UnderOption = None,
    verifier: VerifierMaybe = None,
    bundle: BundleOption = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> int:
    """Say whether a policy can approve and refuse, what outage a run outlives, and how long a stop takes.

    Exit 1: it is refused, with every reason.
    """
    with source(Acting(verifier=verifier, bundle=bundle, root=root, json=json)) as where:
        standing = _standing(where, under, which)
        policy = _policy(where, which, standing)
    report = check(policy, standing, time.time_ns() // 1_000)
    if json:
        print_json(render_policy.report_json(report))
    else:
        render_policy.report(policy, report).print(results())
    return Exit.REJECTED if report.faults else Exit.FINE


def policy_simulate(
    request: Annotated[Path, typer.Argument(metavar="REQUEST", help="a request in a file, signed or not")],
    policy: Annotated[
        str | None, typer.Option("--policy", metavar="FILE|VERSION", help="TOML or a statement; default: in force")
    ] = None,
    approved: Annotated[
        list[str] | None, typer.Option("--approved", metavar="PERSON", help="as if they had; more than once")
    ] = None,
    under: UnderOption = None,
    verifier: VerifierMaybe = None,
    bundle: BundleOption = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> int:
    """Say which tier a request is in and why, who could approve it, and what would be missing.

    Exit 1: it would be refused, or all approvers together don't reach.
    """
    envelope, said = read_statement(request, "REQUEST")
    if not isinstance(said, Request):
        raise CliError(f"{request}: not a request", exit=Exit.USAGE)
    with source(Acting(verifier=verifier, bundle=bundle, root=root, json=json)) as where:
        standing = _standing(where, under, policy)
        found = simulate(_policy(where, policy, standing), standing, said, time.time_ns() // 1_000, approved or ())
    if json:
        print_json({"request": envelope.hash.hex(), **render_policy.simulation_json(found)})
    else:
        render_policy.simulation(said, envelope.hash.hex(), found, standing).print(results())
    return Exit.REJECTED if found.faults or not found.possible.met else Exit.FINE


def _standing(where: Source, under: Path | None, which: str | None) -> Standing:
    """The root to hold a policy against: in a file, or in force.

    :param which: of the policies; one in a file needs nothing more than a root.
    """
    if under is None:
        if where.client is None and where.given.bundle is None and which is not None and not which.isdecimal():
            hint = "or --under ROOT, a root in a file, or --bundle FILE, offline"
            raise CliError("--verifier: missing", exit=Exit.USAGE, hint=hint)
        return where.view(None).standing
    envelope, said = read_statement(under, "--under")
    if not isinstance(said, Root):
        raise CliError(f"--under {under}: not a root", exit=Exit.USAGE)
    return stand(said, envelope.hash.hex())


def _policy(where: Source, which: str | None, standing: Standing) -> Policy:
    """TOML, a statement in a file, a version, or the one in force."""
    if which is not None and not which.isdecimal():
        path = Path(which)
        data = read_capped(path, max(TOML_BYTES, ENVELOPE_BYTES), "FILE|VERSION")
        # Canonical JSON begins with its brace, which no TOML does; names say nothing, and a pipe has none.
        if not data.startswith(b"{"):
            return _compiled(path, data, standing, None)
        said = statement_in(data, path)[1]
    else:
        said = pick(where, which, Policy).said
    if not isinstance(said, Policy):
        raise CliError(f"{which}: not a policy", exit=Exit.USAGE)
    return said


def _compiled(path: Path, data: bytes, standing: Standing, before: tuple[str, Policy] | None) -> Policy:
    """What the TOML in a file says; ``path``: for messages."""
    try:
        return compile_policy(data.decode(), standing, before, time.time_ns() // 1_000)
    except UnicodeDecodeError:
        raise CliError(f"{path}: not TOML: it isn't UTF-8", exit=Exit.USAGE) from None
    except ProtocolError as error:
        raise CliError(f"{path}: {error}", exit=Exit.USAGE) from None
