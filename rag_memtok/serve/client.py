"""A served store with the methods of a local one. The standard library alone speaks HTTP.

with rag_memtok.Client("http://127.0.0.1:8420") as store:
store.ingest("./docs")
print(store.ask("When does the warranty end?").answer)
"""

import http.client
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from rag_memtok import errors
from rag_memtok.config import Documents
from rag_memtok.datatypes import (
    Answer,
    OnProgress,
    Progress,
    Source,
    Standing,
    StoredDocument,
    sha256_of_text,
)
from rag_memtok.documents.scan import Skipped, scan
from rag_memtok.errors import (
    Busy,
    NoStore,
    PermissionRefused,
    RagMemtokError,
    StoreDamaged,
    UsageError,
)
from rag_memtok.pipeline.api import Status
from rag_memtok.pipeline.audit import Audit, Finding
from rag_memtok.pipeline.ingest import Ingested
from rag_memtok.pipeline.plan import Assumed
from rag_memtok.pipeline.progress import Reporter, quiet
from rag_memtok.pipeline.restore import UNPROVEN, Restored, write_documents
from rag_memtok.settings import TOKEN
from rag_memtok.store.store import Summary

T = TypeVar("T")
PathLike = str | os.PathLike[str]
TOO_MANY = 429
LINE = 1 << 26  # bytes of an event, at most
PATIENCE = 60.0  # seconds that a busy server is asked again
CODES: dict[str, type[RagMemtokError]] = {
    one.name: one
    for one in vars(errors).values()
    if isinstance(one, type) and issubclass(one, RagMemtokError)
} | {"token": PermissionRefused, "host": PermissionRefused, "origin": PermissionRefused}


class Client:
    """A store that somebody serves, with the methods of `MemoryStore`.

    What goes wrong there is raised here as it would be there. Settings are those of the server. For
    several threads at once: each call is a connection of its own.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8420",
        token: str = "",
        *,
        timeout: float = 600.0,
        on_progress: OnProgress = quiet,
    ) -> None:
        self.url, self._timeout, self._on_progress = url.rstrip("/"), timeout, on_progress
        self._token = token or os.environ.get(TOKEN, "")

    def ask(
        self, question: str, on_text: Callable[[str], None] = quiet, *, before: str = ""
    ) -> Answer:
        """Answers a question; `on_text` gets the answer piece by piece.

        Raises:
            NoUsableMemory: nothing relevant is in the store.
            Busy: it has no place for another question, and had none for a minute.
        """
        body = {"question": question, "before": before, "stream": True}
        for name, told in self._events("POST", "/ask", body):
            if name == "text":
                on_text(told["text"])
            elif name == "error":
                raise raised(told["error"])
            else:
                return answer_of(told)
        raise NoStore(f"{self.url} ended within an answer", remedy="ask again")

    def quotations(self, question: str) -> list[tuple[str, Source]]:
        """The chunks that have to do with a question, best first: text and citation."""
        found = self._json("POST", "/search", {"question": question})["found"]
        return [(one["text"], source_of(one["source"])) for one in found]

    def ingest(self, *paths: PathLike, prune: bool = False) -> Ingested:
        """Sends every file under `paths` that can be read, and has them taken in.

        They are called as they are below `paths`.

        Raises:
            InputRefused: a path is missing, or nothing readable was found.
            UsageError: `prune`: what is gone here is not known there.
        """
        if prune:
            raise UsageError("a server cannot prune", remedy="rag-memtok ingest --prune, there")
        files = scan([Path(path) for path in paths], Documents(), None).files
        ids = [self._upload(Path(one.root) / one.file, one.file) for one in files]
        done = [self._ended(id)["ingested"] for id in dict.fromkeys(ids)]
        return combined([ingested_of(one) for one in done])

    def verify(
        self,
        *,
        quick: bool = False,
        sample: float = 1.0,
        seed: int = 0,
        batch: int = 1,
        reference: bool = False,
        against: PathLike | None = None,
        report: PathLike | None = None,
    ) -> Audit:
        """The reconstruction audit; `.ok` says whether all that was asked for is proven.

        The arguments are those of `MemoryStore.verify`.

        Raises:
            UsageError: `against` or `report`: those are files of the server's machine.
        """
        if against is not None or report is not None:
            raise UsageError(
                "a server compares with no folder and writes no report",
                remedy="rag-memtok verify, where the store is",
            )
        asked = {"quick": quick, "sample": sample, "seed": seed}
        body = asked | {"batch": batch, "reference": reference}
        return audit_of(self._ended(self._json("POST", "/verify", body)["id"])["audit"])

    def restore(self, to: PathLike) -> Restored:
        """Writes the documents into a folder of this machine, as their memories decode there.

        One document is in memory at a time, and none is written but those whose text has the hash
        that the server names. Run again it goes on: what is there is compared.

        Raises:
            UsageError: a file of that name with other content is in the way.
            InputRefused: a document would be written outside `to`.
            Busy: the server ends.
        """
        told = self._json("GET", "/documents")
        documents = [document_of(one) for one in told["documents"]]
        reporter = Reporter(
            on_progress=self._on_progress, total=sum(one.chunks for one in documents)
        )
        lost = [(str(one["path"]), str(one["reason"])) for one in told["lost"]]
        return write_documents(documents, lambda one: self._decoded(one, reporter), Path(to), lost)

    def status(self) -> Status:
        """What is in the store."""
        told = self._json("GET", "/status")
        return Status(**told | {"summary": Summary(**told["summary"])})

    def close(self) -> None:
        """Does nothing: no connection outlives a call."""

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    # --- HTTP

    def _upload(self, path: Path, name: str) -> str:
        headers = {"X-Rag-Memtok-Name": quote(name)}
        with self._reply("POST", "/ingest", path.read_bytes(), headers) as reply:
            return str(json.loads(reply.read())["id"])

    def _ended(self, id: str) -> dict[str, Any]:
        """The job of that id, once it has ended well."""
        job: dict[str, Any] = {}
        for _, job in self._events("GET", f"/jobs/{id}/events"):
            if at := job["progress"]:
                self._on_progress(Progress(**at))
        if job.get("error"):
            raise raised(job["error"])
        if job.get("state") != "done" and not job.get("audit"):
            raise NoStore(
                f"{self.url} ended within the job {id}; what is done is kept", remedy="run it again"
            )
        return job

    def _decoded(self, document: StoredDocument, reporter: Reporter) -> str | None:
        """A document's text, None if not all of its memories decode to it.

        Raises:
            StoreDamaged: they do not, and that is for damage.
        """
        texts: list[str] = []
        length = 0
        asked = {"root": document.root, "path": document.path}
        for name, told in self._events("POST", "/restore", asked):
            if name == "error":
                raise raised(told["error"])
            if name != "text":
                if told.get("damaged"):
                    raise StoreDamaged(UNPROVEN, remedy="rag-memtok verify, there")
                text = "".join(texts)
                return text if sha256_of_text(text) == document.sha256 else None
            texts.append(str(told["text"]).encode(errors="replace").decode())
            length += len(texts[-1])
            if length > document.characters:  # it need not end
                return None
            reporter.advance()
        raise NoStore(f"{self.url} ended within {document.path!a}", remedy="restore again")

    def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        with self._reply(method, path, *_encoded(body)) as reply:
            return json.loads(reply.read())

    def _events(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> Iterator[tuple[str, Any]]:
        """The server-sent events of a reply: name and data."""
        with self._reply(method, path, *_encoded(body)) as reply:
            name = ""
            for line in lines_of(reply):
                key, _, value = line.decode().rstrip("\n").partition(": ")
                name = value if key == "event" else name
                if key == "data":
                    yield name, json.loads(value)

    @contextmanager
    def _reply(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> Iterator[http.client.HTTPResponse]:
        """A reply that is none of an error; a busy server is asked again for a while."""
        until = time.monotonic() + PATIENCE
        while True:
            connection, reply = self._sent(method, path, body, headers)
            try:
                if reply.status < 400:
                    yield reply
                    return
                error = raised_by(reply)
            finally:
                connection.close()
            if not isinstance(error, Busy) or time.monotonic() + error.seconds > until:
                raise error
            time.sleep(error.seconds)

    def _sent(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """One request. Raises NoStore where nobody answers."""
        where = urlsplit(self.url)
        secure = where.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(where.hostname or "", where.port, timeout=self._timeout)
        known = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        try:
            connection.request(method, where.path + path, body, headers | known)
            return connection, connection.getresponse()
        except OSError as error:
            connection.close()
            raise NoStore(
                f"nobody answers at {self.url}: {error}", remedy="rag-memtok serve, there"
            ) from None


def _encoded(body: dict[str, Any] | None) -> tuple[bytes | None, dict[str, str]]:
    if body is None:
        return None, {}
    return json.dumps(body).encode(), {"Content-Type": "application/json"}


def lines_of(reply: http.client.HTTPResponse) -> Iterator[bytes]:
    """The lines of a reply, one in memory at a time.

    Raises:
        NoStore: it breaks off, or a line does not end.
    """
    try:
        while line := reply.readline(LINE):
            if len(line) == LINE:
                raise NoStore(f"a line has over {LINE} bytes", remedy="is that rag-memtok serve?")
            yield line
    except OSError as error:
        raise NoStore(f"the reply broke off: {error}", remedy="ask again") from None


def raised_by(reply: http.client.HTTPResponse) -> RagMemtokError:
    """The error that a reply tells."""
    try:
        told = json.loads(reply.read())["error"]
    except (ValueError, KeyError, TypeError):  # of somebody between us and the server
        told = {"message": f"{reply.status} {reply.reason}", "code": "", "remedy": ""}
    if reply.status == TOO_MANY:
        wait = reply.headers.get("Retry-After", "")
        return Busy(told["message"], told["remedy"], int(wait) if wait.isdecimal() else 1)
    return raised(told)


def raised(told: dict[str, Any]) -> RagMemtokError:
    """The exception that was told, as it was there."""
    return CODES.get(told["code"], RagMemtokError)(told["message"], told["remedy"])


# --- JSON -> our values


def source_of(told: dict[str, Any]) -> Source:
    """A citation."""
    return Source(**told | {"span": tuple(told["span"])})


def document_of(told: dict[str, Any]) -> StoredDocument:
    """A document; what a server says is made of the kinds that they should be."""
    return StoredDocument(
        root=str(told["root"]),
        file=str(told["file"]),
        path=str(told["path"]),
        sha256=str(told["sha256"]),
        file_sha256="",
        chunks=int(told["chunks"]),
        characters=int(told["characters"]),
        extractor=str(told["extractor"]),
    )


def answer_of(told: dict[str, Any]) -> Answer:
    """An answer."""
    stands = told["stands_in"]
    return Answer(
        **told
        | {
            "sources": tuple(map(source_of, told["sources"])),
            "texts": tuple(told["texts"]),
            "stands_in": stands and Standing(**stands | {"span": tuple(stands["span"])}),
        }
    )


def ingested_of(told: dict[str, Any]) -> Ingested:
    """What an ingest did."""
    return Ingested(
        **told
        | {
            "vanished": tuple((root, file) for root, file in told["vanished"]),
            "skipped": tuple(Skipped(**one) for one in told["skipped"]),
            "over_limit": tuple(Skipped(**one) for one in told["over_limit"]),
            "assumed": tuple(Assumed(**one) for one in told["assumed"]),
        }
    )


def combined(done: list[Ingested]) -> Ingested:
    """What several ingests of the same folder did, one after the other."""
    last = done[-1]
    kinds = {kind for one in done for kind in one.verdicts}
    verdicts = {kind: sum(one.verdicts.get(kind, 0) for one in done) for kind in sorted(kinds)}
    counts = {
        name: sum(getattr(one, name) for one in done)
        for name in ("files", "chunks", "positions", "text_positions", "seconds")
    }
    return replace(last, verdicts=verdicts, **counts)


def audit_of(told: dict[str, Any]) -> Audit:
    """An audit, without what it found of each chunk."""
    known = {name: value for name, value in told.items() if name not in ("ok", "sentence")}
    return Audit(**known | {"findings": tuple(Finding(**one) for one in told["findings"])})
