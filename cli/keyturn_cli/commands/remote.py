"""What a verifier has, in detail: one node, one log, segments, proofs, finding lines, maintenance, a bundle."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from keyturn_cli import render, render_api
from keyturn_cli.archive import take
from keyturn_cli.client import Client
from keyturn_cli.commands.read import (
    JsonOption,
    LimitOption,
    TokenFileOption,
    TokenOption,
    VerifierOption,
    hour,
    read_token,
)
from keyturn_cli.commands.typed import ReasonOption, text
from keyturn_cli.errors import CliError, Exit
from keyturn_cli.moments import node_of
from keyturn_cli.output import clean, note, print_json, results
from keyturn_protocol import api, api_read
from keyturn_protocol.findings import FindingCode
from keyturn_protocol.merkle import verify_consistency, verify_inclusion

NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="a node's id, 32 hex digits")]
LogArgument = Annotated[int, typer.Argument(metavar="LOG", min=1, help="the log's number, from 1")]
FromOption = Annotated[str, typer.Option("--from", metavar="DATE", help="2026-01-31 or 2026-01-31T08Z")]
ToOption = Annotated[str, typer.Option("--to", metavar="DATE", help="as --from; not included")]


def node(
    verifier: VerifierOption,
    node: NodeArgument,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    json: JsonOption = False,
) -> int:
    """Show every log of one node, and which nodes its host was before and is now."""
    with Client(verifier, read_token(token, token_file)) as client:
        logs = list(client.items(f"{api.NODES}/{_hex(node)}", api.NodeLog))
        links = list(client.items(api_read.REPLACEMENTS, api_read.ReplacementItem, node=node))
    if json:
        print_json({"items": logs, "replacements": links})
        return Exit.FINE
    results().print(render.nodes(logs))
    for link in links:
        other = f"replaced by {link.new}" if link.old == node else f"replaces {link.old}"
        results().print(f"{other}: {clean(link.reason)}  (statement {link.sha256})", soft_wrap=True)
    return Exit.FINE


def log(
    verifier: VerifierOption,
    node: NodeArgument,
    log: LogArgument = 1,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    limit: LimitOption = None,
    json: JsonOption = False,
) -> int:
    """List the segments of one log."""
    with Client(verifier, read_token(token, token_file)) as client:
        path = f"{api_read.LOGS}/{_hex(node)}/{log}/segments"
        return _list(list(client.items(path, api_read.SegmentItem, limit)), render_api.segments, json)


def segment(
    verifier: VerifierOption,
    node: NodeArgument,
    start: Annotated[int, typer.Argument(metavar="ENTRY", min=0, help="the segment's first entry")],
    log: Annotated[int, typer.Option("--log", min=1, help="the log's number")] = 1,
    receipt: Annotated[bool, typer.Option("--receipt", help="the verifier's receipt instead")] = False,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
) -> int:
    """Print a segment's bytes, or its receipt, as received."""
    with Client(verifier, read_token(token, token_file)) as client:
        rest = "/receipt" if receipt else ""
        data = client.content(f"{api_read.LOGS}/{_hex(node)}/{log}/segments/{start}{rest}")
    typer.echo(data, nl=False)
    return Exit.FINE


def proof(
    verifier: VerifierOption,
    size: Annotated[int, typer.Option("--size", min=1, help="of the tree")],
    index: Annotated[int | None, typer.Option("--index", min=0, help="prove that this entry is in the tree")] = None,
    old_size: Annotated[int | None, typer.Option("--old-size", min=1, help="prove that it begins with it")] = None,
    node: Annotated[str | None, typer.Option("--node", help="of a node's log; default: the verifier's own")] = None,
    log: Annotated[int, typer.Option("--log", min=1, help="the log's number")] = 1,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    json: JsonOption = False,
) -> int:
    """Get a proof and check it here. Hold its root against a signed head: the proof alone trusts nobody's."""
    base = api_read.VERIFIER_PROOFS if node is None else f"{api_read.LOGS}/{_hex(node)}/{log}/proof"
    if (index is None) == (old_size is None):
        raise CliError("either --index or --old-size", exit=Exit.USAGE)
    with Client(verifier, read_token(token, token_file)) as client:
        if index is not None:
            one = client.one(f"{base}/inclusion", api_read.InclusionProof, index=str(index), size=str(size))
            hashes = [bytes.fromhex(value) for value in one.hashes]
            verify_inclusion(index, size, bytes.fromhex(one.leaf_hash), hashes, bytes.fromhex(one.root))
            what, shown = f"entry {index}, hash {one.leaf_hash}, is in", one
        else:
            query = {"old_size": str(old_size), "size": str(size)}
            two = client.one(f"{base}/consistency", api_read.ConsistencyProof, **query)
            roots = (bytes.fromhex(two.old_root), bytes.fromhex(two.root))
            verify_consistency(old_size or 0, size, *roots, [bytes.fromhex(value) for value in two.hashes])
            what, shown = f"the tree of {old_size}, root {two.old_root}, begins", two  # type: ignore[assignment]
    if json:
        print_json(shown)
    else:
        results().print(f"{what} the tree of {size}, root {shown.root}, of {shown.origin}", soft_wrap=True)
    return Exit.FINE


def finding_groups(
    verifier: VerifierOption,
    state: Annotated[str | None, typer.Option("--state", help="open, closed or maintenance")] = None,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    limit: LimitOption = None,
    json: JsonOption = False,
) -> int:
    """Findings as lines to work off: one for each node and kind, or maintenance window."""
    query = {} if state is None else {"state": state}
    with Client(verifier, read_token(token, token_file)) as client:
        items = list(client.items(api_read.GROUPS, api_read.FindingGroup, limit, **query))
    return _list(items, render_api.groups, json)


def close(
    verifier: VerifierOption,
    node: NodeArgument,
    code: Annotated[FindingCode, typer.Argument(metavar="FINDING", help="its kind, such as gap")],
    reason: ReasonOption,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    json: JsonOption = False,
) -> int:
    """Close what is found of one kind on one node so far. Lists and audits still show it."""
    request = api_read.CloseRequest(node_id=_hex(node), code=code, reason=reason)
    with Client(verifier, read_token(token, token_file)) as client:
        made = client.send(api_read.CLOSE, request, api_read.Closing)
    if json:
        print_json(made)
    else:
        note(f"closed {made.count:,} of {made.code} on {made.node_id}")
    return Exit.FINE


def maintenance(
    verifier: VerifierOption,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    limit: LimitOption = None,
    json: JsonOption = False,
) -> int:
    """List maintenance windows."""
    with Client(verifier, read_token(token, token_file)) as client:
        return _list(list(client.items(api_read.MAINTENANCE, api_read.Maintenance, limit)), render_api.windows, json)


def announce(
    verifier: VerifierOption,
    start: FromOption,
    end: ToOption,
    reason: ReasonOption,
    node: Annotated[str | None, typer.Option("--node", help="on one node")] = None,
    site: Annotated[str | None, typer.Option("--site", callback=text, help="on one site; default: everywhere")] = None,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    json: JsonOption = False,
) -> int:
    """Announce work: what reboots cause within it becomes one line."""
    request = api_read.MaintenanceRequest(
        node_id=None if node is None else _hex(node),
        site=site,
        from_us=hour("from", start) * 1_000_000,
        to_us=hour("to", end) * 1_000_000,
        reason=reason,
    )
    with Client(verifier, read_token(token, token_file)) as client:
        made = client.send(api_read.MAINTENANCE, request, api_read.Maintenance)
    return _list([made], render_api.windows, json)


def cancel(
    verifier: VerifierOption,
    window: Annotated[int, typer.Argument(metavar="ID", min=1, help="as listed")],
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    json: JsonOption = False,
) -> int:
    """Cancel a maintenance window: it explains nothing any more."""
    with Client(verifier, read_token(token, token_file)) as client:
        made = client.send(f"{api_read.MAINTENANCE}/{window}/cancel", None, api_read.Maintenance)
    return _list([made], render_api.windows, json)


def bundle(
    verifier: VerifierOption,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.tar", help="a file that isn't there yet")],
    trust: Annotated[Path | None, typer.Option("--trust", metavar="FILE", help="check whose bundle it is")] = None,
    case: Annotated[str | None, typer.Option("--case", help="a note for the manifest")] = None,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    json: JsonOption = False,
) -> int:
    """Take an evidence bundle and check every file of it against its manifest on the way. Then audit it."""
    from keyturn_cli.commands.audit import read_trust

    pinned = None if trust is None else read_trust(trust)
    part = out.with_name(out.name + ".part")
    if out.exists():
        raise CliError(f"{out} is there already", exit=Exit.USAGE)
    try:
        with part.open("xb") as file, Client(verifier, read_token(token, token_file)) as client:
            taken = take(client.stream(api_read.BUNDLE, **({} if case is None else {"case": case})), file)
        assert taken.manifest is not None  # noqa: S101 -- or it would have been refused
        if pinned is not None and taken.manifest.verifier != pinned:
            raise CliError("the bundle is of other keys than those pinned", exit=Exit.REJECTED)
        part.rename(out)
    except FileExistsError:
        raise CliError(f"{part} is there already: is another download running?", exit=Exit.USAGE) from None
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise CliError(f"{part}: {error.strerror or error}", exit=Exit.USAGE) from None
        raise
    if json:
        shown = {"bytes": taken.size, "files": len(taken.hashes) + 1, "logs": len(taken.manifest.logs), "out": str(out)}
        print_json(shown)
    else:
        note(f"{out}: {len(taken.hashes) + 1:,} files, {taken.size:,} bytes; keyturn audit {out} checks what they say")
    return Exit.FINE


def _list(items: list[Any], table: Callable[[list[Any]], Any], json: bool) -> int:
    if json:
        print_json({"items": items})
    elif items:
        results().print(table(items))
    else:
        note("there is nothing")
    return Exit.FINE


def _hex(node: str) -> str:
    return node_of("NODE", node)
