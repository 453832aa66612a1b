"""``keyturn``: the program. Only this module turns errors into messages and exit codes."""

import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from keyturn_cli import __version__, settings
from keyturn_cli.client import authorities
from keyturn_cli.commands import (
    audit,
    demo,
    explain,
    keys,
    lists,
    policy,
    read,
    remote,
    request,
    root,
    runs,
    served,
    sign,
    verbs,
)
from keyturn_cli.errors import CliError, Exit
from keyturn_cli.groups import group
from keyturn_cli.output import complain, talk
from keyturn_protocol.errors import ProtocolError

app = typer.Typer(
    name="keyturn",
    help="Who ran how much compute, on which chips, in a form that a stranger can check.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("nodes")(read.nodes)
app.command("workloads")(read.workloads)
app.command("usage")(read.usage)
app.command("node")(remote.node)
app.command("log")(remote.log)
app.command("segment")(remote.segment)
app.command("proof")(remote.proof)
app.command("bundle")(lists.bundle)
app.command("checkpoint")(served.checkpoint)
app.command("leases")(served.leases)
app.command("lease")(served.lease)
app.command("allowance")(lists.allowance)
app.add_typer(
    group(
        "statement",
        sign.show,
        "What people signed; list, get, send.",
        list=sign.listed,
        get=served.statement,
        send=sign.send,
    )
)
app.add_typer(group("key", keys.key_show, "Keys that sign statements; new.", new=keys.key_new))
app.command("sign")(sign.sign)
app.command("replace")(sign.replace)
app.add_typer(
    group(
        "findings",
        read.findings,
        "What someone should look at; groups, close.",
        close=remote.close,
        groups=remote.finding_groups,
    )
)
app.add_typer(group("maintenance", remote.maintenance, "Windows of work.", add=remote.announce, cancel=remote.cancel))
app.add_typer(group("audit", audit.audit, "Recompute a bundle offline; trace SUBJECT BUNDLE.", trace=audit.trace))
app.add_typer(
    group(
        "root",
        root.root_show,
        "Parties and their keys; new, sign, diff.",
        new=root.root_new,
        sign=sign.sign,
        diff=root.root_diff,
    )
)
app.add_typer(
    group(
        "policy",
        policy.policy_show,
        "What runs take; new, sign, check, simulate, diff.",
        new=policy.policy_new,
        sign=sign.sign,
        check=policy.policy_check,
        simulate=policy.policy_simulate,
        diff=policy.policy_diff,
    )
)
app.command("request")(request.request)
app.command("list")(lists.list_)
app.command("inbox")(lists.inbox)
app.command("show")(runs.show)
app.command("diff")(runs.diff)
app.command("verify-bundle")(runs.verify_bundle)
for _verb in (
    verbs.approve,
    verbs.deny,
    verbs.veto,
    verbs.withdraw,
    verbs.suspend,
    verbs.resume,
    verbs.revoke,
    verbs.amend,
):
    app.command(_verb.__name__)(_verb)
app.command("whoami")(keys.whoami)
app.command("explain")(explain.explain)
app.command("demo")(demo.demo)

_Usage: Any = typer.BadParameter.__mro__[2]
"""What all errors of the command line have in common, wherever this version of typer keeps it."""

INTERRUPTED = 130
"""What typer makes of Ctrl-C, as shells do."""


def _version(show: bool) -> None:
    if show:
        typer.echo(f"keyturn {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[  # noqa: ARG001 -- its callback has seen it
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version and exit")
    ] = False,
    ca: Annotated[
        Path | None,
        typer.Option("--ca", metavar="FILE", envvar="KEYTURN_CA", help="certificates of the authorities to trust"),
    ] = None,
) -> None:
    """Who ran how much compute, on which chips, in a form that a stranger can check."""
    if ca is not None and not ca.is_file():
        raise CliError(f"--ca {ca}: no such file", exit=Exit.USAGE)
    authorities.set(ca)


@cache
def _command() -> Any:
    """What typer makes of all functions and their annotations; to build it takes longer than most verbs."""
    return typer.main.get_command(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """One call of the program; returns its exit code: 0 fine, 1 rejected, 2 usage, 3 could not decide."""
    try:
        found = settings.load(os.environ)
        settings.current.set(found)
        command = _command()
        given = settings.defaults(command, found)
        code = int(command(arguments, prog_name="keyturn", standalone_mode=False, default_map=given) or Exit.FINE)
    except CliError as error:
        complain(str(error), error.hint)
        return error.exit
    except ProtocolError as error:
        complain(str(error))
        return Exit.REJECTED
    except _Usage as error:
        message = error.format_message().replace("Value error, ", "")  # typer's converters begin with it
        if message.startswith("Usage:"):  # there was no command: this is the help
            talk().print(message)
        elif message:  # empty where typer has shown the help itself
            where = getattr(error, "ctx", None)
            complain(
                message[0].lower() + message[1:].rstrip("."), f"{where.command_path if where else 'keyturn'} --help"
            )
        return Exit.USAGE
    except BrokenPipeError:
        # Whoever read the results has had enough; the interpreter must not complain about the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FINE
    if code == INTERRUPTED:
        complain("interrupted")
    return code
