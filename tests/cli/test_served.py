"""Heads, leases and statements of a real verifier: the bytes that it has, held against what is pinned."""

import json
from pathlib import Path

import pytest

from keyturn_protocol.canonical import encode_record
from keyturn_protocol.checkpoint import open_checkpoint
from keyturn_protocol.dsse import parse_envelope
from keyturn_protocol.keys import parse_vkey
from keyturn_protocol.lease import parse_lease
from keyturn_verifier import translog
from keyturn_verifier.db.engine import writing
from tests.cli.conftest import Answer, Cli, FakeVerifier
from tests.support.bundles import Site
from tests.support.office import Office
from tests.support.starter import Starter, hash_of


def publish(office: Office) -> bytes:
    verifier = office.verifier
    with writing(verifier.engine) as connection:
        translog.publish(connection, verifier.keys.log, verifier.clock())
    return verifier.client.get("/log/checkpoint").body


def test_a_head_is_verified_by_the_pinned_key_and_kept(office: Office, asking: Path, keyturn: Cli) -> None:
    head = publish(office)
    size = open_checkpoint(head, parse_vkey(office.services.log_vkey)).size
    (asking / "trust.json").write_bytes(encode_record(office.verifier.trust))
    for pin, name in (((), "by-root"), (("--trust", asking / "trust.json"), "by-trust")):
        code, out, err = keyturn("checkpoint", *pin, "--out", asking / name)
        assert (code, out, f"{size} leaves" in err, (asking / name).read_bytes()) == (0, "", True, head)
    assert keyturn("checkpoint")[:2] == (0, head.decode())
    shown = json.loads(keyturn("checkpoint", "--json")[1])
    assert (shown["size"], shown["note"], shown["out"]) == (size, head.decode(), None)
    assert keyturn("checkpoint", "--out", asking / "by-root")[0] == 2
    (asking / "auditor").write_text(office.verifier.reader_token())
    done = keyturn("bundle", "--out", asking / "e.tar", "--token-file", asking / "auditor")
    assert done[0] == 0, done
    code, out, _ = keyturn(
        "audit", asking / "e.tar", "--root", f"sha256:{office.root}", "--checkpoint", asking / "by-root"
    )
    assert (code, f"held against  keyturn.example.org/log, {size} leaves" in out) == (0, True), out


def test_a_head_by_another_key_is_not_kept(office: Office, asking: Path, keyturn: Cli) -> None:
    publish(office)
    other = Site("keyturn.example.org").trust
    (asking / "other.json").write_bytes(encode_record(other))
    code, _, err = keyturn("checkpoint", "--trust", asking / "other.json", "--out", asking / "head")
    assert (code, "not a head by the pinned log key" in err) == (1, True), err
    assert not (asking / "head").exists()
    code, _, err = keyturn("checkpoint", "--root", "sha256:" + "1" * 64)
    assert (code, "not under the root that is pinned" in err) == (1, True)


def test_leases_are_listed_and_one_is_verified(office: Office, asking: Path, keyturn: Cli) -> None:
    runs = [office.approved() for _ in range(2)]
    assert "there are no leases" in keyturn("leases")[2]
    first, second = [Starter.enrolled(office.verifier, at).leased(run) for at, run in enumerate(runs)]
    items = json.loads(keyturn("leases", "--json")[1])["items"]
    assert [one["sha256"] for one in items] == [hash_of(first), hash_of(second)]
    assert len(json.loads(keyturn("leases", "--limit", 1, "--json")[1])["items"]) == 1
    code, out, _ = keyturn("leases", f"r-{runs[1][:8]}")
    assert (code, hash_of(second) in out, hash_of(first) in out) == (0, True, False)
    code, out, _ = keyturn("lease", hash_of(first), "--json")
    assert (code, json.loads(out)["checked"], json.loads(out)["says"]["run"]) == (0, True, runs[0])
    code, _, err = keyturn("lease", hash_of(first), "--out", asking / "note")
    assert (code, "verified" in err) == (0, True)
    assert parse_lease((asking / "note").read_bytes()).lease == first
    code, _, err = keyturn("lease", "0" * 64)
    assert (code, "no lease" in err) == (1, True)
    assert keyturn("lease", "zz")[0] == 2


def test_what_is_left_of_the_allowance(office: Office, asking: Path, keyturn: Cli) -> None:
    lease = Starter.enrolled(office.verifier, 0).leased(None)
    code, out, err = keyturn("allowance")
    assert (code, "lineage" in out, "diagnostics" in out) == (0, True, False), err
    items = json.loads(keyturn("allowance", "--json")[1])["items"]
    acme = next(one for one in items if one["name"] == "acme")
    assert acme["outstanding_tflop"] == lease.upto_tflop
    assert acme["free_tflop"] == acme["limit_tflop"] - lease.upto_tflop
    assert len(json.loads(keyturn("allowance", "--limit", 1, "--json")[1])["items"]) == 1


def test_a_statement_comes_as_it_was_signed(office: Office, asking: Path, keyturn: Cli) -> None:
    run = office.request()
    assert keyturn("statement", "get", run, "--out", asking / "said.json")[0] == 0
    data = (asking / "said.json").read_bytes()
    assert parse_envelope(data).hash.hex() == run
    assert keyturn("statement", "get", f"sha256:{run}")[:2] == (0, data.decode())
    shown = json.loads(keyturn("statement", "get", run, "--json")[1])
    assert (shown["kind"], shown["says"]["label"], shown["envelope"]) == ("request", "aurora-2", data.decode())
    code, out, _ = keyturn("statement", asking / "said.json")
    assert (code, run[:4] in out) == (0, True)
    assert keyturn("statement", "get", "0" * 64)[0] == 1


@pytest.mark.parametrize("what", ["lease", "statement get"])
def test_something_else_than_what_was_asked_for_is_refused(
    office: Office, asking: Path, keyturn: Cli, verifier: FakeVerifier, what: str
) -> None:
    run = office.approved()
    lease = Starter.enrolled(office.verifier, 0).leased(run)
    path = {"lease": f"/v1/leases/{hash_of(lease)}", "statement get": f"/v1/statements/{run}"}[what]
    verifier.give(Answer(body=office.verifier.client.get(path, office.verifier.reader_token()).body))
    code, out, err = keyturn(*what.split(), "1" * 64, "--verifier", verifier.url, "--out", asking / "out")
    assert (code, out, f"another {what.split()[0]} (expected 1111" in err) == (1, "", True), err
    assert not (asking / "out").exists()
    verifier.give(Answer(body=b"{}"))
    assert keyturn(*what.split(), "1" * 64, "--verifier", verifier.url)[0] == 1


def test_a_lease_by_another_key_is_refused(office: Office, asking: Path, keyturn: Cli, verifier: FakeVerifier) -> None:
    run = office.approved()
    lease = Starter.enrolled(office.verifier, 0).leased(run)
    note = office.verifier.client.get(f"/v1/leases/{hash_of(lease)}", office.verifier.reader_token()).body
    authority = office.verifier.client.get("/v1/authority").body
    at = note.rindex(b"=") - 8
    flipped = note[:at] + (b"B" if note[at : at + 1] == b"A" else b"A") + note[at + 1 :]
    verifier.give(Answer(body=flipped), Answer(body=authority))
    code, out, err = keyturn("lease", hash_of(lease), "--verifier", verifier.url)
    assert (code, out) == (1, "")
    assert "signature" in err
