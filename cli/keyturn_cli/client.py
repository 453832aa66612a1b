"""The verifier's API as a reader sees it: bounded in time and size, without redirects.

Certificates are always checked, against the system's authorities or those that ``SSL_CERT_FILE`` names. A token
goes over TLS only, or to this machine.
"""

import re
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlencode

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError, MaxRetryError, SSLError
from urllib3.util import Url, parse_url

from keyturn_cli import __version__
from keyturn_cli.errors import CliError, Exit
from keyturn_protocol.api import PAGE_BYTES, PAGE_ITEMS, PROBLEM_TYPE, Page, Problem
from keyturn_protocol.canonical import parse
from keyturn_protocol.errors import ProtocolError

T = TypeVar("T")

CONNECT_S: Final = 10.0
READ_S: Final = 60.0
"""Without a byte; a whole answer may take :data:`ANSWER_S`."""
ANSWER_S: Final = 300.0
PAGES: Final = 100_000
_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})
_TOKEN: Final = re.compile(r"[!-~]{1,512}", re.ASCII)


class Client:
    """Reads lists from one verifier."""

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
        if token is not None:
            self._headers["authorization"] = f"Bearer {token}"
        timeout = urllib3.Timeout(connect=min(CONNECT_S, timeout_s), read=timeout_s)
        self._pool = urllib3.PoolManager(timeout=timeout, retries=False, cert_reqs="CERT_REQUIRED")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pool.clear()

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
            page = self._page(f"{path}?{urlencode(asked)}", kind)
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

    def _get(self, target: str) -> bytes:
        """The body of a 200."""
        url = self.base + target
        try:
            response = self._pool.request(
                "GET", url, headers=self._headers, redirect=False, preload_content=False, decode_content=False
            )
            try:
                body = _bounded(response)
            finally:
                response.close()
        except SSLError as error:
            raise self._unreachable(
                f"its certificate isn't trusted: {error}", "SSL_CERT_FILE names a private CA"
            ) from None
        except MaxRetryError as error:
            raise self._unreachable(str(error.reason)) from None
        except HTTPError as error:
            raise self._unreachable(str(error)) from None
        if response.status == 200:
            return body
        raise self._refused(response, body)

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
                return CliError(f"{problem.title}: {problem.detail} ({status} {problem.code})", exit=exit_, hint=hint)
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


def _bounded(response: urllib3.BaseHTTPResponse) -> bytes:
    """The body, up to its cap in bytes and time."""
    parts, size = list[bytes](), 0
    deadline_s = time.monotonic() + ANSWER_S
    while part := response.read(65_536):
        parts.append(part)
        size += len(part)
        if size > PAGE_BYTES:
            raise HTTPError(f"answer over its cap of {PAGE_BYTES} bytes")
        if time.monotonic() > deadline_s:
            raise HTTPError(f"answer takes more than {ANSWER_S:.0f} s")
    return b"".join(parts)


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
