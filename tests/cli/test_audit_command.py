"""``keyturn audit``: exit codes, what it prints, and its JSON."""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keyturn_protocol.bundle import MANIFEST
from keyturn_protocol.canonical import encode, encode_record
from keyturn_protocol.keys import parse_vkey
from tests.cli.conftest import Cli, write_bundle
from tests.support.bundles import Bundle, Site, large
from tests.support.hosts import forked
from tests.support.paths import REPO


class TestExit:
    def test_0_passes(self, keyturn: Cli, evidence: Path, trust: Path) -> None:
        code, out, err = keyturn("audit", evidence, "--trust", trust)
        assert code == 0
        assert err == ""
        assert out.startswith("INTEGRITY     PASS  4 of 4 logs, 20 entries, totals equal\n")
        assert "COMPLETENESS  NOT SHOWN  among enrolled chips only: no outside leg supplied" in out
        assert out.endswith("this says nothing about compliance\n")

    def test_1_contradicted_and_the_first_thing_named_is_file_and_entry(
        self, keyturn: Cli, made: Bundle, trust: Path, tmp_path: Path
    ) -> None:
        path = made.segments()[0]
        at = made.files[path].index(b'"tensor_mcycles":[') + 18
        bad = write_bundle(made.flip(path, at, 8), tmp_path / "bad")
        code, out, _ = keyturn("audit", bad, "--trust", trust)
        lines = out.splitlines()
        assert code == 1
        assert lines[0].startswith("INTEGRITY     FAIL  3 of 4 logs")
        assert lines[1].strip().startswith(f"{path} (entry 2): entry 2 was changed")
        assert "what verified before the contradictions above:" in out

    def test_1_a_fork(self, keyturn: Cli, tmp_path: Path) -> None:
        site, _, hosts = large()
        site.post(forked(hosts["one"]))
        bundle = site.export()
        (tmp_path / "trust").write_bytes(encode_record(bundle.trust))
        code, out, _ = keyturn("audit", write_bundle(bundle, tmp_path / "b"), "--trust", tmp_path / "trust")
        assert code == 1
        assert "the node also signed" in out
        assert "critical  fork" in out

    def test_1_all_keys_replaced(self, keyturn: Cli, trust: Path, tmp_path: Path) -> None:
        forger = Site(seed="forger")
        host = forger.enrol("forged").genesis().inventory().usage("run:a")
        forger.receive(host)
        forged = write_bundle(forger.export(), tmp_path / "forged")
        assert keyturn("audit", forged, "--trust", trust)[0] == 1
        assert keyturn("audit", forged)[0] == 3

    @pytest.mark.parametrize("data", [b"", b"{}", b"\xff\xfe", b'{"v":1} '], ids=["empty", "fields", "bytes", "space"])
    def test_1_a_manifest_that_is_none(self, keyturn: Cli, evidence: Path, trust: Path, data: bytes) -> None:
        (evidence / MANIFEST).write_bytes(data)
        code, out, err = keyturn("audit", evidence, "--trust", trust)
        assert (code, out) == (1, "")
        assert err.startswith("keyturn: error: not a bundle: bundle.json")

    def test_1_a_folder_without_a_manifest(self, keyturn: Cli, tmp_path: Path, trust: Path) -> None:
        code, _, err = keyturn("audit", tmp_path, "--trust", trust)
        assert code == 1
        assert "can't read bundle.json: No such file or directory" in err

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ([], "missing argument 'BUNDLE'"),
            (["nowhere"], "nowhere is not a folder"),
            ([".", "--trust", "nowhere"], "--trust nowhere: No such file or directory"),
            ([".", "--root", "sha256:AB"], "--root: must be sha256: and 64 lower-case hex digits"),
            ([".", "--checkpoint", "nowhere"], "--checkpoint nowhere"),
            ([".", "--jobs", "-1"], "--jobs"),
            ([".", "--yes"], "no such option: --yes"),
        ],
    )
    def test_2_usage(self, keyturn: Cli, arguments: list[str], says: str) -> None:
        code, out, err = keyturn("audit", *arguments)
        assert (code, out) == (2, "")
        assert err.startswith("keyturn: error: ")
        assert says in err.casefold() or says in err

    @pytest.mark.parametrize("change", ["cut", "space", "one key", "not json", "huge"])
    def test_2_a_trust_file_that_is_none(
        self, keyturn: Cli, made: Bundle, evidence: Path, trust: Path, change: str
    ) -> None:
        data = trust.read_bytes()
        receipt, log = parse_vkey(made.trust.receipt_vkey), parse_vkey(made.trust.log_vkey)
        one_key = str(type(receipt)(receipt.name, receipt.kind, log.public_key)).encode()
        changed = {
            "cut": data[:-1],
            "space": data + b"\n",
            "one key": data.replace(made.trust.receipt_vkey.encode(), one_key),
            "not json": b"trust me",
            "huge": b" " * 70_000,
        }
        trust.write_bytes(changed[change])
        code, out, err = keyturn("audit", evidence, "--trust", trust)
        assert (code, out) == (2, "")
        assert err.startswith(f"keyturn: error: --trust {trust}: ")

    def test_3_keys_that_are_not_pinned(self, keyturn: Cli, evidence: Path) -> None:
        code, out, err = keyturn("audit", evidence)
        assert code == 3
        assert "keys are not pinned" in err
        assert out.startswith("INTEGRITY     UNDECIDED")
        assert "internally consistent at best: keys not pinned" in out

    def test_3_a_root_that_the_bundle_does_not_hold(self, keyturn: Cli, evidence: Path, trust: Path) -> None:
        root = "sha256:" + "ab" * 32
        for more, pinned in (((), False), (("--trust", trust), True)):
            code, out, _ = keyturn("audit", evidence, "--root", root, *more)
            assert code == 3
            assert "the verifier's log holds no root yet" in out
            assert ("keys not pinned" not in out) is pinned

    def test_3_a_log_that_is_left_out(self, keyturn: Cli, tmp_path: Path) -> None:
        code, out, _ = self.audit_without_a_log(keyturn, tmp_path, "another customer's")
        assert code == 3
        assert re.search(r"/node/[0-9a-f]{32}/1 is left out: another customer's", out)

    def test_1_a_reason_that_would_steer_a_terminal(self, keyturn: Cli, tmp_path: Path) -> None:
        code, out, err = self.audit_without_a_log(keyturn, tmp_path, "\x1b[2Janother customer's")
        assert code == 1
        assert "left_out[0].reason" in err
        assert "\x1b" not in out + err

    def audit_without_a_log(self, keyturn: Cli, tmp_path: Path, reason: str) -> tuple[int, str, str]:
        site, _, hosts = large()
        bundle = site.export({hosts["three"].origin: reason})
        (tmp_path / "trust").write_bytes(encode_record(bundle.trust))
        return keyturn("audit", write_bundle(bundle, tmp_path / "b"), "--trust", tmp_path / "trust")


class TestCheckpoint:
    def given(self, tmp_path: Path, data: bytes) -> Path:
        path = tmp_path / "checkpoint"
        path.write_bytes(data)
        return path

    def test_one_that_the_log_contains(self, keyturn: Cli, evidence: Path, trust: Path, tmp_path: Path) -> None:
        given = self.given(tmp_path, large()[0].checkpoint(5))
        code, out, _ = keyturn("audit", evidence, "--trust", trust, "--checkpoint", given)
        assert code == 0
        assert "held against  kt.example/log, 5 leaves" in out

    def test_one_of_another_history(self, keyturn: Cli, evidence: Path, trust: Path, tmp_path: Path) -> None:
        other = large()[0]
        other.leaves[2] = other.leaves[2].replace(b"hall 1", b"hall 2")
        given = self.given(tmp_path, other.checkpoint(5))
        code, out, _ = keyturn("audit", evidence, "--trust", trust, "--checkpoint", given)
        assert code == 1
        assert "the verifier signed another log: its first 5 leaves" in out

    def test_one_that_is_newer(self, keyturn: Cli, evidence: Path, trust: Path, tmp_path: Path) -> None:
        site = large()[0]
        site.enrol("new")
        given = self.given(tmp_path, site.checkpoint())
        code, out, _ = keyturn("audit", evidence, "--trust", trust, "--checkpoint", given)
        assert code == 3
        assert "the bundle's log only 14" in out

    def test_one_by_another_key(self, keyturn: Cli, evidence: Path, trust: Path, tmp_path: Path) -> None:
        given = self.given(tmp_path, Site(seed="other").checkpoint())
        code, _, err = keyturn("audit", evidence, "--trust", trust, "--checkpoint", given)
        assert code == 2
        assert "the given checkpoint is not one by the pinned log key" in err
        assert keyturn("audit", evidence, "--checkpoint", given)[0] == 3


def _readable(descriptor: int) -> bool:
    poll = select.poll()  # unlike select, with descriptors of any number
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(30_000))


class TestEnd:
    @pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
    def test_workers_end_with_the_program(self, evidence: Path, tmp_path: Path, how: signal.Signals) -> None:
        """However it ends: those that go on would hold memory and cores for results that nobody takes."""
        marks = tmp_path / "marks"
        marks.mkdir()
        command = [sys.executable, "-m", "tests.cli.stuck", str(evidence), str(marks)]
        with subprocess.Popen(command, cwd=REPO, start_new_session=True) as audit:
            while len(workers := [int(path.name) for path in marks.iterdir()]) < 2:
                assert audit.poll() is None, "it ended by itself"
                time.sleep(0.01)
            ends = [os.pidfd_open(pid) for pid in workers]
            audit.send_signal(how)
        try:
            assert all(_readable(end) for end in ends), "a worker goes on"
        finally:
            for end in ends:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(end, signal.SIGKILL)
                os.close(end)


class TestJson:
    def test_it_is_canonical_and_alone_on_stdout(self, keyturn: Cli, evidence: Path, trust: Path) -> None:
        code, out, _ = keyturn("audit", evidence, "--trust", trust, "--json")
        report = json.loads(out)
        assert out.encode() == encode(report) + b"\n"
        assert (code, report["exit"], report["outcome"]) == (0, 0, "pass")
        assert report["integrity"] == {"contradictions": [], "entries": 20, "logs": 4, "logs_verified": 4}
        assert report["completeness"]["shown"] is False
        assert [w["workload"] for w in report["workloads"]] == ["run:a", "run:b", "user:7", "gap", "unattributed"]
        assert {"low", "best", "high"} == report["workloads"][0]["undeclared"].keys()

    @pytest.mark.parametrize("jobs", [1, 2])
    def test_it_is_the_same_however_many_processes(
        self, keyturn: Cli, evidence: Path, trust: Path, jobs: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = keyturn("audit", evidence, "--trust", trust, "--json")
        monkeypatch.setattr("keyturn_cli.auditing.ALONE", 0)
        # How far it has come is said on the way where it takes a while.
        assert keyturn("audit", evidence, "--trust", trust, "--json", "--jobs", jobs)[:2] == one[:2]

    def test_contradictions_name_file_and_entry(self, keyturn: Cli, made: Bundle, trust: Path, tmp_path: Path) -> None:
        path = made.segments()[0]
        bad = write_bundle(made.flip(path, 0), tmp_path / "bad")
        code, out, _ = keyturn("audit", bad, "--trust", trust, "--json")
        first = json.loads(out)["integrity"]["contradictions"][0]
        assert (code, first["where"], first["seq"]) == (1, path, 0)
