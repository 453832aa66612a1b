"""How the server is reached: TLS, what is no HTTP, logs for programs."""

import datetime
import json
import logging
import socket
import sys
from pathlib import Path

import pytest
import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from keyturn_verifier.logs import JsonFormatter
from tests.support.verifier import Verifier, call, command


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of its own for 127.0.0.1."""
    import ipaddress

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert, secret = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert, secret


def test_https_with_a_given_certificate_and_json_logs(tmp_path: Path) -> None:
    import subprocess
    import time

    cert, key = certificate(tmp_path)
    state, port_file, said = tmp_path / "state", tmp_path / "port", tmp_path / "log"
    assert call("init", "--state", state, "--deployment", "a.example").returncode == 0
    arguments = command(
        *("serve", "--state", state, "--port", "0", "--port-file", port_file),
        *("--tls-cert", cert, "--tls-key", key, "--log-format", "json"),
    )
    with said.open("wb") as out, subprocess.Popen(arguments, stderr=out) as process:
        try:
            while not port_file.exists():
                assert process.poll() is None, said.read_text()
                time.sleep(0.02)
            url = f"https://127.0.0.1:{port_file.read_text().strip()}/healthz"
            with urllib3.PoolManager(ca_certs=str(cert), cert_reqs="CERT_REQUIRED") as pool:
                assert pool.request("GET", url, retries=False).status == 200
            with urllib3.PoolManager(cert_reqs="CERT_REQUIRED") as pool, pytest.raises(urllib3.exceptions.HTTPError):
                pool.request("GET", url, retries=False)
        finally:
            process.terminate()
            process.wait(60)
    assert "ready on https://" in said.read_text()


@pytest.mark.parametrize("given", [("--tls-cert", "x"), ("--tls-key", "x")])
def test_a_certificate_needs_its_key(tmp_path: Path, given: tuple[str, str]) -> None:
    done = call("serve", "--state", tmp_path, *given)
    assert (done.returncode, "go together" in done.stderr) == (2, True)


def test_a_certificate_that_is_none(tmp_path: Path) -> None:
    assert call("init", "--state", tmp_path / "s", "--deployment", "a.example").returncode == 0
    bad = tmp_path / "bad.pem"
    bad.write_text("nothing")
    import subprocess

    arguments = command("serve", "--state", tmp_path / "s", "--port", "0", "--tls-cert", bad, "--tls-key", bad)
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"keyturn: error: --tls-cert {bad}")


def test_what_is_no_http_gets_a_problem_too(verifier: Verifier) -> None:
    host, port = verifier.client.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        plain.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        answer = b""
        while part := plain.recv(4_096):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/problem+json" in head
    assert json.loads(body)["code"] == "bad_request"


def test_a_line_of_json() -> None:
    try:
        raise ValueError("no\nline")
    except ValueError:
        record = logging.LogRecord("a.b", logging.ERROR, "f", 1, "two\nlines of %s", ("text",), sys.exc_info())
    line = JsonFormatter().format(record)
    assert "\n" not in line
    shown = json.loads(line)
    assert (shown["level"], shown["logger"], shown["message"]) == ("error", "a.b", "two\nlines of text")
    assert "ValueError" in shown["trace"]
    assert shown["time"].endswith("Z")
