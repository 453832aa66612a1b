"""Bundles as one file: the same audit from a tar, and nothing taken that isn't what the manifest lists."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from backports import zstd

from keyturn_cli.archive import open_bundle, take
from keyturn_cli.errors import CliError
from keyturn_protocol.bundle import MANIFEST
from keyturn_protocol.canonical import encode_record
from keyturn_protocol.errors import ProtocolError
from keyturn_protocol.tar import END, Member, format_member
from tests.cli.conftest import Cli, write_bundle
from tests.protocol.test_audit_switch import taken, whole
from tests.support.bundles import Bundle


def tar(files: dict[str, bytes]) -> bytes:
    """The files as a stream, the manifest last."""
    order = sorted(files, key=lambda path: (path == MANIFEST, path))
    parts = (format_member(p, len(files[p])) + files[p] + bytes(Member(p, len(files[p])).padding) for p in order)
    return b"".join(parts) + END


@pytest.mark.parametrize("pack", [bytes, zstd.compress], ids=["tar", "tar.zst"])
def test_a_tar_is_audited_as_its_folder(
    made: Bundle, evidence: Path, trust: Path, tmp_path: Path, keyturn: Cli, pack: Callable[[bytes], bytes]
) -> None:
    packed = tmp_path / "packed"
    packed.write_bytes(pack(tar(made.files)))
    folder = keyturn("audit", evidence, "--trust", trust, "--json")
    file = keyturn("audit", packed, "--trust", trust, "--json")
    assert folder[0] == 0
    assert file[:2] == folder[:2]


def spoil(stream: bytes, files: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    first = sorted(files)[0] if sorted(files)[0] != MANIFEST else sorted(files)[1]
    yield "cut", stream[: len(stream) // 2]
    yield "no end", stream[: -len(END)]
    yield "half an end", stream[:-512]
    yield "more", stream + bytes(512)
    yield "no manifest", tar({p: d for p, d in files.items() if p != MANIFEST})
    yield "a file less", tar({p: d for p, d in files.items() if p != first})
    yield "a file more", tar(files | {"zzz": b"x"})
    yield "a byte", tar(files | {first: b"\x00" + files[first][1:]})
    yield "nothing", b""
    yield "twice", stream[: -len(END)] + stream


def test_a_stream_that_is_not_its_manifest_is_refused(made: Bundle) -> None:
    stream = tar(made.files)
    for size in (1, 7_919, len(stream)):
        chunks = (stream[i : i + size] for i in range(0, len(stream), size)) if size > 1 else (stream,)
        out = io.BytesIO()
        taken = take(chunks, out)
        assert (taken.size, out.getvalue()) == (len(stream), stream)
        assert {*taken.hashes, MANIFEST} == set(made.files)
    for what, data in spoil(stream, made.files):
        refused = False
        try:
            take([data], io.BytesIO())
        except ProtocolError:
            refused = True
        assert refused, what


def test_a_file_that_is_no_bundle(tmp_path: Path, made: Bundle) -> None:
    stream = tar(made.files)
    packed = zstd.compress(stream)
    for data in (b"", b"x" * 2_000, stream[:-1], stream + b"x", packed[:-3], packed + b"x", zstd.compress(b"x" * 600)):
        path = tmp_path / "bundle"
        path.write_bytes(data)
        with pytest.raises(ProtocolError), open_bundle(path):
            pass
    with pytest.raises(CliError), open_bundle(tmp_path / "nothing"):
        pass


@pytest.mark.parametrize("where", ["padding", "last block"])
def test_bytes_hidden_where_zeros_belong(tmp_path: Path, made: Bundle, where: str) -> None:
    stream = bytearray(tar(made.files))
    name = next(p for p in sorted(made.files) if p != MANIFEST and Member(p, len(made.files[p])).padding)
    at = -1 if where == "last block" else stream.index(name.encode() + b"\0") + 512 + len(made.files[name])
    stream[at] = 1
    for data in (bytes(stream), zstd.compress(bytes(stream))):
        (tmp_path / "bundle").write_bytes(data)
        with pytest.raises(ProtocolError), open_bundle(tmp_path / "bundle"):
            pass


def test_a_trace_leads_from_a_workload_to_entries(made: Bundle, evidence: Path, trust: Path, keyturn: Cli) -> None:
    code, out, _ = keyturn("audit", evidence, "--trust", trust, "--json")
    assert code == 0
    workload = next(w["workload"] for w in json.loads(out)["workloads"] if ":" in w["workload"])
    code, out, _ = keyturn("audit", "trace", workload, evidence, "--trust", trust, "--json")
    assert code == 0
    shown = json.loads(out)
    assert [total["workload"] for total in shown["totals"]] == [workload]
    assert shown["logs"]
    for log in shown["logs"]:
        assert log["workloads"] == [workload]
        for segment in log["segments"]:
            lines = made.files[segment["path"]].split(b"\n\n")[0].splitlines()
            entries = {json.loads(line)["seq"]: line for line in lines}
            assert all(workload.encode() in entries[seq] for seq in segment["entries"])
            rest = entries.keys() - set(segment["entries"])
            assert not any(workload.encode() in entries[seq] for seq in rest)
    origin = shown["logs"][0]["origin"]
    for subject in (origin, origin.split("/")[-2], shown["logs"][0]["chips"][0]):
        assert keyturn("audit", "trace", subject, evidence, "--trust", trust)[0] == 0
    code, _, err = keyturn("audit", "trace", "slurm:nobody", evidence, "--trust", trust)
    assert (code, "speaks of slurm:nobody" in err) == (1, True)
    assert keyturn("audit", "trace", workload, evidence)[0] == 3


def test_trace_takes_what_pins_an_audit(keyturn: Cli, tmp_path: Path) -> None:
    """Statements under a root pass under that root alone; a head that was kept is held against the log."""
    site, hall, _ = whole()
    taken(site, hall)
    bundle = write_bundle(site.export(), tmp_path / "b")
    (tmp_path / "trust").write_bytes(encode_record(site.trust))
    (tmp_path / "head").write_bytes(site.checkpoint(3))
    site.leaves[2] = site.leaves[1]
    (tmp_path / "other").write_bytes(site.checkpoint(3))
    line = ("audit", "trace", next(iter(site.logs)), bundle)
    root = ("--root", f"sha256:{hall.root}")
    assert keyturn(*line, "--trust", tmp_path / "trust")[0] == 3
    code, out, err = keyturn(*line, *root, "--json")
    assert (code, json.loads(out)["outcome"], err) == (0, "pass", "")
    assert keyturn(*line, *root, "--checkpoint", tmp_path / "head")[0] == 0
    assert keyturn(*line, *root, "--checkpoint", tmp_path / "other")[0] == 1
    assert "keys are not pinned" in keyturn(*line)[2]
