"""Exchanges with a server over HTTP: bounded waits, bounded replies, and what failures mean.

The home of http.client. A connection serves one exchange: the server may be restarted between two.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from rag_memtok.errors import EngineUnavailable, PermissionRefused, UsageError, escaped

TOKEN = "RAG_MEMTOK_ENGINE_TOKEN"
LONGEST = 1 << 24  # bytes of a reply, or of a line of one
QUOTED = 300  # letters of what a server says
AGAIN = "rag-memtok ask --engine here answers without a server"
EVENT, END = b"data:", "[DONE]"
BUSY = (408, 429)  # and all from 500 on: to be tried again


@dataclass(frozen=True, slots=True)
class Server:
    """The address of a server, and how long it is waited for.

    `seconds`: of silence after which it counts as gone. `pauses`: seconds before each further try.
    """

    url: str
    seconds: float
    token: str = field(default="", repr=False)
    pauses: tuple[float, ...] = (0.5, 2.0)


def header_token(token: str, name: str) -> str:
    """A server's token, which `name` holds, as a header carries it; "" stays "".

    Raises:
        UsageError: no header can carry it. It is a secret, and not told.
    """
    token = token.strip()
    if not (token.isascii() and token.isprintable()):
        raise UsageError(
            f"the token in {name} cannot stand in an HTTP header; valid: printable ASCII",
            remedy="give it as the server has it, on one line",
        )
    return token


class Lost(Exception):
    """An exchange that broke off or met a server in trouble; another try may do better."""


class Refused(Exception):
    """The server understood and said no (a status of 4xx), with its reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status}: {reason}" if reason else str(status))
        self.status = status


def wait_after(server: Server, lost: Lost, tries: int) -> None:
    """Waits before the next try, after so many `tries` that were lost.

    Raises:
        EngineUnavailable: there is no next one.
    """
    if tries > len(server.pauses):
        raise unavailable(server, lost) from lost
    time.sleep(server.pauses[tries - 1])


def unavailable(server: Server, error: Lost) -> EngineUnavailable:
    """The error when no try is left: whether the server is away, or there and failing."""
    tries = f"{len(server.pauses) + 1} tries"
    try:
        with _exchange(server, "/health", None) as reply:
            reply.read(LONGEST)
    except (Lost, Refused, EngineUnavailable):
        return EngineUnavailable(
            f"the engine at {server.url} is away or dead: {error} ({tries})",
            remedy=f"start it, or start it again: its log says why it ended; {AGAIN}",
        )
    return EngineUnavailable(
        f"the server at {server.url} says it is well, and does not answer: {error} ({tries})",
        remedy=f"its log says why; {AGAIN}",
    )


def bad_reply(server: Server, what: str) -> EngineUnavailable:
    """The error for a reply that no vLLM gives."""
    return EngineUnavailable(
        f"the server at {server.url} answers what makes no sense here: {what}",
        remedy=f"is it vLLM, and is nothing between? {AGAIN}",
    )


def request_json(server: Server, path: str, body: Mapping[str, object] | None) -> dict[str, Any]:
    """The JSON object that answers a POST of `body`, a GET where that is None.

    Raises:
        Lost, Refused: see there.
        EngineUnavailable: it was silent for too long, or makes no sense.
        PermissionRefused: it wants a token, or another one.
    """
    with _exchange(server, path, body) as reply:
        content = reply.read(LONGEST + 1)
    if len(content) > LONGEST:
        raise bad_reply(server, f"more than {LONGEST} bytes")
    return _object(server, content)


def stream_events(
    server: Server, path: str, body: Mapping[str, object]
) -> Iterator[dict[str, Any]]:
    """The events of a reply that is streamed, to its end.

    Raises:
        Lost: it broke off, too; the others: see `request_json`.
    """
    with _exchange(server, path, body) as reply:
        while line := reply.readline(LONGEST):
            if not line.startswith(EVENT):
                if line.strip() and not line.startswith((b":", b"event:", b"id:")):
                    raise bad_reply(server, _quoted(line))
                continue
            if (content := line.removeprefix(EVENT).strip()) == END.encode():
                return
            event = _object(server, content)
            if "error" in event:
                raise Lost(_quoted(content))
            yield event
    raise Lost("the reply broke off")


def _object(server: Server, content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):  # the latter: nested without end
        raise bad_reply(server, _quoted(content)) from None
    if not isinstance(found, dict):
        raise bad_reply(server, _quoted(content))
    return found


@contextmanager
def _exchange(
    server: Server, path: str, body: Mapping[str, object] | None
) -> Iterator[HTTPResponse]:
    parts = urlsplit(server.url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=server.seconds)
    headers = {"Authorization": f"Bearer {server.token}"} if server.token else {}
    sent = None if body is None else json.dumps(body).encode()
    if sent is not None:
        headers["Content-Type"] = "application/json"
    where = parts.path.rstrip("/").removesuffix("/v1") + path
    try:
        connection.request("GET" if sent is None else "POST", where, sent, headers)
        with connection.getresponse() as reply:  # its socket is its own where it ends with it
            _require_fine(server, reply)
            yield reply
    except TimeoutError as error:
        raise EngineUnavailable(
            f"the server at {server.url} said nothing for {server.seconds:g} s",
            remedy="is it busy or stuck? its log says; RAG_MEMTOK_ASK_ENGINE_SECONDS waits longer",
        ) from error
    except (OSError, HTTPException) as error:
        raise Lost(str(error) or type(error).__name__) from error
    finally:
        connection.close()


def _require_fine(server: Server, reply: HTTPResponse) -> None:
    if reply.status == 200:
        return
    reason = _reason(reply.read(LONGEST))
    if reply.status in (401, 403):
        raise PermissionRefused(
            f"the server at {server.url} refuses us: {Refused(reply.status, reason)}",
            remedy=f"put its token into the environment variable {TOKEN}",
        )
    if reply.status in BUSY or reply.status >= 500:
        raise Lost(str(Refused(reply.status, reason)))
    raise Refused(reply.status, reason)


def _reason(content: bytes) -> str:
    """The message in an error's body, whatever shape it has."""
    try:
        found = json.loads(content)
        found = found.get("error", found) if isinstance(found, dict) else found
        found = found.get("message", found) if isinstance(found, dict) else found
    except (ValueError, RecursionError):
        found = None
    return _quoted(found.encode() if isinstance(found, str) else content)


def _quoted(content: bytes) -> str:
    """A server's words, with nothing in them that a terminal would obey."""
    words = " ".join(content.decode(errors="replace").split())
    return escaped(words[:QUOTED] + ("..." if len(words) > QUOTED else ""))
