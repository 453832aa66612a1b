"""``keyturn-verifier init | serve | token | operator | root | export | check``. Results on stdout, talk on stderr.

Only this module exits.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn, cast

from sqlalchemy.exc import DBAPIError

from keyturn_protocol.authority import Refused
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.ids import deployment
from keyturn_protocol.lease_rules import check_organisation
from keyturn_protocol.limits import NOTE_BYTES, TEXT_CHARS
from keyturn_verifier import doctor, keyfiles, logs, operators, people, state, tokens
from keyturn_verifier.cli_db import db_too, settings_of
from keyturn_verifier.cli_json import json_too, print_json
from keyturn_verifier.cli_operator import add_operator
from keyturn_verifier.cli_root import add_root
from keyturn_verifier.clock import wall_clock
from keyturn_verifier.db.engine import away, reading, writing
from keyturn_verifier.differences import Difference
from keyturn_verifier.errors import OutcomeUnknown, UsageError, VerifierError

_INTERRUPTED = 130
"""As shells have it of a program that Ctrl-C ended."""
_UNITS = {"m": 60, "h": 3_600, "d": 86_400}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"{self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The program. Exit 0 fine, 1 refused or failed, 2 usage, 3 nobody knows (no database), 130 interrupted."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """One call of the program; returns its exit status."""
    where: Path | None = None
    try:
        options = _parser().parse_args(arguments)
        where = options.state
        logs.configure(getattr(options, "log_format", "text"))
        status: int | None = options.run(options)
    except (VerifierError, ProtocolError) as error:
        print(f"keyturn: error: {error}", file=sys.stderr)
        if isinstance(error, VerifierError) and error.hint:
            print(f"keyturn: hint: {error.hint}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except DBAPIError as error:
        print(f"keyturn: error: database: {error.orig} (the one of {where})", file=sys.stderr)
        if "malformed" in str(error.orig) or "not a database" in str(error.orig):
            print(f"keyturn: hint: {state.DAMAGED}", file=sys.stderr)
        return 3 if away(error) else 1
    except OutcomeUnknown as error:
        print(f"keyturn: error: the database did not say whether this was stored: {error}", file=sys.stderr)
        print("keyturn: hint: see what is there before doing it again", file=sys.stderr)
        return 3
    except OSError as error:
        print(f"keyturn: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("keyturn: error: interrupted", file=sys.stderr)
        return _INTERRUPTED
    return status or 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="keyturn-verifier", description="Keyturn's verifier.", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    init = _command(commands, "init", "make a new verifier: keys, database, trust.json", _init)
    init.add_argument("--deployment", required=True, metavar="NAME", help="such as keyturn.example.org")
    init.add_argument(
        "--db",
        metavar="URL",
        help="sqlite:////absolute/path.db or postgresql://… (default: a file in the state directory)",
    )

    serve = _stored(commands, "serve", "serve agents, readers and the log", _serve)
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8642, help="0 takes a free one")
    serve.add_argument("--port-file", type=Path, metavar="FILE", help="write the port here when ready")
    serve.add_argument("--tls-cert", type=Path, metavar="FILE", help="serve https: certificate and chain, PEM")
    serve.add_argument("--tls-key", type=Path, metavar="FILE", help="the certificate's key, PEM")
    serve.add_argument("--log-format", choices=logs.FORMATS, default="text", help="how to log on stderr")
    serve.add_argument("--workers", type=int, default=1, help=argparse.SUPPRESS)

    token = commands.add_parser("token", help="join tokens for agents, bearer tokens for readers", allow_abbrev=False)
    actions = token.add_subparsers(required=True, metavar="ACTION")
    create = _stored(actions, "create", "print a new token, once", _token_create)
    create.add_argument("--organisation", help="join token: who runs the hosts")
    create.add_argument("--site", help="join token: where they are")
    create.add_argument("--hosts", type=int, help="join token: for how many (default 1)")
    create.add_argument("--role", choices=["operator", "auditor", "admin", "approver"], help="reader's token: for whom")
    create.add_argument("--expires", default="24h", metavar="TIME", help="30m, 24h, 90d (default 24h)")
    json_too(_stored(actions, "list", "list tokens, without their secrets", _token_list))
    _stored(actions, "revoke", "make a token worthless", _token_revoke).add_argument("id", help="as listed")

    add_operator(commands, _command)  # type: ignore[arg-type]
    add_root(commands, _command)  # type: ignore[arg-type]
    json_too(_stored(commands, "doctor", "say what could go wrong here; changes nothing", _doctor))

    export = _stored(commands, "export", "write an evidence bundle", _export)
    export.add_argument("--out", required=True, type=Path, metavar="DIR", help="a folder that isn't there yet")
    export.add_argument("--case", metavar="TEXT", help="a note for the manifest, such as a case id")

    check = _stored(commands, "check", "hold the database against the signed bytes in it", _check)
    check.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="a checkpoint of the verifier's log that was kept elsewhere"
    )
    json_too(check)
    return parser


def _command(commands: argparse._SubParsersAction, name: str, text: str, run: object) -> argparse.ArgumentParser:  # type: ignore[type-arg]
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    command.add_argument("--state", required=True, type=Path, metavar="DIR", help="the state directory")
    command.set_defaults(run=run)
    return command


def _stored(commands: argparse._SubParsersAction, name: str, text: str, run: object) -> argparse.ArgumentParser:  # type: ignore[type-arg]
    """A command that opens the database."""
    return db_too(_command(commands, name, text, run))


def _init(options: argparse.Namespace) -> None:
    try:
        name = deployment(options.deployment)
    except ProtocolError as error:
        raise UsageError(f"--deployment: {error}") from None
    print(state.create(options.state, name, options.db, wall_clock))


def _serve(options: argparse.Namespace) -> None:
    if options.workers != 1:
        raise UsageError(
            f"--workers {options.workers}: SQLite has exactly one serving process, which alone knows the newest heads",
            hint="one process uses one core well; on PostgreSQL start as many as you like, each is a replica",
        )
    if not 0 <= options.port <= 65_535:
        raise UsageError(f"--port: must be 0 … 65535 (got {options.port})")
    if (options.tls_cert is None) != (options.tls_key is None):
        raise UsageError("--tls-cert and --tls-key go together")
    from keyturn_verifier.server import Tls, serve  # the web framework is only loaded to serve

    tls = None if options.tls_cert is None else Tls(options.tls_cert, options.tls_key)
    serve(settings_of(options), options.host, options.port, options.port_file, wall_clock, tls)


def _token_create(options: argparse.Namespace) -> None:
    now_us = wall_clock()
    expires_us = now_us + _duration_us(options.expires)
    joining = (options.organisation, options.site, options.hosts) != (None, None, None)
    if joining == (options.role is not None):
        raise UsageError("either --organisation and --site (and --hosts), or --role")
    hosts = 1 if options.hosts is None else options.hosts
    if not 1 <= hosts <= 1_000_000:
        raise UsageError(f"--hosts: must be 1 … 1000000 (got {hosts})")
    for flag in ("organisation", "site") if joining else ():
        value = getattr(options, flag)
        if not value or len(value) > TEXT_CHARS or not value.isprintable():
            raise UsageError(f"--{flag}: must be 1 to {TEXT_CHARS} printable characters")
    with state.opened(settings_of(options)) as engine, writing(engine) as connection:
        standing = people.newest_root(connection)
        if joining:
            token = tokens.create_join(connection, options.organisation, options.site, hosts, now_us, expires_us)
        else:
            token = tokens.create_reader(connection, cast(tokens.Role, options.role), now_us, expires_us)
    print(token)
    if joining and standing is not None:
        try:
            check_organisation(standing, options.organisation)
        except Refused as error:
            # Hosts are metered all the same: nobody has to be a party for that.
            print(f"keyturn: hint: hosts that join with this get no allowance: {error}", file=sys.stderr)


def _token_list(options: argparse.Namespace) -> None:
    with state.opened(settings_of(options)) as engine, reading(engine) as connection:
        rows = tokens.listed(connection)
    if options.json:
        return print_json(rows)
    for row in rows:
        ends = f"revoked {_time(row.revoked_us)}" if row.revoked_us is not None else f"expires {_time(row.expires_us)}"
        print(f"{row.id:<12} {row.what:<40} {row.uses:<14} {ends}")


def _token_revoke(options: argparse.Namespace) -> None:
    with state.opened(settings_of(options)) as engine, writing(engine) as connection:
        tokens.revoke(connection, options.id, wall_clock())


def _doctor(options: argparse.Namespace) -> None:
    lines = []
    for line in doctor.examine(settings_of(options), wall_clock):
        lines.append(line)
        if not options.json:
            print(f"{line.level:<5} {line.about}: {line.text}")
    if options.json:
        print_json([line._asdict() for line in lines])
    if any(line.level == "fail" for line in lines):
        raise VerifierError("not all is well")


def _export(options: argparse.Namespace) -> None:
    from keyturn_verifier.export import export

    settings = settings_of(options)
    with state.opened(settings) as engine:
        print(export(settings, engine, options.out, options.case, wall_clock))


def _check(options: argparse.Namespace) -> int:
    from keyturn_verifier.check import check

    settings = settings_of(options)
    given = None
    if options.checkpoint is not None:
        try:
            given = options.checkpoint.read_bytes()[: NOTE_BYTES + 1]
        except OSError as error:
            raise UsageError(f"--checkpoint: {error}") from None
    trust = keyfiles.load(settings.state, settings.deployment).trust(settings.deployment)
    found: list[Difference] = []
    with state.opened(settings) as engine, reading(engine) as connection:
        for difference in check(connection, trust, given, operators.load(settings.state)):
            found.append(difference)
            if not options.json:
                print(difference, flush=True)
    if options.json:
        # Names of tables are a kind of str of the database library's own.
        print_json([{"table": str(one.table), "where": str(one.where), "what": str(one.what)} for one in found])
    print(f"{len(found)} differences" if found else "everything stored follows from what was signed", file=sys.stderr)
    return 1 if found else 0


def _duration_us(text: str) -> int:
    match = re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", text)
    if match is None:
        raise UsageError(f"--expires: must be a number with m, h or d, such as 24h (got {text!r})")
    return int(match[1]) * _UNITS[match[2]] * 1_000_000


def _time(time_us: int) -> str:
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
