"""``keyturn nodes | workloads | usage | findings``: what a verifier has, read with a token."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from keyturn_cli import render, render_api, settings
from keyturn_cli.client import Client
from keyturn_cli.errors import CliError, Exit
from keyturn_cli.files import read_capped
from keyturn_cli.layout import Rows
from keyturn_cli.output import note, print_json, results
from keyturn_protocol import api, api_read
from keyturn_protocol.usage import UsageRow

T = TypeVar("T")

VerifierOption = Annotated[
    str,
    typer.Option("--verifier", metavar="URL", envvar="KEYTURN_VERIFIER", help="the verifier's address"),
]
TokenOption = Annotated[
    str | None,
    typer.Option("--token", metavar="TOKEN", envvar="KEYTURN_TOKEN", help="others on this machine see an argument"),
]
TokenFileOption = Annotated[Path | None, typer.Option("--token-file", metavar="FILE", help="a file with the token")]
JsonOption = Annotated[bool, typer.Option("--json", help="canonical JSON on stdout")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="the first N only; default all")]


def nodes(
    verifier: VerifierOption,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    limit: LimitOption = None,
    json: JsonOption = False,
) -> int:
    """List the logs of all nodes: sizes, last receipts, states."""
    return _show(api.NODES, api.NodeLog, render.nodes, "nodes", verifier, token, token_file, limit, json)


def workloads(
    verifier: VerifierOption,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    limit: LimitOption = None,
    json: JsonOption = False,
) -> int:
    """Show what each workload used, as intervals, and what no workload can be given."""
    code = _show(
        api.WORKLOADS, api.WorkloadTotal, render.workloads, "workloads", verifier, token, token_file, limit, json
    )
    if not json:
        note("as the verifier computes it; an audit of its evidence doesn't need to believe it")
    return code


def usage(
    verifier: VerifierOption,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    limit: LimitOption = None,
    json: JsonOption = False,
    by: Annotated[str | None, typer.Option("--by", help="add up by workload, organisation, site, node or chip")] = None,
    bucket: Annotated[str, typer.Option("--bucket", help="with --by: hour, day or month")] = "month",
    start: Annotated[str | None, typer.Option("--from", metavar="DATE", help="2026-01-31 or 2026-01-31T08Z")] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="DATE", help="as --from; not included")] = None,
) -> int:
    """Show the raw rows, one for each log, chip, hour and workload; with --by, sums over spans of time."""
    query = {name: str(hour(name, text)) for name, text in (("from", start), ("to", end)) if text is not None}
    common = (verifier, token, token_file, limit, json)
    if by is None:
        return _show(api.USAGE, UsageRow, render.usage, "usage rows", *common, query)
    query |= {"by": by, "bucket": bucket}
    return _show(api_read.BUCKETS, api_read.UsageBucket, render_api.buckets, "usage", *common, query)


def hour(option: str, text: str) -> int:
    """A day or an hour in UTC, as POSIX seconds."""
    for form in ("%Y-%m-%d", "%Y-%m-%dT%HZ"):
        try:
            return int(datetime.strptime(text, form).replace(tzinfo=UTC).timestamp())
        except ValueError:
            continue
    expected = "a day or an hour in UTC, such as 2026-01-31 or 2026-01-31T08Z"
    raise CliError(f"--{option}: must be {expected} (got {text})", exit=Exit.USAGE)


def findings(
    verifier: VerifierOption,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    limit: LimitOption = None,
    json: JsonOption = False,
) -> int:
    """Show what someone should look at, the most severe first."""
    return _show(api.FINDINGS, api.FindingItem, render.findings, "findings", verifier, token, token_file, limit, json)


def _show(
    path: str,
    kind: type[T],
    table: Callable[[list[T]], Rows],
    what: str,
    verifier: str,
    token: str | None,
    token_file: Path | None,
    limit: int | None,
    json: bool,
    query: Mapping[str, str] | None = None,
) -> int:
    with Client(verifier, read_token(token, token_file)) as client:
        items = list(client.items(path, kind, limit, **(query or {})))
    if json:
        print_json({"items": items})
    elif items:
        results().print(table(items))
    else:
        note(f"there are no {what}")
    return Exit.FINE


def read_token(token: str | None, token_file: Path | None) -> str | None:
    """The token to show, from an option, the environment or the settings; None if there is none."""
    if token_file is None:
        if token is not None or (token_file := settings.current.get().token_file) is None:
            return token
    elif token is not None:
        raise CliError("--token-file: a token is given already", exit=Exit.USAGE, hint="--token or KEYTURN_TOKEN")
    data = read_capped(token_file, 4_096, "--token-file")
    try:
        return data.decode("ascii").strip()
    except UnicodeDecodeError:
        raise CliError(f"--token-file {token_file}: not a token", exit=Exit.USAGE) from None
