"""From a statement to its place: shown, confirmed, signed, and sent or written."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer

from keyturn_cli import consequence, render_signing
from keyturn_cli.client import Client
from keyturn_cli.commands.acting import Acting
from keyturn_cli.commands.read import read_token
from keyturn_cli.errors import CliError, Exit
from keyturn_cli.lines import Lines
from keyturn_cli.moments import digest_of
from keyturn_cli.output import note, print_json, results, talk
from keyturn_cli.permits import View, from_file, from_verifier, read_openings, run_hash, served_openings
from keyturn_cli.seen import Memory
from keyturn_cli.sent import send
from keyturn_cli.signing import SigningKey, read_key
from keyturn_cli.statement_files import to_file, unsigned, write_new
from keyturn_protocol import api_switch
from keyturn_protocol.api_read import StatementItem
from keyturn_protocol.api_switch import RunView
from keyturn_protocol.authority import Why, refuse
from keyturn_protocol.dsse import Envelope
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.openings import Openings, format_openings
from keyturn_protocol.policy import Policy
from keyturn_protocol.root import Root, Standing
from keyturn_protocol.runs import Decision, RunStatement
from keyturn_protocol.statements import parse_payload
from keyturn_protocol.values import SpecPart


@dataclass(frozen=True, slots=True)
class Source:
    """Where a bundle comes from: a file, or a verifier."""

    given: Acting
    client: Client | None
    memory: Memory

    def view(self, run: str | None) -> View:
        """What is known of a run; of roots and policies alone for None."""
        if self.given.bundle is not None:
            found = from_file(self.given.bundle, self.given.root, self.memory)
            if run is not None:
                check_named(run, found.run.hash)
            return found
        client = self.verifier()
        return from_verifier(client, None if run is None else run_hash(client, run), self.given.root, self.memory)

    def run_view(self, run: str | None) -> View:
        """:meth:`view` of a run, which a bundle in a file names by itself."""
        if run is None and self.given.bundle is None:
            raise CliError("RUN: missing", exit=Exit.USAGE, hint="keyturn list, or --bundle FILE")
        found = self.view(run)
        _ = found.run
        return found

    def openings(self, view: View, said: RunStatement | None = None) -> Openings | None:
        """What was given, else what the verifier has; None if nothing.

        :param said: a statement that may be about another spec than the run's: an amendment, or a decision on one.
        """
        stake = None if said is None else consequence.at_stake(said, view.run)
        spec = view.run.spec if stake is None else stake.spec
        if self.given.openings is not None:
            return read_openings(self.given.openings, spec)
        if self.client is None or self.given.bundle is not None or not self.client.has_token:
            return None
        proposal = said.subject if isinstance(said, Decision) and stake is not None else None
        if stake is not None and proposal is None and spec != view.run.spec:
            return None  # nobody has it yet
        return served_openings(self.client, view.run.hash, spec, proposal)

    def served(self, view: View) -> RunView | None:
        """What only the verifier knows of a run; None without a verifier or a token."""
        if self.client is None or self.given.bundle is not None:
            return None
        if not self.client.has_token:
            note("what is charged and leased, and openings, take a token: --token-file")
            return None
        return self.client.one(f"{api_switch.RUNS}/{view.run.hash}", RunView)

    def openings_of(self, spec: Mapping[SpecPart, str | None]) -> Openings | None:
        """What was given for a request that no verifier has yet."""
        return None if self.given.openings is None else read_openings(self.given.openings, spec)

    def give_openings(self, run: str, data: bytes) -> None:
        """Give a run's openings to the verifier, for those who decide."""
        self.verifier().give(api_switch.openings_path(run), data)

    def verifier(self) -> Client:
        """The verifier.

        :raises CliError: none is named.
        """
        if self.client is None:
            raise CliError("--verifier: missing", exit=Exit.USAGE, hint="or --bundle FILE, offline")
        return self.client


@contextmanager
def source(given: Acting) -> Iterator[Source]:
    """Where this command's bundle comes from."""
    memory = Memory(os.environ)
    if given.verifier is None:
        yield Source(given, None, memory)
        return
    with Client(given.verifier, read_token(given.token, given.token_file)) as client:
        yield Source(given, client, memory)


def check_named(reference: str, digest: str) -> None:
    """That a run in a file is the one that was named.

    :raises CliError: it is another one.
    """
    if not digest.startswith(reference.removeprefix("r-").removeprefix("sha256:")):
        raise CliError(f"RUN: the bundle is of another run (expected {reference}, got {digest})", exit=Exit.USAGE)


def perform(
    given: Acting, run: str | None, make: Callable[[View, str], RunStatement], sealed: Openings | None = None
) -> int:
    """Make a statement about a run, show what it does, and sign it.

    :param make: from the verified bundle, in the name of a person.
    :param sealed: of the spec that it brings, which are written to a file before it goes anywhere.
    """
    check_way(given)
    with source(given) as where:
        view = where.run_view(run)
        signer = None if given.unsigned or given.key is None else read_key(given.key)
        person = whose(given.person, view.standing, signer)
        said = make(view, person)
        envelope = unsigned(said)
        openings = sealed or where.openings(view, said)
        found = consequence.of(view, envelope, said, key_of(view, person, signer))
        public = None if signer is None else signer.public
        show_screen(render_signing.of_run(view, said, envelope.hash.hex(), found, openings, public), given.json)
        view.keep(where.memory)
        if signer is not None:
            confirm(view.run.hash, given.expect, "the run's hash")
            envelope = signed(signer, envelope)
        kept = None if sealed is None else write_openings(given, envelope.hash.hex(), sealed)
        done = deliver(where, envelope)
        if kept is not None and given.out is None:
            where.give_openings(view.run.hash, kept)
        return done


def write_openings(given: Acting, digest: str, openings: Openings) -> bytes:
    """Write the salts beside the statement, first: what is lost can never be shown to anybody, or started.

    Into the file that ``--openings`` names, else beside ``--out``, else in this folder.
    """
    out = given.out
    default = Path(f"r-{digest[:8]}.openings.json") if out is None else out.with_name(f"{out.stem}.openings.json")
    path, data = given.openings or default, format_openings(openings)
    write_new(path, data)
    note(f"{path}: what hides the spec; those who decide need it, and the hosts that start it")
    return data


def check_way(given: Acting) -> None:
    """That it is clear who signs, and where it goes.

    :raises CliError: it isn't.
    """
    if given.out is None and (given.key is None or given.unsigned):
        raise CliError(
            "--key: missing: what goes to the verifier is signed", exit=Exit.USAGE, hint="--out FILE, to sign it later"
        )
    if given.out is None and given.verifier is None:
        hint = "or --out FILE, and send it later" if given.bundle else "or --bundle FILE and --out FILE, offline"
        raise CliError("--verifier: missing", exit=Exit.USAGE, hint=hint)
    if given.out is not None and given.out.exists():
        raise CliError(f"{given.out} is there already", exit=Exit.USAGE)


def whose(person: str | None, standing: Standing, signer: SigningKey | None) -> str:
    """In whose name it is: the person that a key speaks for.

    :raises CliError: nobody's key, another person's, or nobody is named.
    """
    if signer is None:
        if person is None:
            raise CliError("--person: missing: in whose name?", exit=Exit.USAGE, hint="or --key FILE")
        return person
    key = standing.keys.get(signer.public.id)
    if key is None:
        raise consequence.refused(refuse(Why.NOT_A_PERSON, "nobody's key in the root in force", got=str(signer.public)))
    if person not in (None, key.person.id):
        raise CliError(f"--person: the key is another's (expected {key.person.id}, got {person})", exit=Exit.USAGE)
    return key.person.id


def key_of(view: View, person: str, signer: SigningKey | None) -> str:
    """The id of the key that signs; while that isn't known, of one that the person could sign with."""
    if signer is not None:
        return signer.public.id
    for key_id, key in view.standing.keys.items():
        if key.person.id == person and key.refusal(view.at_us, view.at_us) is None:
            return key_id
    why = Why.KEY_NOT_VALID if person in view.standing.persons else Why.NOT_A_PERSON
    raise consequence.refused(refuse(why, "no key in the root in force that signs for this person now", got=person))


def show_screen(lines: Lines, json: bool) -> None:
    """The screen before a signature: with results, or with talk where results are for a program."""
    lines.print(talk() if json else results())


def confirm(digest: str, expect: str | None, what: str) -> None:
    """Nobody signs what they didn't compare: the beginning of a hash is typed in, or all of it is given.

    :raises CliError: it is another one, or nobody is here to type.
    """
    if expect is not None:
        if digest_of("--expect", expect) != digest:
            raise CliError(f"--expect: this is another one: {what} is {digest}", exit=Exit.REJECTED)
        return
    if not sys.stdin.isatty():
        raise CliError("nobody is here to confirm it", exit=Exit.USAGE, hint=f"--expect {digest}")
    typed = typer.prompt(f"to sign, type the first two groups of {what}", err=True)
    if "".join(str(typed).split()) != digest[:8]:
        raise CliError("that is not how its hash begins; nothing was signed", exit=Exit.REJECTED)


def signed(signer: SigningKey, envelope: Envelope) -> Envelope:
    """The envelope with one signature more.

    :raises CliError: there is one by this key.
    """
    try:
        return signer.sign(envelope)
    except ProtocolError as error:
        raise CliError(f"not signed: {error}", exit=Exit.REJECTED) from None


def print_taken(item: StatementItem, json: bool) -> None:
    """What a verifier answered to a statement."""
    if json:
        print_json(item)
    else:
        note(f"{item.kind} {item.sha256} is leaf {item.index} of the verifier's log")


def write_statement(out: Path, envelope: Envelope, json: bool) -> None:
    """Write a statement, signed or not, and say what comes next."""
    digest = envelope.hash.hex()
    write_new(out, to_file(envelope))
    if json:
        print_json({"kind": envelope.kind, "sha256": digest, "signed": len(envelope.signatures)})
    elif envelope.signatures:
        note(f"{out}: signed, hash {digest}; {_next(out, envelope)}")
    else:
        note(f"{out}: not signed yet; keyturn sign {out} --key FILE --out STATEMENT does that")


def _next(out: Path, envelope: Envelope) -> str:
    """What to do with a signed statement: of a root or policy one signature is seldom enough."""
    send = f"keyturn statement send {out} gives it to a verifier"
    match parse_payload(envelope.kind, envelope.payload):
        case Root(version=1):
            return f"once enough have signed, keyturn-verifier root install {out} on the verifier's own machine"
        case Root() | Policy():
            return f"once enough have signed, {send}"
        case _:
            return send


def deliver(where: Source, envelope: Envelope) -> int:
    """Write the statement, or give it to the verifier."""
    given = where.given
    if given.out is not None:
        write_statement(given.out, envelope, given.json)
        return Exit.FINE
    print_taken(send(where.verifier(), where.memory.sent, envelope), given.json)
    return Exit.FINE
