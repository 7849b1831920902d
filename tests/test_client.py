"""The client: what it gives is what the store itself gives, errors too."""

import inspect
import json
import os
import socket
import sqlite3
import threading
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import toy
from served import served, settings
from small import written

import rag_memtok as rm
from rag_memtok import errors
from rag_memtok.datatypes import sha256_of_text
from rag_memtok.documents.scan import Skipped
from rag_memtok.errors import (
    Busy,
    InputRefused,
    NoStore,
    NoUsableMemory,
    PermissionRefused,
    RagMemtokError,
    UsageError,
)
from rag_memtok.integrations.langchain import MemtokRetriever as LangChainRetriever
from rag_memtok.integrations.llamaindex import MemtokRetriever as LlamaIndexRetriever
from rag_memtok.pipeline import api
from rag_memtok.pipeline.handle import MemoryStore
from rag_memtok.pipeline.ingest import Ingested
from rag_memtok.pipeline.restore import UNPROVEN
from rag_memtok.serve.replies import combine, error_of

QUESTION, TOKEN = "Who was the keeper of the lamp?", "a-token-of-the-tests"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    config = settings(folder / "store", toy.save(folder / "toy"))
    api.ingest([written(folder / "docs")], config)
    return config


@pytest.fixture(scope="module")
def local(config):
    with MemoryStore(config, trusted=False, say=print, on_progress=lambda at: None) as store:
        yield store


@pytest.fixture(scope="module")
def client(config):
    with served(config, token=TOKEN) as server, rm.Client(server.url, TOKEN) as client:
        yield client


@contextmanager
def serving(handler):
    """A client of a server that is none of ours."""
    with HTTPServer(("127.0.0.1", 0), handler) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        try:
            yield rm.Client(f"http://127.0.0.1:{other.server_port}")
        finally:
            other.shutdown()
            thread.join()


def timeless(value):
    """A value without the time that it took."""
    return {name: getattr(value, name) for name in value.__slots__ if name != "seconds"}


def test_it_answers_as_the_store_does(client, local):
    pieces = []
    told, wanted = client.ask(QUESTION, pieces.append), local.ask(QUESTION)
    assert timeless(told) == timeless(wanted) and type(told) is rm.Answer
    assert "".join(pieces).strip() == wanted.answer
    follow = client.ask("And the soup?", before=QUESTION)
    assert timeless(follow) == timeless(local.ask("And the soup?", before=QUESTION))


def test_it_quotes_counts_and_proves_as_the_store_does(client, local):
    assert client.quotations(QUESTION) == local.quotations(QUESTION) != []
    here, there = client.status(), local.status()
    assert here.summary == there.summary and here.generation == there.generation
    audit, wanted = client.verify(), local.verify()
    assert audit.ok and audit.counts == wanted.counts and audit.sentence == wanted.sentence
    assert client.verify(quick=True).decodes is False
    assert "Client('http://127.0.0.1" in repr(client)


def test_errors_are_those_of_the_store(client, local):
    for question, kind in (("zzz", NoUsableMemory), ("", UsageError), ("why " * 500, UsageError)):
        with pytest.raises(kind) as told:
            client.ask(question)
        assert told.value.remedy
    with pytest.raises(NoUsableMemory) as wanted:
        local.ask("zzz")
    with pytest.raises(NoUsableMemory, match=str(wanted.value)):
        client.ask("zzz")
    for refused in ({"against": "docs"}, {"report": "audit.html"}):
        with pytest.raises(UsageError, match="server"):
            client.verify(**refused)
    with pytest.raises(UsageError, match="prune"):
        client.ingest("docs", prune=True)
    with pytest.raises(InputRefused):
        client.ingest("nowhere")


def test_every_error_is_of_the_class_that_the_server_raised():
    own = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and "name" in vars(kind)
    ]
    assert len(own) > 15
    for kind in own:
        told = error_of({"code": kind.name, "message": "what", "remedy": "do"})
        assert (type(told), str(told), told.remedy) == (kind, "what", "do")


def test_without_a_server_or_its_token(client):
    with pytest.raises(PermissionRefused, match="token"):
        rm.Client(client.url, "another-token-than-that").status()
    with pytest.raises(NoStore, match="nobody answers"):
        rm.Client("http://127.0.0.1:9").ask(QUESTION)


def test_without_a_token_a_large_file_is_refused_as_a_small_one(client, tmp_path, monkeypatch):
    monkeypatch.delenv("RAG_MEMTOK_SERVE_TOKEN", raising=False)
    docs = written(tmp_path, {"a.txt": "The fan is quiet.\n" * 300_000})
    with pytest.raises(PermissionRefused, match="token"):
        rm.Client(client.url, token="").ingest(docs)


def test_a_reply_that_came_before_all_was_sent_is_read(tmp_path):
    """The server hangs up with most of the file unread: its end of the connection is reset."""
    told = b'{"error": {"message": "no token", "code": "token", "remedy": "give it"}}'
    docs = written(tmp_path, {"a.txt": "The fan is quiet.\n" * 300_000})
    head = b"HTTP/1.1 401 No\r\nContent-Length: %d\r\n\r\n" % len(told)
    with answering(head + told, reads=False) as client:
        with pytest.raises(PermissionRefused, match="no token"):
            client.ingest(docs)


def test_it_sends_a_folder(tmp_path, config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = []
    mine = settings(tmp_path / "store", config.model.id)
    docs = written(
        tmp_path / "docs", {"lamp.md": "The lamp is red.", "a/fan.txt": "The fan is loud."}
    )
    (docs / ".gitignore").write_text("secret.txt\n")
    (docs / "secret.txt").write_text("The code is 1234.")
    with served(mine) as server, rm.Client(server.url, on_progress=told.append) as client:
        with pytest.raises(UsageError, match="a path is empty"):
            client.ingest("")
        done = client.ingest(docs)
        assert (done.files, done.chunks, done.skipped) == (2, 2, ()) and sum(
            done.verdicts.values()
        ) == 2
        assert {source.path for _, source in client.quotations("lamp fan")} == {
            "lamp.md",
            "a/fan.txt",
        }
        assert told and told[-1].done == told[-1].total
        assert client.verify().ok


def test_a_file_that_is_not_taken_stops_no_other(tmp_path, config):
    docs = written(
        tmp_path / "docs", {"lamp.md": "The lamp is red.", "a\\b.md": "The fan is loud."}
    )
    with open(os.fsencode(docs) + b"/caf\xe9.md", "wb") as file:
        file.write(b"The soup is hot.")
    mine = settings(tmp_path / "store", config.model.id, serve__max_upload=1000)
    with served(mine) as server, rm.Client(server.url) as client:
        done = client.ingest(docs)
        assert (done.files, done.unchanged, client.status().summary.documents) == (1, 0, 1)
        assert [one.path for one in done.skipped] == ["a\\\\b.md", "caf\\xe9.md"]
        assert all("is no name for a file here" in one.reason for one in done.skipped)
        again = client.ingest(docs)
        assert (again.files, again.unchanged, len(again.skipped)) == (0, 1, 2)
        (docs / "lamp.md").unlink()
        with pytest.raises(UsageError, match="is no name for a file here"):
            client.ingest(docs)
        large = written(tmp_path / "large", {"big.md": "The fan is quiet.\n" * 100})
        with pytest.raises(UsageError, match="1000 bytes") as told:
            client.ingest(large)
        assert type(told.value) is UsageError and "--max-upload" in told.value.remedy


NOTHING_DONE = Ingested(files=0, unchanged=0, removed=0, vanished=(), skipped=())


def test_a_file_that_vanishes_stops_no_other(tmp_path):
    docs = written(tmp_path, {"a.md": "The lamp is red.", "b.md": "The fan is loud."})
    taken = asdict(replace(NOTHING_DONE, files=1))
    del taken["failed"]  # of a cluster; a server has none
    done = {"state": "done", "progress": None, "ingested": taken}
    job = f"data: {json.dumps(done)}\n\n"

    class Taking(BaseHTTPRequestHandler):
        def do_POST(self):
            (docs / "b.md").unlink()  # as long as a.md is sent
            self.rfile.read(int(self.headers["Content-Length"]))
            self.tell('{"id": "1234"}')

        def do_GET(self):
            self.tell(job)

        def tell(self, text):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    with serving(Taking) as client:
        told = client.ingest(docs)
        assert told.skipped == (Skipped(str(docs), "b.md", "vanished"),)
        assert (told.files, told.unchanged) == (1, 0)


def test_several_jobs_are_counted_as_one_ingest():
    left = (Skipped("uploads", "c.md", "damaged"), Skipped("uploads", "of-others.md", "damaged"))
    first = replace(NOTHING_DONE, files=3, removed=1, chunks=4, reused=2, verdicts={"exact": 4})
    last = replace(NOTHING_DONE, files=2, unchanged=3, removed=1, chunks=2, reused=1, skipped=left)
    last = replace(last, verdicts={"exact": 1, "pinned": 1})
    names = {f"{letter}.md" for letter in "abcdefgh"}
    done = combine([first, last], names)
    assert (done.files, done.unchanged, done.removed) == (5, 2, 2)
    assert (done.chunks, done.reused, done.skipped) == (6, 3, left)
    assert done.verdicts == {"exact": 5, "pinned": 1}
    assert combine([first, last], {"a.md"}).unchanged == 0  # others sent files meanwhile


def test_retrievers_take_either(client, local):
    for store in (client, local):
        found = LangChainRetriever(store=store).invoke(QUESTION)
        assert [one.id for one in found] == [one.chunk for _, one in local.quotations(QUESTION)]
        nodes = LlamaIndexRetriever(store).retrieve(QUESTION)
        assert [one.node.node_id for one in nodes] == [one.id for one in found]


def test_a_busy_server_is_asked_again(monkeypatch, client):
    """A server that has no place, then one."""

    class Full(BaseHTTPRequestHandler):
        asked = 0

        def do_GET(self):
            Full.asked += 1
            self.send_response(429)
            self.send_header("Retry-After", "0" if Full.asked < 3 else "9999")
            self.end_headers()
            self.wfile.write(b'{"error": {"message": "full", "code": "busy", "remedy": "wait"}}')

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Full) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        with pytest.raises(Busy, match="full"):
            rm.Client(f"http://127.0.0.1:{other.server_port}").status()
        other.shutdown()
        thread.join()
    assert Full.asked == 3


# --- what answers is no server of a store


@contextmanager
def answering(reply, reads=True):
    """A client of what says the same bytes to everybody, and hangs up.

    Unless it `reads` it does so at the end of a request's head.
    """

    def answer():
        with suppress(OSError):  # the socket is closed: that is the end
            while True:
                connection, _ = listening.accept()
                with connection, connection.makefile("rb") as asked:
                    head = list(iter(asked.readline, b"\r\n"))
                    lengths = [line.split()[1] for line in head if b"Content-Length" in line]
                    asked.read(int(lengths[0]) if lengths and reads else 0)
                    connection.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield rm.Client(f"http://127.0.0.1:{listening.getsockname()[1]}")
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


OK = b"HTTP/1.1 200 OK\r\n"
BROKEN = {
    "no HTTP": (b"SSH-2.0-Other\r\n", "does not speak HTTP"),
    "cut short": (OK + b"Content-Length: 100\r\n\r\n{", "broke off|ended within"),
    "cut within a chunk": (OK + b"Transfer-Encoding: chunked\r\n\r\n90\r\nda", "broke off"),
    "HTML": (OK + b"\r\n<html>Sign in</html>\n", "no JSON|ended within"),
    "a cut event": (OK + b'\r\nevent: text\ndata: {"te', "no JSON"),
    "not UTF-8": (OK + b"\r\ndata: \xff\n", "no JSON"),
}


@pytest.mark.parametrize("reply, words", BROKEN.values(), ids=BROKEN)
def test_what_is_no_reply_is_told_with_what_to_do(tmp_path, reply, words):
    docs = written(tmp_path, {"a.md": "The fan is quiet."})
    with answering(reply) as client:
        for call in (client.status, lambda: client.ask(QUESTION), lambda: client.ingest(docs)):
            with pytest.raises(NoStore, match=words) as told:
                call()
            assert told.value.remedy and "\r" not in str(told.value)


@pytest.mark.parametrize("body", [b'{"error": "no"}', b"<html>", b"{", b'{"error": {"code": 1}}'])
def test_an_error_of_somebody_between_is_told_by_its_status(body):
    head = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: %d\r\n\r\n" % max(9, len(body))
    with answering(head + body) as client, pytest.raises(RagMemtokError, match="502 Bad Gateway"):
        client.status()


# --- restore


def files_in(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_it_restores_what_the_store_does(client, local, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = []
    noting = rm.Client(client.url, TOKEN, on_progress=told.append)
    wanted = local.restore(tmp_path / "local")
    for _ in range(2):  # again, over the same
        done = noting.restore(tmp_path / "here")
        assert [one.relative_to(tmp_path / "here") for one in done.written] == [
            one.relative_to(tmp_path / "local") for one in wanted.written
        ]
        assert (done.failed, done.damaged, done.exit_code) == ((), False, 0)
    assert files_in(tmp_path / "here") == files_in(tmp_path / "local") != {}
    assert told[-1].done == told[-1].total > 0
    with pytest.raises(UsageError, match="a path is empty"):
        noting.restore("")
    (tmp_path / "here" / "lamp.md").write_text("mine")
    with pytest.raises(UsageError, match="in the way"):
        client.restore(tmp_path / "here")


@pytest.mark.parametrize("kept", [True, False])
def test_what_is_not_proven_is_refused_as_the_store_does(config, tmp_path, kept):
    """From memories, not from the table of texts: that one has the text."""
    mine = settings(tmp_path / "store", config.model.id, memorize__keep_text=kept)
    api.ingest([written(tmp_path / "docs")], mine)
    with closing(sqlite3.connect(tmp_path / "store" / "store.db")) as db, db:
        one = "(SELECT chunk FROM occurrences JOIN documents ON documents.rowid = document {})"
        wrong = one.format("WHERE path = CAST('lamp.md' AS BLOB) LIMIT 1")
        assert db.execute(f"UPDATE vectors SET rows = 99 WHERE chunk = {wrong}").rowcount == 1
        lost = "UPDATE documents SET characters = 99 WHERE path = CAST('again.txt' AS BLOB)"
        assert db.execute(lost).rowcount == 1
    with MemoryStore(mine, trusted=False, say=print, on_progress=lambda at: None) as store:
        wanted = store.restore(tmp_path / "local")
    with served(mine) as server:
        done = rm.Client(server.url).restore(tmp_path / "here")
        reply = server.post("/restore", {"root": "nowhere", "path": "lamp.md"})
        assert reply.status == 404 and reply.error["code"] == "document"
    assert done.failed == wanted.failed and {"lamp.md"} < {path for path, _ in done.failed}
    assert done.exit_code == wanted.exit_code == 13
    assert files_in(tmp_path / "here") == files_in(tmp_path / "local") != {}
    assert not (tmp_path / "here" / "lamp.md").exists()


HOSTILE = "mine\n"


def document(**changes):
    told = {"root": "/a/b", "file": "x", "path": "lamp.md", "chunks": 1, "extractor": "text/1"}
    told |= {"characters": len(HOSTILE), "sha256": sha256_of_text(HOSTILE)}
    return told | changes


@contextmanager
def hostile(documents, events):
    """A server that says what it likes."""

    class Hostile(BaseHTTPRequestHandler):
        def do_GET(self):
            self.tell(json.dumps({"documents": documents, "lost": []}))

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.tell("".join(f"event: {name}\ndata: {json.dumps(x)}\n\n" for name, x in events))

        def tell(self, text):
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):  # the client has heard enough
                self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    with serving(Hostile) as client:
        yield client


GIVEN = [("text", {"text": HOSTILE}), ("restored", {})]


@pytest.mark.parametrize(
    "path",
    [
        "../lamp.md",
        "/tmp/lamp.md",
        "b/../../lamp.md",
        "lamp\0.md",
        "link/lamp.md",
        "",
        ".",
        "\ud800",
    ],
)
def test_a_hostile_server_writes_nothing_outside_the_folder(tmp_path, path):
    to = tmp_path / "home" / "to"
    to.mkdir(parents=True)
    (to / "link").symlink_to(tmp_path)
    with hostile([document(path=path)], GIVEN) as client:
        with pytest.raises(InputRefused, match="outside"):
            client.restore(to)
    assert files_in(tmp_path) == {}


@pytest.mark.parametrize("root", ["/a/..", "..", "/", ""])
def test_a_hostile_root_leads_nowhere_else(tmp_path, root):
    with hostile([document(root=root), document(root="/c", path="fan.md")], GIVEN) as client:
        client.restore(tmp_path / "home" / "to")
    text = HOSTILE.encode()
    assert files_in(tmp_path / "home") == {"to/root/lamp.md": text, "to/c/fan.md": text}


@pytest.mark.parametrize(
    "events",
    [
        [("text", {"text": "other"}), ("restored", {})],
        [("text", {"text": HOSTILE})] * 1000,
        [("text", {"text": "\ud800"}), ("restored", {})],
        [("restored", {})],
        [("refused", {"damaged": False})],
    ],
    ids=["another text", "without end", "no text", "nothing", "refused"],
)
def test_only_the_text_that_was_named_is_written(tmp_path, events):
    with hostile([document()], events) as client:
        done = client.restore(tmp_path / "to")
    assert done.failed == (("lamp.md", UNPROVEN),) and done.exit_code == 5
    assert not (tmp_path / "to").exists()


def test_a_server_that_ends_within_a_document_is_told(tmp_path):
    with hostile([document()], GIVEN[:1]) as client:
        with pytest.raises(NoStore, match="ended within 'lamp.md'"):
            client.restore(tmp_path / "to")


# --- the same methods

MODELS = {"session", "beside"}  # they hand out what is loaded


def methods_of(kind):
    return {
        name: inspect.signature(value)
        for name, value in vars(kind).items()
        if not name.startswith("_") and callable(value)
    }


def test_it_has_the_methods_of_a_local_store():
    here, there = methods_of(rm.Client), methods_of(MemoryStore)
    assert here == {name: value for name, value in there.items() if name not in MODELS}
    assert MODELS < set(there)
    text = (Path(__file__).parent.parent / "docs" / "serve.md").read_text()
    named = text[text.index("has the methods of a local store") :].split("\n\n")[0]
    assert all(f"`{name}`" in named for name in there)
