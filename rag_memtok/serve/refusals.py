"""What a client is told when something goes wrong: OpenAI's shape, our remedy, a status."""

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from rag_memtok.errors import (
    Busy,
    DeviceUnavailable,
    DiskFailure,
    InputRefused,
    ModelUnavailable,
    NoStore,
    NoUsableMemory,
    OutOfMemory,
    PermissionRefused,
    RagMemtokError,
    StoreLocked,
    UsageError,
    escaped,
    out_of_memory,
)

STATUS: dict[type[RagMemtokError], int] = {
    UsageError: 400,
    InputRefused: 400,
    PermissionRefused: 403,
    NoUsableMemory: 404,
    NoStore: 404,
    StoreLocked: 409,
    Busy: 429,
    ModelUnavailable: 503,
    DeviceUnavailable: 503,
    OutOfMemory: 503,
    DiskFailure: 507,
}  # what is in none of them: 500
KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
BUG = "the server made a mistake; it goes on"
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


def body_of(
    status: int, code: str, message: str, remedy: str = "", param: str | None = None
) -> dict[str, Any]:
    """An error as OpenAI writes it, with what to do next."""
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    error = {
        "message": escaped(message),
        "type": kind,
        "param": param,
        "code": code,
        "remedy": escaped(remedy),
    }
    return {"error": error}


def refusal_of(error: BaseException) -> tuple[int, dict[str, Any], Mapping[str, str]]:
    """The status, body and headers for an error; a bug's text is for the server's log alone."""
    if out_of_memory(error) and not isinstance(error, RagMemtokError):
        error = OutOfMemory("out of memory", remedy="ask again; --places and --k make it less")
    if not isinstance(error, RagMemtokError):
        return 500, body_of(500, "internal", BUG, "the server's log has more"), NO_HEADERS
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
    headers = {"Retry-After": str(error.seconds)} if isinstance(error, Busy) else NO_HEADERS
    return status, body_of(status, error.name, str(error), error.remedy), headers


def refusal_of_fields(errors: Sequence[Any]) -> dict[str, Any]:
    """The body for a request that is not as the schemas have it; its first fault is told."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"][1:])
    message = f"{place}: {first['msg']}" if place else str(first["msg"])
    return body_of(400, "usage", message, "GET /openapi.json has every request", place or None)


def encode_json(body: Mapping[str, Any]) -> bytes:
    """A body as JSON."""
    return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
