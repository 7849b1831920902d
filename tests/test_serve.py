"""The server as programs see it: OpenAI's API by the official clients, and the store's own."""

import json
import os
import shutil
import signal
import subprocess
import sys

import openai
import pytest
import toy
from langchain_openai import ChatOpenAI
from llama_index.llms.openai_like import OpenAILike
from served import served, settings
from small import DOCUMENTS, written

import rag_memtok as rm
from rag_memtok.pipeline import api
from rag_memtok.pipeline.handle import MemoryStore
from rag_memtok.pipeline.inspect import page_of_chunks
from rag_memtok.serve.metrics import Metrics
from rag_memtok.store.files import CRASH_AT
from rag_memtok.store.store import Store, open_store

LAMP, SOUP = "Who was the keeper of the lamp?", "¿Cuánto se hornea la empanada?"
NOTHING = "zzz"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy.save(tmp_path_factory.mktemp("model") / "toy")


@pytest.fixture(scope="module")
def config(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("served")
    config = settings(folder / "store", model)
    api.ingest([written(folder / "docs")], config)
    return config


@pytest.fixture(scope="module")
def server(config):
    with served(config) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def alone(config):
    """What the store answers to one who asks alone."""
    with MemoryStore(config, trusted=False, say=print, on_progress=lambda at: None) as store:
        answers = {question: store.ask(question) for question in (LAMP, SOUP)}
        return answers | {(SOUP, LAMP): store.ask(LAMP, before=SOUP)}


def asked(question, **more):
    return {"model": "rag-memtok", "messages": [{"role": "user", "content": question}], **more}


# --- OpenAI's API, by its own client


def test_the_official_client_is_answered_with_sources(client, alone):
    done = client.chat.completions.create(**asked(LAMP))
    told, (choice,) = alone[LAMP], done.choices
    assert choice.message.content == told.answer and choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    first = choice.message.annotations[0].url_citation
    assert first.title.startswith(told.sources[0].name)
    assert first.url.endswith(f"/chunks/{told.sources[0].chunk}")
    assert (first.start_index, first.end_index) == (0, len(told.answer))
    assert done.usage.prompt_tokens == told.prompt_positions
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert [one["chunk"] for one in done.rag_memtok["sources"]] == [
        one.chunk for one in told.sources
    ]
    assert done.rag_memtok["texts"] == list(told.texts) and done.rag_memtok["ignored"] == []


def test_the_official_client_streams(client, alone):
    options = {"include_usage": True}
    events = list(
        client.chat.completions.create(**asked(LAMP, stream=True, stream_options=options))
    )
    said = "".join(one.choices[0].delta.content or "" for one in events if one.choices)
    assert said.strip() == alone[LAMP].answer
    assert events[0].choices[0].delta.role == "assistant"
    assert events[-1].usage.prompt_tokens == alone[LAMP].prompt_positions and not events[-1].choices
    assert events[-2].choices[0].finish_reason and events[-2].rag_memtok["sources"]
    assert len({one.id for one in events}) == 1


def test_completions_and_models(client, alone):
    done = client.completions.create(model="rag-memtok", prompt=SOUP)
    assert done.choices[0].text == alone[SOUP].answer
    pieces = client.completions.create(model="rag-memtok", prompt=[SOUP], stream=True)
    assert "".join(one.choices[0].text for one in pieces).strip() == alone[SOUP].answer
    assert [one.id for one in client.models.list()] == ["rag-memtok"]
    assert client.models.retrieve("rag-memtok").object == "model"


def test_the_last_user_message_is_the_question(client, alone):
    messages = [
        {"role": "system", "content": "Answer as a pirate."},
        {"role": "user", "content": SOUP},
        {"role": "assistant", "content": "Media hora."},
        {"role": "user", "content": [{"type": "text", "text": LAMP}]},
    ]
    done = client.chat.completions.create(model="rag-memtok", messages=messages)
    assert done.choices[0].message.content == alone[SOUP, LAMP].answer
    assert done.rag_memtok["ignored"] == ["messages.system"]


def test_what_is_sent_unasked_is_named_as_ignored(client, alone):
    done = client.chat.completions.create(
        **asked(LAMP) | {"model": "gpt-4o"}, temperature=0.7, top_p=0.9, seed=3, stop=["x"]
    )
    assert done.rag_memtok["ignored"] == ["model", "seed", "stop", "temperature", "top_p"]
    assert done.choices[0].message.content == alone[LAMP].answer and done.model == "rag-memtok"


TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
IMAGE = [{"type": "image_url", "image_url": {"url": "http://localhost/a.png"}}]


@pytest.mark.parametrize(
    "name, sent",
    [
        ("tools", {"tools": [TOOL]}),
        ("n", {"n": 2}),
        ("logprobs", {"logprobs": True}),
        ("max_tokens", {"max_tokens": 0}),
        ("messages", {"messages": []}),
        ("messages.0.content", {"messages": [{"role": "user", "content": IMAGE}]}),
        ("messages.0.role", {"messages": [{"role": "pirate", "content": "Ahoy"}]}),
    ],
)
def test_what_is_not_there_is_refused_by_name(client, name, sent):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**asked(LAMP) | sent)
    told = refused.value
    assert name in told.body["message"] and (told.param or "").startswith(name)
    assert told.body["remedy"] and told.type == "invalid_request_error"


def test_what_clients_send_for_nothing_is_no_refusal(client, alone):
    done = client.chat.completions.create(**asked(LAMP, n=1, logprobs=False, tool_choice="none"))
    assert done.choices[0].message.content == alone[LAMP].answer


def test_a_question_without_an_answer_is_told_so_in_words(client):
    done = client.chat.completions.create(**asked(NOTHING))
    assert "nothing in the store" in done.choices[0].message.content
    assert done.rag_memtok["refused"] == "retrieval" and not done.choices[0].message.annotations
    pieces = list(client.chat.completions.create(**asked(NOTHING, stream=True)))
    assert "nothing in the store" in pieces[1].choices[0].delta.content


def test_an_answer_is_no_longer_than_asked(client, alone):
    done = client.chat.completions.create(**asked(LAMP, max_completion_tokens=1))
    assert done.usage.completion_tokens <= 1
    assert client.chat.completions.create(**asked(LAMP)).choices[0].message.content == (
        alone[LAMP].answer
    )


def test_langchains_own_class(server, alone):
    llm = ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", model="rag-memtok", max_retries=0)
    assert llm.invoke(LAMP).content == alone[LAMP].answer
    assert "".join(one.content for one in llm.stream(SOUP)).strip() == alone[SOUP].answer
    assert llm.invoke([("system", "Be brief."), ("human", SOUP)]).content == alone[SOUP].answer


def test_llamaindexs_own_class(server, alone):
    llm = OpenAILike(
        api_base=f"{server.url}/v1", api_key="none", model="rag-memtok", is_chat_model=True
    )
    assert llm.complete(LAMP).text == alone[LAMP].answer
    assert "".join(one.delta or "" for one in llm.stream_complete(SOUP)).strip() == (
        alone[SOUP].answer
    )


# --- the store's own API


def test_ask_tells_all_that_the_store_says(server, alone):
    told = server.post("/ask", {"question": LAMP}).json

    assert told["answer"] == alone[LAMP].answer and told["texts"] == list(alone[LAMP].texts)


def test_ask_streams_and_ends_with_the_whole(server, alone):
    reply = server.post("/ask", {"question": LAMP, "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = [one.split("\n") for one in reply.text.strip().split("\n\n")]
    told = [(name.removeprefix("event: "), json.loads(data[6:])) for name, data in events]
    assert "".join(one["text"] for name, one in told if name == "text").strip() == (
        alone[LAMP].answer
    )
    assert told[-1][0] == "answer" and told[-1][1]["answer"] == alone[LAMP].answer


def test_what_cannot_be_answered_is_an_error_with_its_remedy(server):
    for stream in (False, True):
        reply = server.post("/ask", {"question": NOTHING, "stream": stream})
        assert reply.status == 404 and reply.error["code"] == "no-usable-memory"
    reply = server.post("/ask", {"question": "?"})
    assert reply.status == 404 and "no word" in reply.error["message"]
    reply = server.post("/ask", {"question": "why " * 1000})
    assert reply.status == 400 and "tokens" in reply.error["message"]
    reply = server.post("/ask", {"question": LAMP, "within": "nowhere/"})
    assert reply.status == 400 and "nowhere" in reply.error["message"]


def test_search_takes_k_and_a_folder(server, config):
    found = server.post("/search", {"question": "lamp keeper", "k": 1}).json["found"]
    assert [one["source"]["path"] for one in found] == ["lamp.md"] and "lamp" in found[0]["text"]
    within = server.post("/search", {"question": "lamp cebolla", "within": "soup"}).json["found"]
    assert {one["source"]["path"] for one in within} == {"soup/receta.txt"}


def test_documents_chunks_and_a_memory_token_by_token(server, config):
    papers = server.get("/documents").json["documents"]
    assert [one["path"] for one in papers] == [one.document.path for one in api.documents(config)]
    assert all(sum(one["verdicts"].values()) == one["chunks"] for one in papers)
    listed = server.get("/chunks?path=lamp.md").json
    assert listed["total"] == len(listed["chunks"]) > 0
    for one in listed["chunks"]:
        shown = server.get(f"/chunks/{one['chunk_id'][:16]}").json
        assert shown["text"] in DOCUMENTS["lamp.md"] and shown["chunk_id"] == one["chunk_id"]
        assert "".join(token["text"] for token in shown["tokens"][:-1]) == shown["text"]
        pinned = sum(token["pin"] != "" for token in shown["tokens"])
        assert pinned == one["verdict"]["corrections"] + one["verdict"]["safeties"]
    assert server.get("/chunks/ffffffffffffffff").status == 404
    assert server.get("/chunks/nothing").status == 400


def test_of_chunks_that_are_not_told_no_record_is_read(server, config, monkeypatch):
    read, record = [], Store.record

    def counted(store, chunk_id):
        read.append(chunk_id)
        return record(store, chunk_id)

    everything = server.get("/chunks").json
    assert everything["total"] == len(everything["chunks"]) == len(api.chunks(config)) > 3
    monkeypatch.setattr(Store, "record", counted)
    told = server.get("/chunks?path=again.txt").json
    (chunk,) = told["chunks"]
    assert read == [chunk["chunk_id"]] and told["total"] == 1
    # a file of the same text has the same chunk, where it stands in that file
    (same,) = server.get("/chunks?path=copy.txt").json["chunks"]
    assert same == chunk | {"place": chunk["place"] | {"path": "copy.txt"}}
    del read[:]
    last = server.get(f"/chunks?start={everything['total'] - 1}").json
    assert last["chunks"] == everything["chunks"][-1:] and len(read) == 1
    ordered = server.get("/chunks?path=lamp.md").json["chunks"]
    assert [one["place"]["ordinal"] for one in ordered] == list(range(len(ordered)))
    assert server.get("/chunks?path=lamp.md&start=1").json["chunks"] == ordered[1:]
    assert server.get("/chunks?path=nothing.md").json == {"chunks": [], "total": 0}


def test_of_a_damaged_document_the_chunks_that_are_left_are_told(config, tmp_path):
    folder = shutil.copytree(config.store, tmp_path / "store")
    with open_store(folder, write=True) as store:
        whole, total = page_of_chunks(store, "lamp.md", 0, 99)
        assert total == len(whole) > 1
        store._db.execute(
            "DELETE FROM occurrences WHERE ordinal = 0 AND document = "
            "(SELECT number FROM documents WHERE path = CAST('lamp.md' AS BLOB))"
        )
        assert page_of_chunks(store, "lamp.md", 0, 99) == (whole[1:], total - 1)


def test_status_health_and_metrics(server, config):
    status, health = server.get("/status").json, server.get("/health").json
    assert status["summary"]["chunks"] == api.status(config).summary.chunks
    assert "maker" not in status["manifest"], "whoever has it can pass a store off as made here"
    assert health == {"status": "ok", "version": rm.__version__, "store": True, "waiting": 0}
    server.post("/ask", {"question": LAMP})
    lines = dict(one.rsplit(" ", 1) for one in server.get("/metrics").text.splitlines())
    assert float(lines['rag_memtok_questions_total{outcome="answered"}']) >= 1
    assert lines["rag_memtok_questions_waiting"] == "0"


def test_counters_are_told_to_the_last_digit():
    metrics = Metrics()
    metrics.gauge("jobs_waiting", lambda: 7)
    metrics.count("requests_total", 12_345_678, route="/ask", status="200")
    metrics.count("requests_total", route="/ask", status="200")
    metrics.count("answer_seconds_sum", 1_234_567.25)
    metrics.count("answer_seconds_sum", 0.125)
    lines = metrics.text().splitlines()
    assert 'rag_memtok_requests_total{route="/ask",status="200"} 12345679' in lines
    assert "rag_memtok_answer_seconds_sum 1234567.375" in lines
    assert "rag_memtok_jobs_waiting 7" in lines


def test_an_audit_is_a_job(server, config):
    job = server.post("/verify", {})
    assert job.status == 202 and job.json["kind"] == "verify"
    ended = server.ended(job.json["id"])
    assert ended["state"] == "done" and ended["audit"]["ok"] and not ended["audit"]["findings"]
    chunks = api.status(config).summary.chunks
    assert ended["audit"]["checked"] == chunks == sum(ended["progress"]["facts"].values())
    assert server.get(f"/jobs/{job.json['id']}").json == ended
    assert server.get("/jobs").json["jobs"][0] == ended
    assert server.get("/jobs/ffffffffffffffff").error["code"] == "http"


def test_a_store_is_made_by_what_is_sent(tmp_path, model):
    with served(settings(tmp_path / "store", model)) as server:
        assert server.get("/health").json["store"] is False
        assert server.post("/ask", {"question": LAMP}).error["code"] == "no-store"
        first = server.upload("notes/lamp%20one.md", b"The lamp of the harbour is red.")
        ended = server.ended(first.json["id"])
        assert ended["state"] == "done" and ended["ingested"]["files"] == 1
        found = server.post("/search", {"question": "lamp"}).json["found"]
        assert [one["source"]["path"] for one in found] == ["notes/lamp one.md"]
        assert found[0]["source"]["root"] == str(tmp_path / "store" / "uploads")
        assert found[0]["source"]["file"] == ""
        again = server.upload("notes/lamp%20one.md", b"The lamp of the harbour is green.")
        assert server.ended(again.json["id"])["ingested"]["files"] == 1
        found = server.post("/search", {"question": "lamp"}).json["found"]
        assert [one["text"] for one in found] == ["The lamp of the harbour is green."]
    assert api.verify(settings(tmp_path / "store", model)).ok


def test_what_is_removed_is_in_no_file_and_does_not_come_back(tmp_path, model):
    config = settings(tmp_path / "store", model)
    docs = written(tmp_path / "docs", {"lamp.md": "The lamp of the harbour is old."})
    sent = tmp_path / "store" / "uploads"
    with served(config) as server:
        for name in ("notes/lamp.md", "soup.md"):
            text = f"The lamp of the harbour is in {name}.".encode()
            assert server.ended(server.upload(name, text).json["id"])["state"] == "done"
        api.ingest([docs], config)
        assert api.remove(sent / "notes", config) == (str(sent / "notes" / "lamp.md"),)
        again = server.upload("fan.md", b"The fan is loud.").json
        assert server.ended(again["id"])["ingested"]["files"] == 1
        listed = [one["path"] for one in server.get("/documents").json["documents"]]
        assert listed == ["lamp.md", "fan.md", "soup.md"]
        assert api.remove(docs, config) and (docs / "lamp.md").exists()
        api.remove(sent / "soup.md", config)
    files = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert len(files) > 3 and not [path for path in files if b"harbour" in path.read_bytes()]


def test_a_kill_while_an_upload_is_removed_lets_it_be_removed_again(tmp_path, model):
    config, sent = settings(tmp_path / "store", model), tmp_path / "store" / "uploads"
    with served(config) as server:
        server.ended(server.upload("lamp.md", b"The lamp of the harbour is red.").json["id"])
    program = "from rag_memtok.cli.app import main; main()"
    words = [sys.executable, "-c", program, "rm", str(sent / "lamp.md"), "--store", config.store]
    for step in range(1, 9):
        killed = subprocess.run(words, env=os.environ | {CRASH_AT: str(step)}, capture_output=True)
        assert killed.returncode == -signal.SIGKILL and len(api.documents(config)) == 1
        if killed.stderr == b"killed: upload deleted\n":
            break
        assert (sent / "lamp.md").exists()
    assert not (sent / "lamp.md").exists() and api.remove(sent, config)
    assert api.documents(config) == ()


def test_paths_under_a_root_are_taken_in(tmp_path, model):
    docs = written(
        tmp_path / "docs", {"lamp.md": "The lamp is red.", "fan.txt": "The fan is loud."}
    )
    with served(settings(tmp_path / "store", model, serve__roots=[str(docs)])) as server:
        job = server.post("/ingest", {"paths": [str(docs)]}).json
        assert job["subjects"] == [str(docs)]
        assert server.ended(job["id"])["ingested"]["files"] == 2
        (docs / "fan.txt").unlink()
        job = server.post("/ingest", {"paths": [str(docs)], "prune": True}).json
        assert server.ended(job["id"])["ingested"]["removed"] == 1
        assert [one["path"] for one in server.get("/documents").json["documents"]] == ["lamp.md"]
