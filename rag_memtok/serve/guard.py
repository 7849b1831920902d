"""What stands before every request: who may ask, from where, how much, how often.

A page of somebody else's that a browser shows can reach a server on loopback. It is kept out by
what it cannot forge: the Host (DNS rebinding), the Origin, Sec-Fetch-Site, and a kind of body or a
header that a browser asks about first, which is never granted (no CORS).
"""

import asyncio
import hmac
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from rag_memtok.serve.metrics import Metrics
from rag_memtok.serve.refusals import body_of, encode_json

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

UPLOAD = "x-rag-memtok-name"  # the header that names an uploaded file; no form can set it
OPEN = ("/", "/health")  # and what is under /static/: needs no token
BODY = 1_000_000  # bytes of JSON
REST = 32 * BODY  # bytes of a refused body that are read, so that its client reads the reply
SECONDS = 60.0  # for a body, or the rest of a refused one, to arrive
ADDRESSES = 4096  # whose rate is remembered
READS = frozenset({"GET", "HEAD"})
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


@dataclass(frozen=True, slots=True)
class Rules:
    """Who may ask.

    `names` are what the server may be called by; `token` "" lets everybody in; `rate` is requests a
    second of one address, 0 for no limit.
    """

    names: frozenset[str]
    token: str
    rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The reason why a request is refused, and the status of the reply."""

    status: int
    code: str
    message: str
    remedy: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(slots=True)
class Rate:
    """How many requests each address has left: `rate` a second, twice that at once."""

    rate: float
    left: "OrderedDict[str, tuple[float, float]]" = field(default_factory=OrderedDict)

    def wait(self, address: str) -> float:
        """The seconds until one more request may be made; 0: it may be made now, and is counted."""
        if not self.rate:
            return 0.0
        now, most = time.monotonic(), max(2 * self.rate, 1.0)
        left, since = self.left.pop(address, (most, now))
        left = min(most, left + (now - since) * self.rate)
        self.left[address] = (left - 1 if left >= 1 else left, now)
        while len(self.left) > ADDRESSES:
            self.left.popitem(last=False)
        return 0.0 if left >= 1 else (1 - left) / self.rate


class Guard:
    """An ASGI application around another, which gets only what may pass.

    `handles` says whether the other has something to do for a path and a method.
    """

    def __init__(
        self, app: App, rules: Rules, metrics: Metrics, handles: Callable[[Scope], bool]
    ) -> None:
        self.app, self.rules, self.metrics, self._handles = app, rules, metrics, handles
        self._rate = Rate(rules.rate)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through, or refuses it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # no websockets here: the server closes it

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
                route = getattr(scope.get("route"), "path", "other")
                self.metrics.count("requests_total", route=route, status=str(message["status"]))
            await send(message)

        refusal = next(self._refusals(scope), None)
        if refusal is None and not _is_upload(scope):
            receive, refusal = await _read(receive, headers_of(scope))
        if refusal is None:
            await self.app(scope, receive, send_with_headers)
        else:
            await _refuse(refusal, receive, send_with_headers)

    def _refusals(self, scope: Scope) -> Iterator[Refusal]:
        headers, method, path = headers_of(scope), scope["method"], scope["path"]
        if not is_own_name(headers.get("host", ""), self.rules.names):
            yield Refusal(
                status=403,
                code="host",
                message="the server does not go by that name",
                remedy="ask it as localhost or by its address, or start it with --name NAME",
            )
        if is_foreign(headers, method):
            yield Refusal(
                status=403,
                code="origin",
                message="a page of another origin asks",
                remedy="open the server's own page",
            )
        client = scope.get("client") or ("", 0)
        if wait := math.ceil(self._rate.wait(client[0])):
            yield Refusal(
                status=429,
                code="rate",
                message=f"more than {self.rules.rate:g} requests a second",
                remedy=f"ask again in {wait} s, or start the server with a higher --rate",
                headers=((b"retry-after", b"%d" % wait),),
            )
        if not (path in OPEN or path.startswith("/static/")) and not self._has_token(headers):
            yield Refusal(
                status=401,
                code="token",
                message="the token is missing, or another",
                remedy="send the header Authorization: Bearer TOKEN",
                headers=((b"www-authenticate", b"Bearer"),),
            )
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        safe = method in READS or not self._handles(scope)  # it is told which methods there are
        if not safe and kind != "application/json" and UPLOAD not in headers:
            yield Refusal(
                status=415,
                code="content-type",
                message="the body is neither JSON nor a named file",
                remedy="send Content-Type: application/json, or X-Rag-Memtok-Name with a file",
            )

    def _has_token(self, headers: dict[str, str]) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(token.strip().encode(), self.rules.token.encode())
        return not self.rules.token or (same and scheme.lower() == "bearer")


def headers_of(scope: Scope) -> dict[str, str]:
    """A request's headers by lower-case name; those that are sent twice are joined."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


def is_own_name(host: str, names: frozenset[str]) -> bool:
    """Whether a Host is one of `names`, or an address in numbers, which no DNS can rebind."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name in names:
            return True
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_foreign(headers: dict[str, str], method: str) -> bool:
    """Whether a browser says that a page of another origin asks.

    To follow a link to this server is no such thing.
    """
    site = headers.get("sec-fetch-site", "none")
    followed = method in READS and headers.get("sec-fetch-mode") == "navigate"
    if site not in ("none", "same-origin") and not followed:
        return True
    origin = headers.get("origin")
    try:
        return origin is not None and urlsplit(origin).netloc != headers.get("host", "")
    except ValueError:
        return True


def _is_upload(scope: Scope) -> bool:
    headers = headers_of(scope)
    return UPLOAD in headers and scope["path"] == "/ingest" and scope["method"] == "POST"


async def _read(receive: Receive, headers: dict[str, str]) -> tuple[Receive, Refusal | None]:
    """Reads a request's whole body; one that is too large or too slow is refused."""
    too_large = Refusal(
        status=413,
        code="body",
        message=f"the body has more than {BODY} bytes",
        remedy="send less; files go to POST /ingest",
    )
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > BODY:
        return receive, too_large
    parts = bytearray()
    try:
        async with asyncio.timeout(SECONDS):
            while True:
                message = await receive()
                parts += message.get("body", b"")
                if len(parts) > BODY:
                    return receive, too_large
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        return receive, Refusal(
            status=408,
            code="slow",
            message="the body did not arrive in time",
            remedy="send it at once",
        )
    whole = {"type": "http.request", "body": bytes(parts), "more_body": False}
    waiting = [message if message["type"] == "http.disconnect" else whole]

    async def replay() -> Any:
        return waiting.pop() if waiting else await receive()

    return replay, None


async def _refuse(refusal: Refusal, receive: Receive, send: Send) -> None:
    """Sends a refusal; the connection is closed at the end of the body, or of what is read of it.

    Were it closed before, the system would take back a reply that the client has not yet read.
    """
    body = encode_json(body_of(refusal.status, refusal.code, refusal.message, refusal.remedy))
    length = str(len(body)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length)]
    headers += [(b"connection", b"close"), *refusal.headers]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    with suppress(TimeoutError):
        async with asyncio.timeout(SECONDS):
            await _discard(receive)
    await send({"type": "http.response.body", "body": b""})


async def _discard(receive: Receive) -> None:
    """Reads what is left of a body, or REST bytes of it."""
    left, more = REST, True
    while more and left > 0:
        message = await receive()  # one that says that the client hung up has no more
        left -= len(message.get("body", b""))
        more = message.get("more_body", False)
