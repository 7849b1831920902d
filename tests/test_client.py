"""The client: what it gives is what the store itself gives, errors too."""

import threading

import pytest
import toy
from served import served, settings
from small import written

import rag_memtok as rm
from rag_memtok.errors import (
    Busy,
    InputRefused,
    NoStore,
    NoUsableMemory,
    PermissionRefused,
    UsageError,
)
from rag_memtok.integrations.langchain import MemtokRetriever as LangChainRetriever
from rag_memtok.integrations.llamaindex import MemtokRetriever as LlamaIndexRetriever
from rag_memtok.pipeline import api
from rag_memtok.pipeline.handle import MemoryStore

QUESTION, TOKEN = "Who was the keeper of the lamp?", "a-token-of-the-tests"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    config = settings(folder / "store", toy.save(folder / "toy"))
    api.ingest([written(folder / "docs")], config)
    return config


@pytest.fixture(scope="module")
def local(config):
    with MemoryStore(config, False, print, lambda at: None) as store:
        yield store


@pytest.fixture(scope="module")
def client(config):
    with served(config, token=TOKEN) as server, rm.Client(server.url, TOKEN) as client:
        yield client


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


def test_without_a_server_or_its_token(client):
    with pytest.raises(PermissionRefused, match="token"):
        rm.Client(client.url, "another-token-than-that").status()
    with pytest.raises(NoStore, match="nobody answers"):
        rm.Client("http://127.0.0.1:9").ask(QUESTION)


def test_it_sends_a_folder(tmp_path, config):
    told = []
    mine = settings(tmp_path / "store", config.model.id)
    docs = written(
        tmp_path / "docs", {"lamp.md": "The lamp is red.", "a/fan.txt": "The fan is loud."}
    )
    (docs / ".gitignore").write_text("secret.txt\n")
    (docs / "secret.txt").write_text("The code is 1234.")
    with served(mine) as server, rm.Client(server.url, on_progress=told.append) as client:
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


def test_retrievers_take_either(client, local):
    for store in (client, local):
        found = LangChainRetriever(store=store).invoke(QUESTION)
        assert [one.id for one in found] == [one.chunk for _, one in local.quotations(QUESTION)]
        nodes = LlamaIndexRetriever(store).retrieve(QUESTION)
        assert [one.node.node_id for one in nodes] == [one.id for one in found]


def test_a_busy_server_is_asked_again(monkeypatch, client):
    """A server that has no place, then one."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

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
