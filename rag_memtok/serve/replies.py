"""A server's replies: its JSON as our values, its errors as our exceptions."""

import http.client
import json
from collections.abc import Iterator, Sequence, Set
from dataclasses import replace
from typing import Any

from rag_memtok import errors
from rag_memtok.datatypes import Answer, Source, Standing, StoredDocument
from rag_memtok.documents.scan import Skipped
from rag_memtok.errors import Busy, NoStore, PermissionRefused, RagMemtokError
from rag_memtok.pipeline.audit import Audit, Finding
from rag_memtok.pipeline.ingest import Ingested
from rag_memtok.pipeline.plan import Assumed

TOO_MANY = 429
COUNTS = ("files", "removed", "chunks", "reused", "positions", "text_positions", "seconds")
LINE = 1 << 26  # bytes of an event, at most
BREAKS = (OSError, http.client.HTTPException)  # what ends a reply before its end
CODES: dict[str, type[RagMemtokError]] = {
    error.name: error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, RagMemtokError) and "name" in vars(error)
} | {"token": PermissionRefused, "host": PermissionRefused, "origin": PermissionRefused}


def read_json(reply: http.client.HTTPResponse) -> Any:
    """The JSON that a reply is.

    Raises:
        NoStore: it breaks off, or is no JSON.
    """
    try:
        text = reply.read()
    except BREAKS as error:
        raise NoStore(f"the reply broke off: {error}", remedy="ask again") from None
    return parse_json(text)


def parse_json(text: bytes | str) -> Any:
    """The value of a JSON text that a server sent.

    Raises:
        NoStore: it is none.
    """
    try:
        return json.loads(text)
    except ValueError:
        raise NoStore(
            "the reply is no JSON, or but the beginning of it",
            remedy="ask again; is it rag-memtok serve that answers there?",
        ) from None


def read_lines(reply: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yields the lines of a reply, one in memory at a time.

    Raises:
        NoStore: it breaks off, or a line does not end.
    """
    try:
        while line := reply.readline(LINE):
            if len(line) == LINE:
                raise NoStore(f"a line has over {LINE} bytes", remedy="is that rag-memtok serve?")
            yield line
    except BREAKS as error:
        raise NoStore(f"the reply broke off: {error}", remedy="ask again") from None


def error_of_reply(reply: http.client.HTTPResponse) -> RagMemtokError:
    """The exception for a reply that is an error."""
    try:
        told = json.loads(reply.read())["error"]
        error = {name: str(told[name]) for name in ("message", "code", "remedy")}
    except (*BREAKS, ValueError, KeyError, TypeError):  # of somebody between us and the server
        error = {"message": f"{reply.status} {reply.reason}", "code": "", "remedy": ""}
    if reply.status == TOO_MANY:
        wait = reply.headers.get("Retry-After", "")
        return Busy(error["message"], error["remedy"], int(wait) if wait.isdecimal() else 1)
    return error_of(error)


def error_of(error: dict[str, Any]) -> RagMemtokError:
    """The exception that the server raised, from its JSON."""
    return CODES.get(error["code"], RagMemtokError)(error["message"], error["remedy"])


# --- JSON -> our values


def parse_source(values: dict[str, Any]) -> Source:
    """A citation from its JSON."""
    return Source(**values | {"span": tuple(values["span"])})


def parse_document(values: dict[str, Any]) -> StoredDocument:
    """A document from its JSON, each value made of the type that it should be."""
    return StoredDocument(
        root=str(values["root"]),
        file=str(values["file"]),
        path=str(values["path"]),
        sha256=str(values["sha256"]),
        file_sha256="",
        chunks=int(values["chunks"]),
        characters=int(values["characters"]),
        extractor=str(values["extractor"]),
    )


def parse_answer(values: dict[str, Any]) -> Answer:
    """An answer from its JSON."""
    standing = values["stands_in"]
    return Answer(
        **values
        | {
            "sources": tuple(map(parse_source, values["sources"])),
            "texts": tuple(values["texts"]),
            "stands_in": standing and Standing(**standing | {"span": tuple(standing["span"])}),
        }
    )


def parse_ingested(values: dict[str, Any]) -> Ingested:
    """The result of an ingest from its JSON."""
    return Ingested(
        **values
        | {
            "vanished": tuple((root, file) for root, file in values["vanished"]),
            "skipped": tuple(Skipped(**entry) for entry in values["skipped"]),
            "over_limit": tuple(Skipped(**entry) for entry in values["over_limit"]),
            "assumed": tuple(Assumed(**entry) for entry in values["assumed"]),
        }
    )


def combine(results: Sequence[Ingested], sent: Set[str]) -> Ingested:
    """The results of several ingests of the same folder, one after the other, as one.

    Of the files that were `sent`, those are unchanged that were neither written nor left out.
    """
    last = results[-1]
    kinds = {kind for result in results for kind in result.verdicts}
    verdicts = {
        kind: sum(result.verdicts.get(kind, 0) for result in results) for kind in sorted(kinds)
    }
    counts = {name: sum(getattr(result, name) for result in results) for name in COUNTS}
    left_out = {one.path for one in (*last.skipped, *last.over_limit)}
    unchanged = max(0, len(sent - left_out) - counts["files"])
    assumed = tuple(one for result in results for one in result.assumed)
    return replace(last, verdicts=verdicts, unchanged=unchanged, assumed=assumed, **counts)


def parse_audit(values: dict[str, Any]) -> Audit:
    """An audit from its JSON, without what it found of each chunk."""
    fields = {name: value for name, value in values.items() if name not in ("ok", "sentence")}
    return Audit(
        **fields | {"findings": tuple(Finding(**finding) for finding in values["findings"])}
    )
