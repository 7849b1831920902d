"""A served store, `rag_memtok.Client("http://127.0.0.1:8420")`, with the methods of a local one.

The standard library alone speaks HTTP.
"""

import http.client
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlsplit

from rag_memtok.config import Documents
from rag_memtok.datatypes import (
    Answer,
    OnProgress,
    Progress,
    Source,
    StoredDocument,
    sha256_of_text,
)
from rag_memtok.documents.names import given_path
from rag_memtok.documents.scan import Skipped, SourceFile, nothing_to_read, scan
from rag_memtok.documents.walk import reason_of
from rag_memtok.errors import Busy, NoStore, StoreDamaged, UsageError
from rag_memtok.model.wire import header_token
from rag_memtok.pipeline.api import Status
from rag_memtok.pipeline.audit import Audit
from rag_memtok.pipeline.ingest import Ingested
from rag_memtok.pipeline.progress import Reporter, quiet
from rag_memtok.pipeline.restore import UNPROVEN, Restored, write_documents
from rag_memtok.serve.replies import (
    combine,
    error_of,
    error_of_reply,
    parse_answer,
    parse_audit,
    parse_document,
    parse_ingested,
    parse_json,
    parse_source,
    read_json,
    read_lines,
)
from rag_memtok.settings import TOKEN
from rag_memtok.store.store import Summary

PathLike = str | os.PathLike[str]
PATIENCE = 60.0  # seconds that a busy server is asked again


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
        self._token = header_token(token or os.environ.get(TOKEN, ""), TOKEN)

    def ask(
        self, question: str, on_text: Callable[[str], None] = quiet, *, before: str = ""
    ) -> Answer:
        """Answers a question; `on_text` gets the answer piece by piece.

        Raises:
            NoUsableMemory: nothing relevant is in the store.
            Busy: it has no place for another question, and had none for a minute.
        """
        body = {"question": question, "before": before, "stream": True}
        for name, data in self._events("POST", "/ask", body):
            if name == "text":
                on_text(data["text"])
            elif name == "error":
                raise error_of(data["error"])
            else:
                return parse_answer(data)
        raise NoStore(f"{self.url} ended within an answer", remedy="ask again")

    def quotations(self, question: str) -> list[tuple[str, Source]]:
        """The chunks relevant to a question, best first: text and citation."""
        passages = self._json("POST", "/search", {"question": question})["found"]
        return [(passage["text"], parse_source(passage["source"])) for passage in passages]

    def ingest(self, *paths: PathLike, prune: bool = False) -> Ingested:
        """Sends every file under `paths` that can be read, and has them taken in.

        They are called as they are below `paths`. What the server does not take, as it refuses
        some names, and what vanishes meanwhile is skipped.

        Raises:
            InputRefused: a path is missing, or nothing readable was found.
            UsageError: the server takes none of the files; or `prune`: what is gone here is not
                known there.
        """
        if prune:
            raise UsageError("a server cannot prune", remedy="rag-memtok ingest --prune, there")
        given = [given_path(path) for path in paths]
        scanned = scan(given, Documents(), None)
        sent, refused = self._upload_all(scanned.files)
        skipped = (*scanned.skipped, *refused)
        if not sent:
            raise nothing_to_read(given, skipped, len(scanned.ignored))
        ids = dict.fromkeys(id for _, id in sent)
        results = [parse_ingested(self._wait_for(id)["ingested"]) for id in ids]
        done = combine(results, {file for file, _ in sent})
        return replace(done, skipped=(*skipped, *done.skipped))

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
        body = {
            "quick": quick,
            "sample": sample,
            "seed": seed,
            "batch": batch,
            "reference": reference,
        }
        return parse_audit(self._wait_for(self._json("POST", "/verify", body)["id"])["audit"])

    def restore(self, to: PathLike) -> Restored:
        """Writes the documents into a folder of this machine, as their memories decode there.

        One document is in memory at a time, and none is written but those whose text has the hash
        that the server names. Run again it goes on: what is there is compared.

        Raises:
            UsageError: `to` is empty, or a file of that name with other content is in the way.
            InputRefused: a document would be written outside `to`.
            Busy: the server ends.
        """
        folder = given_path(to)
        listed = self._json("GET", "/documents")
        documents = [parse_document(document) for document in listed["documents"]]
        reporter = Reporter(
            on_progress=self._on_progress, total=sum(document.chunks for document in documents)
        )
        lost = [(str(document["path"]), str(document["reason"])) for document in listed["lost"]]
        return write_documents(
            documents, lambda document: self._restore_text(document, reporter), folder, lost
        )

    def status(self) -> Status:
        """The store at a glance."""
        status = self._json("GET", "/status")
        return Status(**status | {"summary": Summary(**status["summary"])})

    def close(self) -> None:
        """Does nothing: no connection outlives a call."""

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    # --- HTTP

    def _upload_all(
        self, files: Sequence[SourceFile]
    ) -> tuple[list[tuple[str, str]], list[Skipped]]:
        """Sends files: the names and jobs of those that are taken, and why others are not.

        Raises:
            UsageError: the server takes none of them; that is why the last is not.
        """
        sent: list[tuple[str, str]] = []
        refused: list[Skipped] = []
        for file in files:
            try:
                sent.append((file.file, self._upload(file)))
            except (OSError, UsageError) as error:
                refused.append(Skipped(file.root, file.file, reason_of(error)))
                if isinstance(error, UsageError) and len(refused) == len(files):
                    raise
        return sent, refused

    def _upload(self, file: SourceFile) -> str:
        """The job that takes the file in.

        Raises:
            OSError: it cannot be read any more.
            UsageError: the server does not take it.
        """
        headers = {"X-Rag-Memtok-Name": quote(file.file)}
        with self._reply("POST", "/ingest", file.path.read_bytes(), headers) as reply:
            return str(read_json(reply)["id"])

    def _wait_for(self, id: str) -> dict[str, Any]:
        """The job of that id, once it is done; reports its progress meanwhile.

        Raises:
            NoStore: the server ended before; or the error of the job.
        """
        job: dict[str, Any] = {}
        for _, job in self._events("GET", f"/jobs/{id}/events"):
            if at := job["progress"]:
                self._on_progress(Progress(**at))
        if job.get("error"):
            raise error_of(job["error"])
        if job.get("state") != "done" and not job.get("audit"):
            raise NoStore(
                f"{self.url} ended within the job {id}; what is done is kept", remedy="run it again"
            )
        return job

    def _restore_text(self, document: StoredDocument, reporter: Reporter) -> str | None:
        """A document's text, None if not all of its memories decode to it.

        Raises:
            StoreDamaged: they do not, and that is for damage.
        """
        texts: list[str] = []
        length = 0
        identity = {"root": document.root, "path": document.path}
        for name, data in self._events("POST", "/restore", identity):
            if name == "error":
                raise error_of(data["error"])
            if name != "text":
                if data.get("damaged"):
                    raise StoreDamaged(UNPROVEN, remedy="rag-memtok verify, there")
                text = "".join(texts)
                return text if sha256_of_text(text) == document.sha256 else None
            texts.append(str(data["text"]).encode(errors="replace").decode())
            length += len(texts[-1])
            if length > document.characters:  # it need not end
                return None
            reporter.advance()
        raise NoStore(f"{self.url} ended within {document.path!a}", remedy="restore again")

    def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        with self._reply(method, path, *_encode_body(body)) as reply:
            return read_json(reply)

    def _events(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> Iterator[tuple[str, Any]]:
        """Yields the server-sent events of a reply: name and data."""
        with self._reply(method, path, *_encode_body(body)) as reply:
            name = ""
            for line in read_lines(reply):
                key, _, value = line.decode(errors="replace").rstrip("\n").partition(": ")
                name = value if key == "event" else name
                if key == "data":
                    yield name, parse_json(value)

    @contextmanager
    def _reply(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> Iterator[http.client.HTTPResponse]:
        """A reply that is no error; a busy server is asked again for PATIENCE seconds."""
        until = time.monotonic() + PATIENCE
        while True:
            connection, reply = self._send(method, path, body, headers)
            try:
                if reply.status < 400:
                    yield reply
                    return
                error = error_of_reply(reply)
            finally:
                connection.close()
            if not isinstance(error, Busy) or time.monotonic() + error.seconds > until:
                raise error
            time.sleep(error.seconds)

    def _send(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Sends one request.

        Raises:
            NoStore: nobody answers, or something that does not speak HTTP.
        """
        where = urlsplit(self.url)
        secure = where.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(where.hostname or "", where.port, timeout=self._timeout)
        authorization = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        try:
            connection.connect()
            try:
                connection.request(method, where.path + path, body, headers | authorization)
            except TimeoutError:
                raise
            except OSError:  # it hung up before all was sent; what it said may have come
                pass
            return connection, connection.getresponse()
        except OSError as error:
            connection.close()
            raise NoStore(
                f"nobody answers at {self.url}: {error}", remedy="rag-memtok serve, there"
            ) from None
        except http.client.HTTPException as error:
            connection.close()
            raise NoStore(
                f"what answers at {self.url} does not speak HTTP: {error!r}",
                remedy="see the port that rag-memtok serve names when it starts",
            ) from None


def _encode_body(body: dict[str, Any] | None) -> tuple[bytes | None, dict[str, str]]:
    if body is None:
        return None, {}
    return json.dumps(body).encode(), {"Content-Type": "application/json"}
