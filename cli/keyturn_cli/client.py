"""The verifier's API as a reader sees it: bounded in time and size, without redirects.

Certificates are always checked, against the system's authorities or those that ``SSL_CERT_FILE`` names. A token
goes over TLS only, or to this machine.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlencode

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError, MaxRetryError, SSLError
from urllib3.util import Url, parse_url

from keyturn_cli import __version__
from keyturn_cli.errors import CliError, Exit
from keyturn_protocol.api import PAGE_BYTES, PAGE_ITEMS, PROBLEM_TYPE, Page, Problem, ProblemCode
from keyturn_protocol.authority import Why
from keyturn_protocol.canonical import Record, encode_record, parse
from keyturn_protocol.errors import ProtocolError

T = TypeVar("T")

CONNECT_S: Final = 10.0
READ_S: Final = 60.0
"""Without a byte; a whole answer may take :data:`ANSWER_S`."""
ANSWER_S: Final = 300.0
PAGES: Final = 100_000
_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})
_TOKEN: Final = re.compile(r"[!-~]{1,512}", re.ASCII)


authorities: ContextVar[Path | None] = ContextVar("authorities", default=None)
"""A file with the certificates of the only authorities that are trusted; None: the system's."""
_CA_HINT: Final = "keyturn --ca FILE … names a private CA"


class NotThere(CliError):
    """The verifier has nothing of that name."""


class Client:
    """Asks one verifier."""

    def __init__(self, verifier: str, token: str | None, *, timeout_s: float = READ_S) -> None:
        """:raises CliError: a URL or token that can't be used."""
        self.base = check_url(verifier)
        if token is not None and not _TOKEN.fullmatch(token):
            raise CliError("the token holds characters that no token has", exit=Exit.USAGE)
        self._headers = {
            "accept": f"application/json, {PROBLEM_TYPE}",
            "accept-encoding": "identity",
            "user-agent": f"keyturn/{__version__}",
        }
        self.has_token = token is not None
        if token is not None:
            self._headers["authorization"] = f"Bearer {token}"
        timeout = urllib3.Timeout(connect=min(CONNECT_S, timeout_s), read=timeout_s)
        settings: dict[str, Any] = {"timeout": timeout, "retries": False, "cert_reqs": "CERT_REQUIRED"}
        if (ca := authorities.get()) is not None:
            settings["ca_certs"] = str(ca)
        proxy = proxy_of(self.base, os.environ)
        self._pool = urllib3.PoolManager(**settings) if proxy is None else urllib3.ProxyManager(proxy, **settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.clear()

    def one(self, path: str, kind: type[T], **query: str) -> T:
        """One value."""
        target = f"{path}?{_encoded(query)}" if query else path
        return self._parsed(target, self._get(target), kind)

    def content(self, path: str, limit: int | None = None) -> bytes:
        """An answer's bytes as they are: one that isn't JSON, or one whose bytes are signed."""
        return self._get(path, limit=limit)

    def send(self, path: str, record: Record | None, kind: type[T]) -> T:
        """Post a value; returns the answer."""
        body = b"" if record is None else encode_record(record)
        return self._parsed(path, self._get(path, "POST", body), kind)

    def send_bytes(self, path: str, body: bytes, kind: type[T]) -> T:
        """Post bytes that are signed, as they are; returns the answer."""
        return self._parsed(path, self._get(path, "POST", body), kind)

    def give(self, path: str, body: bytes) -> None:
        """Post bytes as they are; what is answered doesn't matter."""
        self._get(path, "POST", body)

    def stream(self, path: str, **query: str) -> Iterator[bytes]:
        """A long answer, piece by piece."""
        with self._asked(f"{path}?{_encoded(query)}") as response:
            if response.status != 200:
                raise self._refused(response, _bounded(response))
            yield from response.stream(1 << 18, decode_content=False)

    def _parsed(self, target: str, body: bytes, kind: type[T]) -> T:
        try:
            value: T = parse(body, kind)
        except ProtocolError as error:
            raise self._broken(target, str(error)) from None
        return value

    def items(self, path: str, kind: type[T], most: int | None = None, **query: str) -> Iterator[T]:
        """Every item of a list, page by page, or the first ``most``.

        :raises CliError: refused by the verifier, out of reach, or an answer that isn't such a list.
        """
        after: str | None = None
        left = most
        for _ in range(PAGES):
            asked = dict(query, limit=str(PAGE_ITEMS if left is None else min(left, PAGE_ITEMS)))
            if after is not None:
                asked["after"] = after
            page = self._page(f"{path}?{_encoded(asked)}", kind)
            yield from page.items if left is None else page.items[:left]
            left = None if left is None else left - len(page.items)
            if page.next is None or (left is not None and left <= 0):
                return
            if page.next == after:
                raise self._broken(path, "a page that points to itself")
            after = page.next
        raise self._broken(path, f"more than {PAGES} pages")

    def _page(self, target: str, kind: type[T]) -> Page[T]:
        body = self._get(target)
        try:
            page: Page[T] = parse(body, Page[kind])  # type: ignore[valid-type]
        except ProtocolError as error:
            raise self._broken(target, str(error)) from None
        return page

    def _get(self, target: str, method: str = "GET", body: bytes | None = None, limit: int | None = None) -> bytes:
        """The body of a 200."""
        with self._asked(target, method, body) as response:
            data = _bounded(response, limit)
        if response.status in (200, 204):
            return data
        raise self._refused(response, data)

    @contextmanager
    def _asked(self, target: str, method: str = "GET", body: bytes | None = None) -> Iterator[urllib3.BaseHTTPResponse]:
        """An answer whose body isn't read yet."""
        headers = self._headers if body is None else {**self._headers, "content-type": "application/json"}
        try:
            response = self._pool.request(
                method,
                self.base + target,
                body=body,
                headers=headers,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            try:
                yield response
            finally:
                response.close()
        except SSLError as error:
            raise self._unreachable(f"its certificate isn't trusted: {error}", _CA_HINT) from None
        except MaxRetryError as error:
            hint = _CA_HINT if isinstance(error.reason, SSLError) else None
            raise self._unreachable(str(error.reason), hint) from None
        except HTTPError as error:
            raise self._unreachable(str(error)) from None

    def _refused(self, response: urllib3.BaseHTTPResponse, body: bytes) -> CliError:
        """What the verifier says about why not."""
        status = response.status
        hint = {
            401: "give a reader's token: --token-file FILE, or KEYTURN_TOKEN",
            403: "this token may not read that; ask the verifier's operator for one that may",
            429: "try again in a while",
            503: "try again in a while",
        }.get(status)
        exit_ = Exit.UNDECIDED if status >= 500 or status == 429 else Exit.REJECTED
        if 300 <= status < 400:
            target = response.headers.get("location", "nowhere")
            return CliError(
                f"{self.base} redirects to {target}, which is not followed", exit=exit_, hint="give the address itself"
            )
        kind = response.headers.get("content-type", "").partition(";")[0].strip()
        if kind == PROBLEM_TYPE:
            try:
                problem: Problem = parse(body, Problem)
            except ProtocolError:
                pass
            else:
                kind_ = NotThere if problem.code == ProblemCode.NOT_FOUND else CliError
                hint = _explained(problem) or hint
                return kind_(f"{problem.title}: {problem.detail} ({status} {problem.code})", exit=exit_, hint=hint)
        return CliError(
            f"{self.base} answered {status} without saying why (expected {PROBLEM_TYPE}, got {kind or 'nothing'})",
            exit=exit_,
            hint=hint or "is this address a Keyturn verifier's?",
        )

    def _unreachable(self, why: str, hint: str | None = None) -> CliError:
        # urllib3 puts its own objects into its messages: only what follows them is for people.
        why = re.sub(r"^<?[\w.]+\(?[^:]*\)?>?: (?=\S)", "", why) if "urllib3" in why or "Connection(" in why else why
        return CliError(
            f"can't reach {self.base}: {why}", exit=Exit.UNDECIDED, hint=hint or "is keyturn-verifier serve running?"
        )

    def _broken(self, target: str, why: str) -> CliError:
        return CliError(f"{self.base}{target}: not a list as this version knows it: {why}", exit=Exit.UNDECIDED)


def _encoded(query: Mapping[str, str]) -> str:
    """A query as it stands in a URL.

    :raises CliError: bytes of the command line that are no UTF-8.
    """
    try:
        return urlencode(query)
    except UnicodeEncodeError as error:
        raise CliError(f"not UTF-8: {error.object!a}", exit=Exit.USAGE) from None


def _explained(problem: Problem) -> str | None:
    """Where to read about the reason of a refusal, which the detail begins with."""
    why = problem.detail.partition(":")[0]
    return f"keyturn explain {why}" if problem.code == ProblemCode.STATEMENT_REFUSED and why in set(Why) else None


def _bounded(response: urllib3.BaseHTTPResponse, limit: int | None = None) -> bytes:
    """The body, up to its cap in bytes and time."""
    parts, size, cap = list[bytes](), 0, PAGE_BYTES if limit is None else limit
    deadline_s = time.monotonic() + ANSWER_S
    while part := response.read(65_536):
        parts.append(part)
        size += len(part)
        if size > cap:
            raise HTTPError(f"answer over its cap of {cap} bytes")
        if time.monotonic() > deadline_s:
            raise HTTPError(f"answer takes more than {ANSWER_S:.0f} s")
    return b"".join(parts)


def proxy_of(base: str, environment: Mapping[str, str]) -> str | None:
    """The proxy that the environment names for a URL, as curl reads it; this machine is never asked through one."""
    url = parse_url(base)
    host = (url.host or "").strip("[]")
    if url.host in _LOCAL:
        return None
    for name in (environment.get("no_proxy") or environment.get("NO_PROXY") or "").split(","):
        suffix = name.strip().lstrip(".").lower()
        if suffix == "*" or (suffix and (host == suffix or host.endswith("." + suffix))):
            return None
    names = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    proxy = next((environment[name] for name in names if environment.get(name)), None)
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"


def check_url(text: str) -> str:
    """The base of a verifier's URL, without a slash at its end.

    :raises CliError: not http(s), a name and password in it, a query, or http to another machine.
    """
    try:
        url: Url = parse_url(text)
    except LocationParseError:
        url = Url()
    why: Any = None
    if url.scheme not in ("http", "https") or not url.host:
        why = "expected https://HOST[:PORT]"
    elif url.auth is not None:
        why = "expected no user and password in it"
    elif url.query is not None or url.fragment is not None:
        why = "expected no query or fragment in it"
    elif url.scheme == "http" and url.host not in _LOCAL:
        why = "expected https: a token over http could be read on the way"
    if why is not None:
        shown = text if url.auth is None else "…"
        raise CliError(f"--verifier: {why} (got {shown})", exit=Exit.USAGE)
    return url.url.rstrip("/")
