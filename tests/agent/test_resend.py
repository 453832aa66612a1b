"""A verifier that asks for less than it receipted: the same pieces go again, each with its receipt."""

from base64 import b64decode
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

from keyturn_agent.client import HttpVerifier
from keyturn_agent.spool import Spool
from keyturn_protocol.api import RECEIPT_HEADER
from keyturn_protocol.note import parse_note
from tests.support.node import Node


def spooled(folder: Path) -> tuple[Node, Spool]:
    """A log of five segments of two entries, receipted up to 4 in one piece, and to 6."""
    node = Node.new(seed=1)
    spool = Spool(folder, node.vkey)
    node.genesis()
    node.inventory()
    node.usage(8)
    for start in range(0, 10, 2):
        spool.add(start, node.lines[start : start + 2], parse_note(node.checkpoint(start + 2)))
    spool.add_receipt(0, 4, b"receipt of 4\n")
    spool.add_receipt(4, 6, b"receipt of 6\n")
    return node, spool


def test_receipted_pieces_are_sent_as_they_were_and_the_rest_together(tmp_path: Path) -> None:
    node, first = spooled(tmp_path)
    for spool in (first, Spool(tmp_path, node.vkey)):
        sent = []
        at = 0
        while (upload := spool.upload(at)) is not None:
            sent.append((upload.start, upload.end, upload.receipt))
            assert upload.data == node.range(upload.start, upload.end)
            at = upload.end
        assert sent == [(0, 4, b"receipt of 4\n"), (4, 6, b"receipt of 6\n"), (6, 10, None)]


def test_a_receipt_that_is_gone_is_not_shown(tmp_path: Path) -> None:
    _, spool = spooled(tmp_path)
    (tmp_path / "0-4.receipt").unlink()
    upload = spool.upload(0)
    assert upload is not None
    assert (upload.end, upload.receipt) == (4, None)


def test_the_header_holds_the_receipt() -> None:
    seen: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.headers.get(RECEIPT_HEADER))
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        verifier = HttpVerifier(f"http://127.0.0.1:{server.server_port}", 10)
        verifier.send_segment(b"frame")
        verifier.send_segment(b"frame", b"\xe2\x80\x94 a receipt\n")
        verifier.close()
        server.shutdown()
        thread.join()
    assert seen[0] is None
    assert b64decode(seen[1] or "") == b"\xe2\x80\x94 a receipt\n"
