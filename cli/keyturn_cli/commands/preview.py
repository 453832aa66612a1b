"""What is shown of a statement in a file before it is signed, by its kind. What can't be shown isn't signed."""

from keyturn_cli import authorities, consequence, render_authority, render_signing, switch_text
from keyturn_cli.authorities import Judged
from keyturn_cli.commands.signed import Source
from keyturn_cli.differences import differences, whole
from keyturn_cli.errors import CliError, Exit
from keyturn_cli.lines import Lines
from keyturn_cli.switch_text import groups
from keyturn_cli.units import moment
from keyturn_protocol.authority import Authority, Why, refuse
from keyturn_protocol.dsse import Envelope
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.policy import Policy
from keyturn_protocol.public_keys import PublicKey
from keyturn_protocol.root import Root
from keyturn_protocol.runs import Amend, Decision, Request, Resume, Revoke, RunStatement, Suspend, Withdraw
from keyturn_protocol.statements import Replacement, Statement


def preview(where: Source, envelope: Envelope, said: Statement, key: PublicKey, now_us: int) -> Lines:
    """The screen for a statement that a key is about to sign.

    :raises CliError: the switch would refuse it, it isn't this key's to sign, or there is no bundle to read it by.
    """
    match said:
        case Root() | Policy():
            return _authority(where, envelope, said, key, now_us)
        case Request() | Decision() | Withdraw() | Suspend() | Resume() | Revoke() | Amend():
            return _about_run(where, envelope, said, key)
        case Replacement():
            lines = fields(envelope, said, now_us)
            lines.add("signer", str(key))
            return lines
        case _:
            raise CliError(f"a {envelope.kind} is nothing that this version can show", exit=Exit.REJECTED)


def _about_run(where: Source, envelope: Envelope, said: RunStatement, key: PublicKey) -> Lines:
    if envelope.signatures:
        why = refuse(Why.OTHER_SIGNER, "signed already, and one key signs it", got=len(envelope.signatures))
        raise consequence.refused(why)
    if isinstance(said, Request):
        view = where.view(None)
    else:
        view = where.view(said.subject if isinstance(said, (Decision, Withdraw)) else said.run)
    found = consequence.of(view, envelope, said, key.id)
    openings = where.openings_of(said.spec) if isinstance(said, Request) else where.openings(view, said)
    lines = render_signing.of_run(view, said, envelope.hash.hex(), found, openings, key)
    view.keep(where.memory)
    return lines


def _authority(where: Source, envelope: Envelope, said: Root | Policy, key: PublicKey, now_us: int) -> Lines:
    """A root or policy: all of it, what it changes, whose count this fills, who is missing then."""
    first = isinstance(said, Root) and said.version == 1
    view = None if first else where.view(None)
    before = Authority() if view is None else view.opened.authority
    index, at_us = (0, now_us) if view is None else (view.opened.switch.index + 1, view.at_us)
    try:
        judged = authorities.judge(envelope, said, before, at_us)
        problem = authorities.refusal(judged, before, index, at_us)
    except ProtocolError as error:
        raise CliError(str(error), exit=Exit.REJECTED) from None
    if problem is not None:
        raise consequence.refused(problem)
    lines = authorities.screen(judged, at_us)
    _changes(lines, said, before)
    _fills(lines, judged, key, at_us)
    _then(lines, said, _after(judged, key, at_us))
    if view is not None:
        view.keep(where.memory)
    return lines


def _changes(lines: Lines, said: Root | Policy, before: Authority) -> None:
    """Adds what is other than in what is in force."""
    old = before.roots[-1][1].root if isinstance(said, Root) and before.roots else None
    if isinstance(said, Policy) and before.policies:
        lines.extend("changes", [str(one) for one in differences(before.policies[-1][2], said)] or ["nothing"])
    elif old is not None:
        lines.extend("changes", [str(one) for one in differences(old, said)] or ["nothing"])
    else:
        lines.add("changes", "it is the first: nothing was in force before")


def _fills(lines: Lines, judged: Judged, key: PublicKey, at_us: int) -> None:
    """Adds who signs, and what is missing after that, by each count.

    :raises CliError: no root that counts has this key, or not now.
    """
    for count in judged.counts:
        found = count.standing.keys.get(key.id)
        if found is None:
            continue
        if (refusal := found.refusal(at_us, at_us)) is not None:
            raise consequence.refused(refuse(Why.KEY_NOT_VALID, refusal, got=found.person.id))
        lines.add("as", switch_text.person(found.person.id, count.standing), f"with {key}")
        break
    else:
        raise consequence.refused(refuse(Why.NOT_A_PERSON, "nobody's key in a root that counts here", got=str(key)))
    for count in _after(judged, key, at_us):
        lines.add("missing", f"{count.tally} after this, under root version {count.standing.root.version}")


def _after(judged: Judged, key: PublicKey, at_us: int) -> list[authorities.Count]:
    """Each count with this signature, where it counts: a root may call compromised the very key that signs it."""
    found = [(count, count.standing.keys.get(key.id)) for count in judged.counts]
    return [
        count if one is None or one.refusal(at_us, at_us) is not None else count.with_person(one.person.id)
        for count, one in found
    ]


def _then(lines: Lines, said: Root | Policy, after: list[authorities.Count]) -> None:
    """Adds what happens with the signature."""
    enough = all(count.tally.met for count in after)
    way = "keyturn statement send"
    if isinstance(said, Root) and said.version == 1:
        way = "keyturn-verifier root install"
        lines.add("note", "whoever pins this hash believes all that is above, and every root after it")
    lines.add("then", f"enough have signed: {way} puts it in force" if enough else "others have to sign the same file")
    if isinstance(said, Policy):
        lines.add("note", "requests that are pending when it comes into force lapse, and are asked for again")


def fields(envelope: Envelope, said: Statement, at_us: int) -> Lines:
    """Every field by its name; of a root or policy, in words."""
    if isinstance(said, Root):
        return render_authority.root(said, envelope.hash.hex(), at_us)
    if isinstance(said, Policy):
        return render_authority.policy(said, envelope.hash.hex())
    lines = Lines()
    lines.add("kind", envelope.kind)
    lines.add("hash", groups(envelope.hash.hex()))
    for field in said.__struct_fields__:
        found = getattr(said, field)
        lines.add(field, f"{moment(found)} ({found})" if field == "time_us" else whole(field, found))
    return lines
