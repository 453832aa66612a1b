"""A root from TOML to the signatures that put it in force, and the next one after it."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from keyturn_protocol.canonical import encode, encode_record, parse
from keyturn_protocol.dsse import parse_envelope
from keyturn_protocol.permit import Said, format_permit_bundle
from keyturn_protocol.root import Root
from keyturn_protocol.statements import parse_payload
from keyturn_protocol.switch import Switch, log_statement
from tests.cli.conftest import Cli
from tests.support.optional import require_program
from tests.support.parties import BEGIN, NAME, policy, root

TOML = """
deployment = "kt.example"
expires = 2100-01-01

[thresholds]
root = { persons = 2, organisations = 2 }
policy = { persons = 2, organisations = 2, minimum = { regulator = 1 } }

[[party]]
id = "office"
organisation = "state"
class = "regulator"
name = "The office"

[[party]]
id = "lab-a"
organisation = "acme"
class = "lab"

[[person]]
id = "office/ivy"
keys = ["IVY ivy@desk", { key = "SPARE", valid_from = 2027-01-01, valid_until = 2028-01-01T12:00:00Z }]

[[person]]
id = "lab-a/ada"
keys = ["ADA"]
"""


class Files:
    """The program, and what it writes."""

    def __init__(self, keyturn: Cli, folder: Path) -> None:
        self.keyturn, self.folder = keyturn, folder
        (folder / "services.json").write_bytes(encode_record(root().services) + b"\n")
        self.key("ada")
        self.key("spare")
        ssh: list[Any] = [
            require_program("ssh-keygen"),
            "-q",
            "-t",
            "ed25519",
            "-N",
            "",
            "-C",
            "ivy@desk",
            "-f",
            folder / "ivy",
        ]
        subprocess.run(ssh, check=True, timeout=60)

    def key(self, name: str) -> str:
        if not (self.folder / name).exists():
            self.run("key", "new", self.folder / name)
        return self.run("key", self.folder / name)[0].strip()

    def toml(self, text: str = TOML) -> Path:
        path = self.folder / "root.toml"
        for name in ("ADA", "IVY", "SPARE"):
            text = text.replace(f'"{name}', f'"{self.key(name.lower())}')
        path.write_text(text)
        return path

    def run(self, *line: object, code: int = 0) -> tuple[str, str]:
        got, out, err = self.keyturn(*line)
        assert got == code, (line, out, err)
        return out, err

    def new(self, out: str, *more: object, text: str = TOML, code: int = 0) -> tuple[str, str]:
        line = ("root", "new", self.toml(text), "--out", self.folder / out)
        return self.run(*line, *(more or ("--first", "--services", self.folder / "services.json")), code=code)

    def sign(self, made: str, who: str, out: str, *more: object, code: int = 0) -> tuple[str, str]:
        digest = json.loads(self.run("statement", self.folder / made, "--json")[0])["sha256"]
        line = ("sign", self.folder / made, "--key", self.folder / who, "--out", self.folder / out)
        return self.run(*line, "--expect", digest, *more, code=code)

    def bundle(self, *names: str) -> Path:
        """What a verifier would have that took these statements."""
        switch, said = Switch(NAME), []
        for index, name in enumerate(names):
            envelope = parse_envelope((self.folder / name).read_bytes())
            statement = parse_payload(envelope.kind, envelope.payload)
            switch.take(log_statement(envelope, statement, index, BEGIN, switch.authority))
            said.append(Said(envelope, index, BEGIN))
        path = self.folder / f"bundle-{len(names)}"
        path.write_bytes(format_permit_bundle(NAME, None, said))
        return path


@pytest.fixture
def files(keyturn: Cli, tmp_path: Path) -> Files:
    return Files(keyturn, tmp_path)


def pin(files: Files, name: str) -> str:
    return f"sha256:{parse_envelope((files.folder / name).read_bytes()).hash.hex()}"


def test_the_first_root_by_a_file_key_and_an_ssh_key(files: Files) -> None:
    out, _ = files.new("made")
    for shown in (
        "version 1 of kt.example",
        "office (regulator) of organisation state: The office",
        "until 2028-01-01 12:00:00Z",
    ):
        assert shown in out
    said = parse_payload("root", (files.folder / "made").read_bytes())
    assert isinstance(said, Root)
    assert [party.id for party in said.parties] == ["lab-a", "office"]
    assert [person.party for person in said.persons] == ["lab-a", "office"]
    out, err = files.sign("made", "ada", "one")
    assert "once enough have signed, keyturn-verifier root install " in err
    for shown in (
        "nothing was in force before",
        "lab-a/ada (lab, acme)",
        "1 more of any class, 1 more organisation(s) after this",
        "others have to sign",
    ):
        assert shown in out, (shown, out)
    assert "1 more of any class" in files.run("root", files.folder / "one")[0]
    out, _ = files.sign("one", "ivy", "two")
    assert "enough have signed: keyturn-verifier root install" in out
    shown = json.loads(files.run("root", "show", files.folder / "two", "--json")[0])
    assert shown["counts"] == [
        {"root": shown["sha256"], "persons": ["lab-a/ada", "office/ivy"], "met": True, "missing": "nothing"}
    ]
    assert files.bundle("two").exists()


def test_the_next_root_is_counted_under_both(files: Files) -> None:
    files.new("made")
    files.sign("made", "ada", "one")
    files.sign("one", "ivy", "two")
    where = ("--bundle", files.bundle("two"), "--root", pin(files, "two"))
    more = TOML.replace("persons = 2, organisations = 2 }", "persons = 1, organisations = 1 }", 1)
    files.new("next", *where, text=more)
    out, _ = files.run("root", "diff", files.folder / "next", *where)
    assert out.splitlines() == ["  thresholds.root.persons: 2 → 1", "  thresholds.root.organisations: 2 → 1"]
    out, _ = files.sign("next", "ivy", "next-one", *where)
    assert "thresholds.root.persons: 2 → 1" in out
    assert "1 more of any class, 1 more organisation(s) after this, under root version 1" in out
    assert "nothing after this, under root version 2" in out
    _, err = files.sign("next-one", "ada", "next-two", *where)
    assert "once enough have signed, keyturn statement send " in err
    both = ("--bundle", files.bundle("two", "next-two"), "--root", pin(files, "two"))
    assert "version 2 of kt.example" in files.run("root", *both)[0]
    assert "version 1 of kt.example" in files.run("root", "show", "1", *both)[0]
    assert "there is no root 3" in files.run("root", "show", "3", *both, code=1)[1]
    # Made again for a root that isn't the newest any more, it is refused before anybody signs.
    files.new("late", *where, text=more)
    out, err = files.sign("late", "ivy", "never", *both, code=1)
    assert (out, "version: not the next root" in err) == ("", True)


def test_a_key_that_is_in_no_root_signs_none(files: Files) -> None:
    files.new("made")
    files.key("mallory")
    out, err = files.sign("made", "mallory", "never", code=1)
    assert (out, "not_a_person" in err) == ("", True)
    out, err = files.sign("made", "spare", "never", code=1)
    assert "key_not_valid: the key isn't valid yet" in err
    assert not (files.folder / "never").exists()


def test_a_policy_is_signed_under_the_root_that_it_names(files: Files) -> None:
    files.new("made")
    files.sign("made", "ada", "one")
    files.sign("one", "ivy", "two")
    where = ("--bundle", files.bundle("two"), "--root", pin(files, "two"))
    of = pin(files, "two").removeprefix("sha256:")
    (files.folder / "policy").write_bytes(encode_record(policy(of)))
    _, err = files.sign("policy", "ivy", "never", *where, code=1)
    assert "can never approve" in err
    (files.folder / "other").write_bytes(encode_record(policy("1" * 64)))
    _, err = files.sign("other", "ivy", "never", *where, code=1)
    assert "other_root: under another root" in err
    assert not (files.folder / "never").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('class = "lab"', 'class = "school"', "party[1].class: invalid enum value 'school'"),
        ("persons = 2", 'persons = "two"', "thresholds.root.persons: expected `int`, got `str`"),
        ("persons = 2", "persons = 0", "expected `int` >= 1"),
        ("persons = 2", "person = 2", "object contains unknown field `person`"),
        ("expires = 2100-01-01", "", "object missing required field `expires`"),
        ("expires = 2100-01-01", "expires = 2100-01-01T00:00:00", "expires: must be a day or a time in UTC"),
        ("valid_from = 2027-01-01", "valid_from = 5", "office/ivy: valid_from: must be a day"),
        ('"lab-a/ada"', '"lab-b/ada"', "a person is named <party>/<name>"),
        ('"ADA"', '"IVY"', "one key is listed twice"),
        ('"ADA"', '"ssh-rsa AAAA x"', "not a public key that signs statements"),
        ('id = "lab-a"', 'id = "l\u0430b-a"', "parties[0].id"),
        ("[thresholds]", "[thresholds", "not TOML"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_file_is_named(files: Files, old: str, new: str, message: str) -> None:
    assert old in TOML
    out, err = files.new("made", text=TOML.replace(old, new, 1), code=2)
    assert (out, message in err.replace("\n", " ").lower() or message in err) == ("", True), err
    assert not (files.folder / "made").exists()


def test_services_come_from_the_verifier(files: Files) -> None:
    _, err = files.new("made", "--first", code=2)
    assert "--services: missing" in err
    (files.folder / "services.json").write_text('{"log_vkey":"a"}')
    _, err = files.new("made", code=2)
    assert "--services" in err


def test_a_signature_that_is_none_counts_for_nobody(files: Files) -> None:
    """Shown or signed further, every signature in the file is verified first."""
    files.new("made")
    files.sign("made", "ada", "one")
    files.sign("one", "ivy", "two")
    raw: Any = parse((files.folder / "two").read_bytes(), dict)
    first, second = (one["sig"] for one in raw["signatures"])
    raw["signatures"][0]["sig"], raw["signatures"][1]["sig"] = second, first
    (files.folder / "forged").write_bytes(encode(raw))
    raw["signatures"][0] = {"keyid": "0" * 64, "sig": first}
    (files.folder / "stranger").write_bytes(encode(raw))
    for name in ("forged", "stranger"):
        assert files.run("root", files.folder / name, code=1)[0] == ""
        out, _ = files.sign(name, "ada", "never", code=1)
        assert out == ""
    assert not (files.folder / "never").exists()


def test_a_root_that_calls_the_key_compromised_that_signs_it(files: Files) -> None:
    """It counts under the root before, and not under this one: nobody is told that it is enough."""
    files.new("made")
    files.sign("made", "ada", "one")
    files.sign("one", "ivy", "two")
    where = ("--bundle", files.bundle("two"), "--root", pin(files, "two"))
    stolen = TOML.replace('"ADA"', '{ key = "ADA", compromised_since = 2026-01-01 }')
    files.new("next", *where, text=stolen + f'\n[[person]]\nid = "lab-a/bob"\nkeys = ["{files.key("bob")}"]\n')
    files.sign("next", "ivy", "next-one", *where)
    out, _ = files.sign("next-one", "ada", "next-two", *where)
    assert "nothing after this, under root version 1" in out
    assert "1 more of any class, 1 more organisation(s) after this, under root version 2" in out
    assert "others have to sign" in out
