"""How to get to the verifier: through which proxy, and whose certificates count. Pure but for the environment."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from keyturn_agent.errors import UsageError
from keyturn_agent.settings import DIRECT, check_proxy


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy without its credentials, and those apart: only the header carries them."""

    url: str
    credentials: str | None

    def __repr__(self) -> str:
        return f"Proxy({self.url})"


def proxy_for(url: str, setting: str | None, environ: Mapping[str, str]) -> Proxy | None:
    """The proxy for a verifier's URL, or None for the direct way.

    :param setting: ``upload.proxy``; None asks the environment, in lower case before upper: ``<scheme>_proxy``,
        then ``all_proxy``, unless ``no_proxy`` names the host.
    :raises UsageError: ``bad_setting``; what is wrong isn't quoted, it may hold a password.
    """
    if setting is not None:
        return None if setting == DIRECT else _proxy("upload.proxy", setting)
    parts = urlsplit(url)
    if _exempt(parts.hostname or "", parts.port, _environment(environ, "no_proxy")):
        return None
    for name in (f"{parts.scheme}_proxy", "all_proxy"):
        if value := _environment(environ, name):
            return _proxy(name, value if "://" in value else f"http://{value}")
    return None


def _environment(environ: Mapping[str, str], name: str) -> str:
    return (environ.get(name) or environ.get(name.upper()) or "").strip()


def _proxy(name: str, value: str) -> Proxy:
    check_proxy(name, value)
    parts = urlsplit(value)
    credentials = None
    if parts.username is not None:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Proxy(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", credentials)


def _exempt(host: str, port: int | None, no_proxy: str) -> bool:
    """``no_proxy``: names by comma, each meaning itself and what is under it; ``*`` means all."""
    for entry in (part.strip().lower() for part in no_proxy.split(",")):
        name, colon, number = entry.rpartition(":")
        if colon and number.isdigit() and "]" not in number and name.count(":") == 0:
            if number != str(port):
                continue
            entry = name
        entry = entry.strip("[]").removeprefix("*").removeprefix(".")
        if (not entry and "*" in no_proxy) or (entry and (host == entry or host.endswith(f".{entry}"))):
            return True
    return False


def trust_context(ca_file: str | None) -> ssl.SSLContext:
    """A TLS context that checks certificate and host name, against ``ca_file`` or the system's certificates.

    :raises UsageError: ``bad_setting``: the file can't be read or holds no certificate.
    """
    if ca_file is not None and not Path(ca_file).is_file():
        raise UsageError("bad_setting", f"upload.ca_file: no file {ca_file}")
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise UsageError("bad_setting", f"upload.ca_file: {ca_file} holds no certificates: {error}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
