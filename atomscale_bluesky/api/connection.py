"""Sends one request to the settings' endpoint, and returns its answer or raises a typed error.

It belongs to one thread, and keeps its connection open. Every request has a time limit from first to last byte, and
reads an answer of bounded size. Redirects are not followed, netrc is not read, and the API key goes only to the
configured endpoint. Proxies and certificate authorities come from the settings or the usual environment variables. An
endpoint on this machine is always asked directly.
"""

from __future__ import annotations

import contextlib
import functools
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPMessage
from http.cookiejar import DefaultCookiePolicy
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple, TypeVar

import requests
from requests.exceptions import InvalidSchema, InvalidURL
from requests.utils import get_environ_proxies, select_proxy
from urllib3.exceptions import HTTPError, InvalidHeader
from urllib3.util.retry import Retry

from ..errors import ApiKeyError, ApiRefusedError, ApiUnavailableError
from ..model.text import safe
from ..settings import Settings, is_loopback
from . import answers, wire
from .hidden_key import HiddenKey
from .transport import DeadlineAdapter, headers_of

MAX_ANSWER_BYTES = 2**20
MAX_REFUSAL_BYTES = 2**16  # how much of an answer other than a success is read: its status says what it means

# Statuses that can clear without a change of the request: time-outs, too early, too many requests, and all of 5xx.
_TRANSIENT = frozenset({408, 425, 429})

# A path that is sent as it stands. Any other is left to requests, which quotes it.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/_-]+")

T = TypeVar("T")


Headers = Mapping[str, str] | HTTPMessage  # either finds a name in any case


class Answer(NamedTuple):
    """A server's answer."""

    status: int
    headers: Headers
    refusal: bytes = b""  # the beginning of the body, if the answer is no success
    result: Any = None  # the result of reading the body of a success


class Traffic(NamedTuple):
    """What went over a connection: requests, their bodies' bytes, and the seconds until their answers were read."""

    requests: int = 0
    sent_bytes: int = 0
    waited_s: float = 0.0

    def since(self, before: Traffic) -> Traffic:
        """Return what was added to an earlier count."""
        return Traffic(
            self.requests - before.requests, self.sent_bytes - before.sent_bytes, self.waited_s - before.waited_s
        )


class AnswerTooLargeError(ApiUnavailableError):
    """An answer is larger than any of its kind should be."""


class Connection:
    """An HTTP connection to the settings' endpoint, for one thread.

    Args:
        settings: Endpoint, key and limits.
        clock: A monotonic clock.

    `traffic` counts what it has sent so far. `key` keeps the API key out of errors.

    Raises:
        ApiUnavailableError: From both ways to send: no answer from the API, or 408, 425, 429 or 5xx. Try again later.
        ApiKeyError: From both: 401 or 403.
        ApiRefusedError: From both: any other 4xx.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._endpoint = settings.endpoint
        self._timeout_s = settings.request_timeout_s
        self._clock = clock
        self._limit_s = self._timeout_s  # of the present request
        self._deadline = 0.0  # the same
        self.traffic = Traffic()
        self.key = HiddenKey(settings.api_key)
        self._session = _Session()
        self._session.trust_env = not is_loopback(settings.endpoint)
        self._session.auth = _no_auth  # without one, requests would read netrc
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))  # no cookie is kept or sent
        self._adapter = DeadlineAdapter()
        # By whether the POST has a body: the URL before the path and the headers, as requests sent them.
        self._headers: dict[bool, tuple[str, bytes]] = {}
        self._session.mount("https://", self._adapter)
        self._session.mount("http://", self._adapter)
        self._session.headers.update({"User-Agent": _user_agent(), "Accept": "application/json"})
        # An answer could decompress to many times its size. So none is asked for, and a compressed one is refused.
        self._session.headers["Accept-Encoding"] = "identity"
        self._session.headers["Cache-Control"] = "no-store"  # a proxy's copy would have an old time, or old points
        if settings.api_key:
            self._session.headers["X-API-KEY"] = settings.api_key
        # Passed with each request: a session's own `verify` can be overridden by the environment.
        self._verify = settings.ca_bundle or None

    def send(self, request: wire.Request, max_bytes: int = MAX_ANSWER_BYTES, *, limit_s: float | None = None) -> bytes:
        """Send a request and return the body of its 2xx answer. `limit_s` is a shorter time limit than the usual."""
        return self.send_and_read(request, max_bytes, _join, limit_s=limit_s)

    def send_and_read(
        self,
        request: wire.Request,
        max_bytes: int,
        read_body: Callable[[Iterator[bytes]], T],
        *,
        limit_s: float | None = None,
    ) -> T:
        """Send a request and return what `read_body` makes of the parts of its 2xx answer's body."""
        self._limit_s = self._timeout_s if limit_s is None else min(limit_s, self._timeout_s)
        return self.key.kept_from_errors(lambda: self._send_and_read(request, max_bytes, read_body))

    def _send_and_read(self, request: wire.Request, max_bytes: int, read_body: Callable[[Iterator[bytes]], T]) -> T:
        begin = self._clock()
        self._deadline = begin + self._limit_s
        what = f"{request.method} {request.path.partition('?')[0]}"
        self._adapter.begin(self._deadline)
        try:
            answer = self._ask_over_open_connection(request, max_bytes, read_body) or self._ask_with_requests(
                request, max_bytes, read_body
            )
        except answers.AnswerError:
            self._check_time(what)  # a connection that was cut looks like the end of an answer
            raise
        except requests.exceptions.ConnectTimeout as error:
            text = f"{what}{self._proxy_text()}: no connection in time"
            raise ApiUnavailableError(text, may_have_been_applied=False) from error
        except (HTTPError, HTTPException, OSError) as error:  # requests' own errors are OSErrors
            self._check_time(what)
            innermost = _innermost(error)
            never_left = isinstance(innermost, ConnectionRefusedError | socket.gaierror | InvalidSchema | InvalidURL)
            text = f"{what}{self._proxy_text()}: {_reason(innermost)}"
            raise ApiUnavailableError(text, may_have_been_applied=not never_left) from error
        finally:
            self._adapter.end()
            sent, size = self.traffic, sum(map(len, request.parts))
            self.traffic = Traffic(sent.requests + 1, sent.sent_bytes + size, sent.waited_s + self._clock() - begin)
        if _is_success(answer.status):
            self._check_time(what)
        self._raise_unless_success(what, answer)
        return answer.result

    def _proxy_text(self) -> str:
        """Return a text that names the proxy through which requests go, without its user and password; else empty."""
        url = f"{self._endpoint}/"
        proxy = select_proxy(url, get_environ_proxies(url)) if self._session.trust_env else None
        if not proxy:
            return ""
        host = proxy.rpartition("@")[2].rpartition("://")[2].partition("/")[0]
        return f" through the proxy {safe(host, 200)}"

    def _ask_with_requests(
        self, request: wire.Request, max_bytes: int, read_body: Callable[[Iterator[bytes]], object]
    ) -> Answer:
        """Send a request with requests, which chooses a proxy, sets up TLS, connects and makes the headers."""
        with self._session.request(
            request.method,
            f"{self._endpoint}/{request.path}",
            data=request.body,
            headers={"Content-Type": "application/json"} if request.parts else None,
            timeout=(min(10.0, self._limit_s), self._limit_s),
            allow_redirects=False,
            verify=self._verify,
            stream=True,
        ) as response:
            before, path, rest = (response.request.path_url or "").rpartition(request.path)
            if request.method == "POST" and path and not rest:
                self._headers[bool(request.parts)] = before, headers_of(response.request)
            read = lambda size: response.raw.read1(size, decode_content=False)  # noqa: E731
            return self._answer(response.status_code, response.headers, read, max_bytes, read_body)

    def _ask_over_open_connection(
        self, request: wire.Request, max_bytes: int, read_body: Callable[[Iterator[bytes]], object]
    ) -> Answer | None:
        """Send a POST like an earlier one over the open connection, which is much faster.

        Return None if that is not possible.
        """
        known = self._headers.get(bool(request.parts)) if request.method == "POST" else None
        if known is None or not _PLAIN_PATH.fullmatch(request.path):
            return None
        before, headers = known
        head = f"POST {before}{request.path} HTTP/1.1\r\n".encode() + headers
        with self._adapter.exchange(head, request.parts, self._limit_s) as response:
            if response is None:
                return None
            return self._answer(response.status, response.headers, response.read1, max_bytes, read_body)

    def _answer(
        self,
        status: int,
        headers: Headers,
        read: Callable[[int], bytes],
        max_bytes: int,
        read_body: Callable[[Iterator[bytes]], object],
    ) -> Answer:
        compressed = headers.get("Content-Encoding", "identity") != "identity"
        if not _is_success(status):
            return Answer(status, headers, refusal=b"" if compressed else _beginning(read))
        if compressed:
            raise ApiUnavailableError("the answer has an encoding that was not asked for", status=status)
        return Answer(status, headers, result=read_body(self._body_parts(read, max_bytes, status)))

    def _body_parts(self, read: Callable[[int], bytes], max_bytes: int, status: int) -> Iterator[bytes]:
        """Yield the parts of a body.

        The time limit is for the server: time spent on processing a part does not count.
        """
        size = 0
        while part := read(2**16):
            size += len(part)
            if size > max_bytes:
                raise AnswerTooLargeError(f"an answer of more than {max_bytes} bytes", status=status)
            self._check_time("the answer")
            yielded_at = self._clock()
            yield part
            self._deadline += self._clock() - yielded_at
            self._adapter.begin(self._deadline)

    def _check_time(self, what: str) -> None:
        if self._clock() > self._deadline:
            raise ApiUnavailableError(f"{what}: no complete answer within {self._limit_s:g} s")

    def _raise_unless_success(self, what: str, answer: Answer) -> None:
        status = answer.status
        if _is_success(status):
            return
        refusal = self.key.replaced_in(answer.refusal)
        detail = answers.error_text(refusal)
        text = f"{what} was answered {status}: {detail}"
        if status in {401, 403}:
            raise ApiKeyError(text, status=status)
        if status in _TRANSIENT or status >= 500:
            raise ApiUnavailableError(text, status=status, retry_after_s=_retry_after(answer.headers))
        if status < 200:
            raise ApiUnavailableError(f"{what} was answered {status}, which no request here asks for", status=status)
        if status < 400:
            raise ApiUnavailableError(f"{what} was answered {status}, a redirect, which is not followed", status=status)
        raise ApiRefusedError(text, status=status, detail=detail, answer=refusal)

    def cut_if_late(self) -> None:
        """Break off a request that is past its time limit. Another thread calls this every second or so."""
        self._adapter.cut_if_late(self._clock())

    def close(self) -> None:
        """Close the connection."""
        self._session.close()


@functools.cache
def _user_agent() -> str:
    try:
        return f"atomscale-bluesky/{version('atomscale-bluesky')}"
    except PackageNotFoundError:  # a source tree on the path, not installed
        return "atomscale-bluesky"


class _Session(requests.Session):
    """Does not read a redirect's target: for that requests would decompress all of its body, however large it is."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return None, as for an answer that is no redirect."""


def _join(parts: Iterable[bytes]) -> bytes:
    return b"".join(parts)


def _is_success(status: int) -> bool:
    return 200 <= status < 300


def _beginning(read: Callable[[int], bytes]) -> bytes:
    """Return the beginning of an answer other than a success. An error in reading it does not change its meaning."""
    body = bytearray()
    with contextlib.suppress(HTTPError, HTTPException, OSError):
        while len(body) < MAX_REFUSAL_BYTES and (part := read(MAX_REFUSAL_BYTES - len(body))):
            body += part
    return bytes(body)


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _innermost(error: BaseException) -> BaseException:
    """Return the root cause of a failed request. The errors around it quote the request, this one does not."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return error


def _reason(error: BaseException) -> str:
    """Return an error as one line. It may quote what a server sent instead of HTTP."""
    return safe(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__, 300)


def _retry_after(headers: Headers) -> float | None:
    text = headers.get("Retry-After")
    if not text:
        return None
    try:
        if text.strip().isdigit():
            return Retry(0).parse_retry_after(text)
        # A date is by the server's clock. The Date header gives that clock's present time, and so how far away the date
        # is.
        then = parsedate_to_datetime(text).timestamp()
        date = headers.get("Date")
        return max(0.0, then - (parsedate_to_datetime(date).timestamp() if date else time.time()))
    except (InvalidHeader, ValueError, TypeError, OverflowError):
        return None
