"""The parties of the demo: a lab, an operator and a regulator, and what they agree on.

All of it is small: seconds where a real policy has hours, and a budget that one GPU spends while somebody watches.
"""

import shutil
import subprocess
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from keyturn_cli.demo.processes import Children, Done
from keyturn_cli.demo.teller import expect
from keyturn_cli.errors import CliError, Exit

ADA: Final = "lab-a/ada"
"""Asks for the run."""
BOB: Final = "lab-a/bob"
EVE: Final = "operator-b/eve"
"""Signs with an SSH key, where ``ssh-keygen`` is here."""
IVY: Final = "office/ivy"
PEOPLE: Final = (ADA, BOB, EVE, IVY)
LARGE_FLOP: Final = 2 * 10**15
"""Above this a run needs all three parties."""
BUDGET_FLOP: Final = 10**16
NOTICE_S: Final = 2

_ROOT: Final = """\
deployment = "{deployment}"
expires = 2099-01-01

[thresholds]
root = {{ persons = 3, organisations = 3 }}
policy = {{ persons = 2, organisations = 2, minimum = {{ regulator = 1 }} }}

[[party]]
id = "lab-a"
organisation = "acme"
class = "lab"
name = "Lab A"

[[party]]
id = "operator-b"
organisation = "hosting"
class = "operator"
name = "Operator B"

[[party]]
id = "office"
organisation = "state"
class = "regulator"
name = "The office"
"""
_PERSON: Final = '\n[[person]]\nid = "{person}"\nkeys = ["{key}"]\n'
POLICY: Final = f"""\
name = "three parties, in seconds"
requesters = ["lab"]

[[tier]]
name = "large"
above = {{ budget_flop = {LARGE_FLOP} }}
approve = {{ persons = 3, organisations = 3, minimum = {{ lab = 1, operator = 1, regulator = 1 }} }}
deny = 2
veto = ["operator", "regulator"]
colleagues = true
decide = "1h"
start = "1h"
grace = "0s"
lease = "60s"
verified = ["argv"]

[allowance]
window = "1h"
organisation_flop = 5e16
lineage_flop = 5e16
diagnostics_flop = 1e15
chips = 8
lease = "30s"

[stop]
notice = "{NOTICE_S}s"
alone = "1h"
kill = "1s"
"""


REQUEST: Final = f"""\
label = "aurora-2"
purpose = "a demonstration"
lineage = "aurora"
flop = {BUDGET_FLOP}
chips = 1
dtypes = ["bf16"]
from = 2026-01-01
to = 2098-01-01

[spec]
argv = [{{argv}}]
"""


@dataclass(frozen=True, slots=True)
class Desk:
    """Where the people sit: their keys and drafts in one folder, and the settings that each of them has."""

    folder: Path
    children: Children
    settings: Path

    def key(self, person: str) -> Path:
        """The private key of a person."""
        return self.folder / f"{person.partition('/')[2]}.key"

    def keyturn(self, *words: object, code: int = 0) -> Done:
        """A command of a person's, which must end with ``code``."""
        env = {"KEYTURN_CONFIG": str(self.settings), "KEYTURN_STATE": str(self.folder / "seen")}
        done = self.children.attempt(f"keyturn {words[0]}", "keyturn", *map(str, words), env=env)
        expect(done.code == code, f"keyturn {words[0]}: exit {code}", f"{done.code}: {done.last}")
        return done

    def draft(self, name: str, *words: object) -> Path:
        """Have a command write a statement that nobody has signed yet."""
        out = self.folder / f"{name}-0.json"
        self.keyturn(*words, "--out", out)
        return out

    def sign(self, draft: Path, *people: str, openings: Path | None = None) -> tuple[Path, str]:
        """Have people sign a statement, one after the other; returns the file and the statement's hash."""
        name, digest = draft.stem.removesuffix("-0"), sha256(draft.read_bytes()).hexdigest()
        known = () if openings is None else ("--openings", openings)
        for at, person in enumerate(people, 1):
            out = self.folder / f"{name}-{at}.json"
            self.keyturn("sign", draft, "--key", self.key(person), *known, "--expect", digest, "--out", out)
            draft = out
        return draft, digest


def pin(desk: Desk, url: str, root_sha256: str, token: str) -> None:
    """What everybody's commands begin with from now on."""
    (desk.settings.parent / "token").write_text(token)
    desk.settings.write_text(f'verifier = "{url}"\nroot = "sha256:{root_sha256}"\ntoken_file = "token"\n')


def found(desk: Desk, deployment: str, services: str) -> tuple[Path, str, bool]:
    """Make the keys, and a root that three of the people have signed.

    :param services: what ``keyturn-verifier root services`` printed.
    :returns: its file and hash, and whether the operator's key is an SSH key.
    """
    desk.folder.mkdir(mode=0o700)
    desk.settings.write_text("")
    keygen = shutil.which("ssh-keygen")
    public = {person: _new_key(desk, person, keygen if person == EVE else None) for person in PEOPLE}
    people = [_PERSON.format(person=person, key=key) for person, key in sorted(public.items())]
    toml, listed = desk.folder / "root.toml", desk.folder / "services.json"
    toml.write_text(_ROOT.format(deployment=deployment) + "".join(people))
    listed.write_text(services)
    draft = desk.draft("root", "root", "new", toml, "--first", "--services", listed)
    root, digest = desk.sign(draft, ADA, EVE, IVY)
    return root, digest, keygen is not None


def _new_key(desk: Desk, person: str, keygen: str | None) -> str:
    """A new key; returns its public text."""
    path = desk.key(person)
    if keygen is None:
        return desk.keyturn("key", "new", path).out.strip()
    done = subprocess.run(
        [keygen, "-q", "-t", "ed25519", "-N", "", "-C", person, "-f", str(path)],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()
        raise CliError(f"ssh-keygen ended with {done.returncode}: {said}", exit=Exit.REJECTED)
    return Path(f"{path}.pub").read_text().strip()
