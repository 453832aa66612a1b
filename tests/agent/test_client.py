"""The way to the verifier: proxies, private certificates and limits, over real sockets."""

import base64
import datetime
import http.server
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from keyturn_agent.client import HttpVerifier
from keyturn_agent.errors import UnreachableError, UsageError
from keyturn_agent.patience import PatientVerifier
from keyturn_agent.ports import Answer
from keyturn_agent.route import Proxy, proxy_for
from tests.agent.fakes import FakeVerifier, over_http

URL = "https://verifier.example.org:8443"


@pytest.mark.parametrize(
    ("setting", "environ", "expected"),
    [
        (None, {}, None),
        ("direct", {"https_proxy": "http://p:1"}, None),
        ("http://p:1", {"https_proxy": "http://q:1"}, Proxy("http://p:1", None)),
        ("http://u:p%40ss@p:1", {}, Proxy("http://p:1", "u:p@ss")),
        (None, {"https_proxy": "http://p:1"}, Proxy("http://p:1", None)),
        (None, {"HTTPS_PROXY": "p:1"}, Proxy("http://p:1", None)),
        (None, {"http_proxy": "http://p:1"}, None),
        (None, {"all_proxy": "http://p:1"}, Proxy("http://p:1", None)),
        (None, {"https_proxy": "http://p:1", "no_proxy": "example.org"}, None),
        (None, {"https_proxy": "http://p:1", "no_proxy": "a, .example.org"}, None),
        (None, {"https_proxy": "http://p:1", "NO_PROXY": "*"}, None),
        (None, {"https_proxy": "http://p:1", "no_proxy": "verifier.example.org:8443"}, None),
        (None, {"https_proxy": "http://p:1", "no_proxy": "verifier.example.org:443"}, Proxy("http://p:1", None)),
        (None, {"https_proxy": "http://p:1", "no_proxy": "ifier.example.org"}, Proxy("http://p:1", None)),
        (None, {"https_proxy": "http://p:1", "no_proxy": ""}, Proxy("http://p:1", None)),
    ],
)
def test_the_setting_comes_before_the_environment(
    setting: str | None, environ: dict[str, str], expected: Proxy | None
) -> None:
    found = proxy_for(URL, setting, environ)
    assert found == expected
    assert found is None or found.credentials is None or found.credentials not in repr(found)


def test_an_unusable_proxy_in_the_environment_is_named_and_not_quoted() -> None:
    with pytest.raises(UsageError, match=r"^https_proxy: must be a URL") as caught:
        proxy_for(URL, None, {"https_proxy": "socks5://me:hunter2@p:1"})
    assert "hunter2" not in str(caught.value)


class Relay(http.server.BaseHTTPRequestHandler):
    """A proxy that forwards ``http`` and tunnels ``https``; it remembers what it was asked."""

    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        self.asked.append((f"GET {self.path}", self.headers["Proxy-Authorization"]))
        self.send_response(200)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"hello\n")

    def do_CONNECT(self) -> None:
        self.asked.append((f"CONNECT {self.path}", self.headers["Proxy-Authorization"]))
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port))) as far:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=pump, args=(far, self.connection), daemon=True)
            back.start()
            pump(self.connection, far)
            back.join()

    def log_message(self, format: str, *args: object) -> None:
        pass


def pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@contextmanager
def served(handler: type[http.server.BaseHTTPRequestHandler], context: ssl.SSLContext | None = None) -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def relay() -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    asked: list[tuple[str, str | None]] = []
    with served(type("Recorded", (Relay,), {"asked": asked})) as port:
        yield f"127.0.0.1:{port}", asked


def test_a_plain_verifier_is_asked_through_the_proxy_with_its_credentials(
    relay: tuple[str, list[tuple[str, str | None]]],
) -> None:
    place, asked = relay
    verifier = HttpVerifier("http://verifier.example.org", 10, f"http://me:hunter2@{place}")
    assert verifier.log_checkpoint().body == b"hello\n"
    verifier.close()
    basic = "Basic " + base64.b64encode(b"me:hunter2").decode()
    assert asked == [("GET http://verifier.example.org/log/checkpoint", basic)]


class Authority:
    """A private certificate authority, and a certificate of it for 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.file, self.served = folder / "ca.pem", folder / "server.pem"
        root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        root = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a private root")])
        leaf = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a server")])
        here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        ca = self._build(root, root, root_key.public_key(), x509.BasicConstraints(True, None))
        made = self._build(leaf, root, key.public_key(), here)
        self.file.write_bytes(ca.sign(root_key, hashes.SHA256()).public_bytes(Encoding.PEM))
        self.served.write_bytes(
            made.sign(root_key, hashes.SHA256()).public_bytes(Encoding.PEM)
            + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.served)
        return context

    @staticmethod
    def _build(
        subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, extension: x509.ExtensionType
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(extension, critical=True)
        )


def test_a_private_authority_counts_only_where_it_is_named(
    tmp_path: Path, relay: tuple[str, list[tuple[str, str | None]]]
) -> None:
    ours, other = Authority(tmp_path / "ours"), Authority(tmp_path / "other")
    place, asked = relay
    with served(type("Here", (Relay,), {"asked": []}), ours.context()) as port:
        url = f"https://127.0.0.1:{port}"
        with_ours = HttpVerifier(url, 10, "direct", str(ours.file))
        assert with_ours.log_checkpoint().body == b"hello\n"
        with_ours.close()
        for ca_file in (None, str(other.file)):
            with pytest.raises(UnreachableError, match=r"(?i)certificate.verify.failed"):
                HttpVerifier(url, 10, "direct", ca_file).log_checkpoint()
        # Through a tunnel the same: a proxy sees neither the requests nor a reason to be believed.
        tunnelled = HttpVerifier(url, 10, f"http://{place}", str(ours.file))
        assert tunnelled.log_checkpoint().body == b"hello\n"
        tunnelled.close()
        assert asked == [(f"CONNECT 127.0.0.1:{port}", None)]
        with pytest.raises(UnreachableError):
            HttpVerifier(url, 10, f"http://{place}", str(other.file)).log_checkpoint()


@pytest.mark.parametrize("content", [None, b"", b"not a certificate"])
def test_a_file_without_certificates_is_an_error_at_the_start(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"^upload\.ca_file: "):
        HttpVerifier(URL, 10, None, str(path))


def test_an_answer_without_end_is_cut_off() -> None:
    class Endless(Relay):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x" * 65536)
            except OSError:
                self.close_connection = True

    with served(Endless) as port, pytest.raises(UnreachableError) as caught:
        HttpVerifier(f"http://127.0.0.1:{port}", 10, "direct").log_checkpoint()
    assert caught.value.code == "answer_too_large"


def test_a_verifier_that_says_nothing_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(UnreachableError, match="timed out"):
        HttpVerifier(f"http://127.0.0.1:{mute.getsockname()[1]}", 0.2, "direct").log_checkpoint()


def test_the_direct_way_still_works() -> None:
    with over_http(FakeVerifier()) as url:
        assert HttpVerifier(url, 10).log_checkpoint().status == 200


# -- a verifier that isn't up yet


class Late:
    """Fails some times, and takes the join then."""

    def __init__(self, *before: Answer | UnreachableError) -> None:
        self.before = list(before)
        self.asked: list[float] = []
        self.now = 0.0

    def join(self, request: bytes) -> Answer:
        self.asked.append(self.now)
        match self.before.pop(0) if self.before else Answer(200, "application/json", None, request):
            case UnreachableError() as error:
                raise error
            case answer:
                return answer

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def patient(self, patience_s: float) -> PatientVerifier:
        return PatientVerifier(self, patience_s, self.wait, lambda: self.now)  # type: ignore[arg-type]


REFUSED = UnreachableError("unreachable", "connection refused")


def busy(status: int, after_s: int | None = None) -> Answer:
    return Answer(status, "text/plain", after_s, b"")


def test_a_join_is_tried_again_until_it_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    late = Late(*[REFUSED] * 3, busy(503), busy(429, 12))
    assert late.patient(60).join(b"x").body == b"x"
    assert late.asked == [0, 1, 3, 7, 15, 30]
    assert "connection refused; again in 1 s, for up to 60 s" in caplog.text


def test_a_join_is_not_tried_for_ever() -> None:
    late = Late(*[REFUSED] * 99)
    with pytest.raises(UnreachableError):
        late.patient(10).join(b"x")
    assert late.asked == [0, 1, 3, 7]
    once = Late(busy(503))
    assert once.patient(0).join(b"x").status == 503


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422])
def test_a_refusal_is_not_asked_again(status: int) -> None:
    late = Late(busy(status))
    assert late.patient(60).join(b"x").status == status
    assert late.asked == [0]
