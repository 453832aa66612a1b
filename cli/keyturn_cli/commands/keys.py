"""``keyturn key | whoami``: keys that sign statements, and who they speak for."""

from pathlib import Path
from typing import Annotated

import typer

from keyturn_cli import switch_text
from keyturn_cli.commands.acting import Acting, BundleOption, KeyMaybe, RootOption, VerifierMaybe
from keyturn_cli.commands.read import JsonOption
from keyturn_cli.commands.signed import source
from keyturn_cli.consequence import refused
from keyturn_cli.errors import CliError, Exit
from keyturn_cli.lines import Lines
from keyturn_cli.output import named, print_json, results
from keyturn_cli.permits import View
from keyturn_cli.signing import make_key, read_key
from keyturn_protocol.authority import Why, refuse
from keyturn_protocol.public_keys import PublicKey
from keyturn_protocol.root import Class


def key_new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a file that isn't there yet")], json: JsonOption = False
) -> int:
    """Make an Ed25519 key in a file, and print its public text."""
    return _print_key(make_key(file), json)


def key_show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a key, or an SSH .pub file")], json: JsonOption = False
) -> int:
    """Print the public text of a key, as an operator's or a root's list takes it."""
    return _print_key(read_key(file).public, json)


def _print_key(key: PublicKey, json: bool) -> int:
    if json:
        print_json({"id": key.id, "key": str(key)})
    else:
        typer.echo(str(key))
    return Exit.FINE


def whoami(
    key: KeyMaybe = None,
    verifier: VerifierMaybe = None,
    bundle: BundleOption = None,
    root: RootOption = None,
    json: JsonOption = False,
) -> int:
    """Say who a key speaks for under the root in force, and what that person may do."""
    if key is None:
        raise CliError("--key: missing", exit=Exit.USAGE, hint="or key = … in the settings")
    public = read_key(key).public
    with source(Acting(verifier=verifier, bundle=bundle, root=root, json=json)) as where:
        view = where.view(None)
    found = view.standing.keys.get(public.id)
    if found is None:
        why = f"nobody's key in root version {view.standing.root.version} of {view.deployment}"
        raise refused(refuse(Why.NOT_A_PERSON, why, got=str(public)))
    refusal = found.refusal(view.at_us, view.at_us)
    rights = rights_of(view, found.party.class_)
    if json:
        print_json(
            {
                "person": found.person.id,
                "party": found.party.id,
                "class": found.party.class_,
                "organisation": found.party.organisation,
                "key": {"id": public.id, "refused": refusal},
                "root": {"version": view.standing.root.version, "sha256": view.standing.hash},
                "may": rights,
            }
        )
        return Exit.FINE if refusal is None else Exit.REJECTED
    lines = Lines()
    lines.add("you are", switch_text.person(found.person.id, view.standing), f"of {named(found.party.name)}")
    lines.add("key", str(public), refusal or "valid now", style="" if refusal is None else "red")
    lines.add("root", f"version {view.standing.root.version} of {view.deployment}, sha256:{view.standing.hash}")
    lines.add("you may", *(rights or ["nothing under the policy in force"]))
    lines.print(results())
    return Exit.FINE if refusal is None else Exit.REJECTED


def rights_of(view: View, kind: Class) -> list[str]:
    """What a person of a class may do under the policy in force."""
    if view.policy is None:
        return ["sign roots and policies: there is no policy yet"]
    policy = view.policy[1]
    rights = ["ask for runs"] if kind in policy.requesters else []
    for tier in policy.tiers:
        veto = "; veto and suspend alone" if kind in tier.veto else ""
        rights.append(f"tier {tier.name}: approve or deny{veto}")
    return rights
