"""``GET /v1/bundle``: the stream is the export, the manifest comes last, and nothing is left when a client goes."""

import io
import socket
import tarfile
import time
from pathlib import Path

import pytest
import urllib3
from backports import zstd
from sqlalchemy import update

from keyturn_verifier.db.engine import writing
from keyturn_verifier.db.tables import segment_body
from tests.support.verifier import Verifier


def unpack(data: bytes, folder: Path) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        archive.extractall(folder, filter="data")
        return archive.getnames()


@pytest.mark.parametrize("kind", ["tar", "tar.zst"])
def test_the_stream_passes_the_audit(verifier: Verifier, tmp_path: Path, kind: str) -> None:
    for _ in range(3):
        node = verifier.enrolled(usage=5)
        for _ in range(10):
            node.usage(3)
            verifier.client.post(node.segment())
    answer = verifier.client.get(f"/v1/bundle?case=case%207&format={kind}", verifier.reader_token())
    assert answer.status == 200
    assert answer.headers["content-type"] == {"tar": "application/x-tar", "tar.zst": "application/zstd"}[kind]
    data = answer.body if kind == "tar" else zstd.decompress(answer.body)
    names = unpack(data, tmp_path / "evidence")
    assert names[-1] == "bundle.json"
    report = verifier.audit(tmp_path / "evidence")
    assert (report.outcome, report.case, report.logs) == ("pass", "case 7", 3)
    assert b'"type":"export"' in verifier.leaves()[-1]


def test_a_case_that_is_no_line_of_text(verifier: Verifier) -> None:
    before = verifier.leaves()
    for query in ("case=a%0Ab", "case=" + "x" * 1_025, "format=zip"):
        assert verifier.client.get(f"/v1/bundle?{query}", verifier.reader_token()).code == "bad_request"
    assert verifier.leaves() == before


def test_damage_is_no_whole_stream(verifier: Verifier, tmp_path: Path) -> None:
    verifier.enrolled(usage=3)
    with writing(verifier.engine) as connection:
        connection.execute(update(segment_body).values(body=b"damaged"))
    answer = verifier.client.get("/v1/bundle", verifier.reader_token())
    assert (answer.status, answer.code) == (503, "overloaded")


def test_damage_in_mid_stream_cuts_it_and_is_said_in_a_line(
    verifier: Verifier, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = verifier.enrolled(usage=3)
    for _ in range(4):
        node.usage(240)
        assert verifier.client.post(node.segment()).status == 200
    with writing(verifier.engine) as connection:
        connection.execute(update(segment_body).where(segment_body.c.start > 600).values(body=b"damaged"))
    with pytest.raises(urllib3.exceptions.HTTPError):
        verifier.client.get("/v1/bundle", verifier.reader_token())
    deadline = time.monotonic() + 10
    while "the stored segment is damaged" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "bundle: cut in mid-stream" in caplog.text
    assert "Traceback" not in caplog.text


def test_clients_that_stop_reading_hold_nothing_for_long(tmp_path: Path) -> None:
    with Verifier(tmp_path, send_timeout_s=1, bundle_streams=1) as verifier:
        node = verifier.enrolled()
        for _ in range(5):
            node.usage(200)
            assert verifier.client.post(node.segment()).status == 200
        token = verifier.reader_token()
        host, port = verifier.client.url.removeprefix("http://").split(":")
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            slow.connect((host, int(port)))
            slow.sendall(f"GET /v1/bundle HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n".encode())
            slow.recv(100)
        deadline = time.monotonic() + 30
        while (answer := verifier.client.get("/v1/bundle", token)).status == 503:
            assert answer.headers["retry-after"]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert answer.status == 200
