"""One request to the HTTP API: retried where a retry can help, refused with the domain's errors.

Every change carries an ``Idempotency-Key`` that stays the same over its retries, so a request whose
answer was lost is simply sent again. What a retry may mend is tried again with jittered pauses that
double, never sooner than the server's ``Retry-After``, until ``RETRY_S`` have passed: connections
that break, 408, 429, 502, 503 and 504. An address where nobody listens is given up after
``CONNECTS_MAX`` tries. Problem answers (RFC 9457) become the exceptions of ``manta.errors``.

This is one of the few modules that reads the clock and draws random numbers itself: it is a door.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from manta import __version__, errors
from manta.errors import InvalidRequest, MantaError, NotReady, OutcomeUnknown, Overloaded

RETRY_S = 60.0
FIRST_PAUSE_S = 0.2
PAUSE_MAX_S = 5.0
RETRY_AFTER_MAX_S = 60.0
CONNECTS_MAX = 4
PROBLEM = "application/problem+json"
_PASSING = (408, 429, 502, 503, 504)
_STANDARD = ("type", "title", "status", "detail", "instance", "code")


class Http:
    """The connection to one Manta. Threads may share it."""

    def __init__(
        self,
        url: str,
        api_key: str,
        timeout_s: float,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise InvalidRequest(
                f"{url!r:.200} is not the URL of a Manta", path="url", expected="http://host:port"
            )
        if not api_key.isascii() or not api_key.isprintable() or not api_key:
            raise InvalidRequest("this is not an API key", path="api_key", expected="manta_…")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._client = httpx.Client(
            base_url=f"{self.url}/v1",
            headers={
                "Authorization": f"Bearer {api_key}",
                "User-Agent": f"manta-client/{__version__}",
            },
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0)),
            transport=transport,
        )

    def close(self) -> None:
        self._client.close()

    def get(self, path: str, **params: Any) -> Any:
        """The JSON of a page; parameters that are ``None`` are left out."""
        given = {name: value for name, value in params.items() if value is not None}
        return self.request("GET", path, params=given).json()

    def post(self, path: str, body: Any = None, key: str | None = None) -> Any:
        """Send JSON under a key, a fresh one if none is given; the JSON of the answer."""
        return self.send("POST", path, body, key)

    def put(self, path: str, body: Any, key: str | None = None) -> Any:
        return self.send("PUT", path, body, key)

    def send(self, method: str, path: str, body: Any = None, key: str | None = None) -> Any:
        headers = {"Idempotency-Key": key or new_key()}
        answer = self.request(method, path, json=body, headers=headers)
        return answer.json() if answer.content else None

    def pages(self, path: str, **params: Any) -> Iterator[dict[str, Any]]:
        """Every item of a list, page after page."""
        cursor: str | None = None
        while True:
            page = self.get(path, cursor=cursor, **params)
            yield from page["items"]
            cursor = page["next"]
            if cursor is None:
                return

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """An answer below 400. Raises the domain's errors, after retries where they may help."""
        retries = Retries()
        while True:
            try:
                response = self._client.request(method, path, **options)
            except httpx.TransportError as error:
                retries.after(unreachable(error, self.url))
                continue
            if response.status_code < 400:
                return response
            self._refused(response, retries)

    @contextmanager
    def stream(
        self, method: str, path: str, retries: Retries, **options: Any
    ) -> Iterator[httpx.Response]:
        """A body as it comes, for one try; whoever reads it goes on after a break with ``retries``.

        Raises as ``request`` does, and ``httpx.TransportError`` where the body breaks off.
        """
        while True:
            with self._client.stream(method, path, **options) as response:
                if response.status_code < 400:
                    yield response
                    return
                response.read()
            self._refused(response, retries)

    def _refused(self, response: httpx.Response, retries: Retries) -> None:
        """Raise the answer's error, or return after a pause where it may be tried again."""
        error = error_of(response)
        if response.status_code not in _PASSING:
            raise error
        retries.after(error, _retry_after_s(response))


class Retries:
    """The pauses of one request, until its time is over."""

    def __init__(self) -> None:
        self._until = time.monotonic() + RETRY_S
        self._pause_s = FIRST_PAUSE_S
        self._connects = 0

    def after(self, error: MantaError, at_least_s: float = 0.0) -> None:
        """Wait before the next try. Raises the error where there shall be none."""
        if error.details.get("refused"):
            self._connects += 1
            if self._connects >= CONNECTS_MAX:
                raise error
        pause_s = max(at_least_s, self._pause_s) * random.uniform(1.0, 1.5)
        if time.monotonic() + pause_s > self._until:
            raise error
        time.sleep(pause_s)
        self._pause_s = min(self._pause_s * 2, PAUSE_MAX_S)

    def progress(self) -> None:
        """Something came through: the time begins anew."""
        self._until, self._pause_s = time.monotonic() + RETRY_S, FIRST_PAUSE_S


def new_key() -> str:
    """An ``Idempotency-Key`` for one change."""
    return uuid.uuid4().hex


def unreachable(error: httpx.TransportError, url: str) -> MantaError:
    """A connection that failed: before the request went out, or it is not known when."""
    if isinstance(error, httpx.UnsupportedProtocol | httpx.ProxyError):
        return InvalidRequest(f"{url} cannot be reached: {error}", path="url")
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        expected = "a running Manta: `manta up` starts one"
        message = f"nobody answers at {url}: {error}"
        return NotReady(message, path=url, expected=expected, refused=True)
    return OutcomeUnknown(f"the connection to {url} broke: {error or type(error).__name__}")


def error_of(response: httpx.Response) -> MantaError:
    """The exception that a refusal means."""
    problem = _problem(response)
    status = response.status_code
    if problem is None:
        message = f"{response.request.method} {response.request.url.path} was answered {status}"
        if status in _PASSING:
            return Overloaded(message)
        return MantaError(f"{message}: {response.text[:200]}", status=status)
    details = {name: value for name, value in problem.items() if name not in _STANDARD}
    kind = _KINDS.get(str(problem.get("code")), MantaError)
    text = str(problem.get("detail") or problem.get("title") or f"answered {status}")
    return _made(kind, text, details)


def error_of_item(item: Mapping[str, Any]) -> MantaError:
    """The exception that a refused item of a batch means."""
    details = {name: value for name, value in item.items() if name not in ("code", "message")}
    return _made(_KINDS.get(str(item.get("code")), MantaError), str(item.get("message")), details)


def _made(kind: type[MantaError], message: str, details: dict[str, Any]) -> MantaError:
    details = {name: value for name, value in details.items() if name.isidentifier()}
    if issubclass(kind, InvalidRequest):
        for name in ("path", "expected"):
            details[name] = str(details.get(name, ""))
    return kind(message, **{k: v for k, v in details.items() if k not in ("message", "self")})


def _problem(response: httpx.Response) -> dict[str, Any] | None:
    if response.headers.get("content-type", "").partition(";")[0] != PROBLEM:
        return None
    try:
        problem = response.json()
    except ValueError:
        return None
    return problem if isinstance(problem, dict) else None


def _retry_after_s(response: httpx.Response) -> float:
    """Seconds of ``Retry-After`` (RFC 9110 §10.2.3); its date form is not used by Manta."""
    text = response.headers.get("retry-after", "")
    return min(float(text), RETRY_AFTER_MAX_S) if text.isascii() and text.isdigit() else 0.0


def _kinds(kind: type[MantaError]) -> Iterator[type[MantaError]]:
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from _kinds(below)


# Codes that only HTTP knows are requests to be mended, or a key that may not do this.
_KINDS: dict[str, type[MantaError]] = {kind.code: kind for kind in _kinds(MantaError)} | {
    "malformed": InvalidRequest,
    "too_large": InvalidRequest,
    "method": InvalidRequest,
    "media_type": InvalidRequest,
    "unauthorized": errors.Forbidden,
    "too_many": Overloaded,
    "fenced": NotReady,
}
