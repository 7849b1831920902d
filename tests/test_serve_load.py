"""Many at once: shared passes, a bounded queue, hang-ups, ingests beside questions, the end."""

import asyncio
import http.client
import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import toy
from served import HANGS, served, settings, until
from small import DOCUMENTS, written

from rag_memtok.errors import Busy, NoUsableMemory
from rag_memtok.pipeline import api
from rag_memtok.pipeline.answer import finish, prepare, respond
from rag_memtok.pipeline.handle import MemoryStore
from rag_memtok.serve import restoring
from rag_memtok.serve.engine import BATCH, Engine, Question, Ticket, group_into_batches
from rag_memtok.serve.metrics import Metrics

QUESTIONS = [
    "Who was the keeper of the lamp?",
    "¿Cuánto se hornea la empanada?",
    "What did the fan do?",
    "Which ticket has a log?",
    "When was the harbour's lamp repaired?",
    "Lleva la empanada cebolla, huevo y aceitunas?",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy.save(tmp_path_factory.mktemp("model") / "toy")


@pytest.fixture(scope="module", params=["together", "apart"])
def config(request, tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("served")
    config = settings(folder / "store", model, ask__passages=request.param)
    api.ingest([written(folder / "docs")], config)
    return config


@pytest.fixture
def store(config):
    with MemoryStore(config, trusted=False, say=print, on_progress=lambda at: None) as store:
        yield store


def plain(answer):
    """An answer without the time that it took."""
    return {name: getattr(answer, name) for name in answer.__slots__ if name != "seconds"}


class Held:
    """An engine whose thread is kept busy, so that a queue forms before it."""

    def __init__(self, store, places=1000):
        self.metrics, self.go = Metrics(), threading.Event()
        self.engine = Engine(store, self.metrics, places)
        self.engine.start()
        self.begun = threading.Event()
        self.engine.call(self._hold)
        self.begun.wait(HANGS)

    def _hold(self, session):
        self.begun.set()
        assert self.go.wait(HANGS)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.go.set()
        self.engine.close()


# --- shared passes


def test_questions_in_one_batch_are_answered_as_alone(store):
    """In fp32; what a batch changes in the last bits of logits changes no word here."""
    session = store.session()
    alone = [plain(store.ask(question)) for question in QUESTIONS]
    ready = [prepare(session, question) for question in QUESTIONS]
    said = respond(session, ready)
    both = zip(ready, said, strict=True)
    assert [plain(finish(session, *one)) for one in both] == alone


def test_those_of_another_length_end_where_they_should(store):
    session = store.session()
    limits = [1, 4, 2, 3, 1, 4]
    ready = [prepare(session, one, limit=most) for one, most in zip(QUESTIONS, limits, strict=True)]
    for one, limit, response in zip(QUESTIONS, limits, respond(session, ready), strict=True):
        (alone,) = respond(session, [prepare(session, one, limit=limit)])
        assert response.tokens == alone.tokens and len(response.tokens) <= limit


def test_what_waits_shares_passes_and_nothing_is_mixed_up(store):
    alone = {question: plain(store.ask(question)) for question in QUESTIONS}
    store.close()
    asked = QUESTIONS * 5
    said = {number: [] for number in range(len(asked))}
    with Held(store) as held:
        tickets = [
            held.engine.ask(Question(text=one), said[number].append)
            for number, one in enumerate(asked)
        ]
        nothing = held.engine.ask(Question(text="zzz"), lambda text: None)
        held.go.set()
        for number, (one, ticket) in enumerate(zip(asked, tickets, strict=True)):
            assert plain(ticket.result.result(HANGS).answer) == alone[one]
            assert "".join(said[number]).strip() == alone[one]["answer"]
        with pytest.raises(NoUsableMemory):
            nothing.result.result(HANGS)
        batches = held.metrics.value("batches_total")
        assert held.metrics.value("batched_questions_total") == len(asked) > 2 * batches


def test_a_group_has_no_more_prompts_than_a_batch(store):
    session = store.session()
    ready = [(Ticket(work=Question(text=one)), prepare(session, one)) for one in QUESTIONS * 4]
    groups = group_into_batches(ready)
    assert [one for group in groups for one in group] == ready
    assert all(sum(len(one.prompts) for _, one in group) <= BATCH for group in groups)


def test_an_error_is_that_questions_alone(store):
    wrong = [Question(text=""), Question(text="why " * 500), Question(text="lamp", within="no")]
    with Held(store) as held:
        bad = [held.engine.ask(one, lambda text: None) for one in wrong]
        good = held.engine.ask(Question(text=QUESTIONS[0]), lambda text: None)
        held.go.set()
        assert good.result.result(HANGS).answer
        assert all(one.result.exception(HANGS) is not None for one in bad)
        broken = held.engine.call(lambda session: 1 / 0)
        assert isinstance(broken.exception(HANGS), ZeroDivisionError)
        after = held.engine.ask(Question(text=QUESTIONS[0]), lambda text: None)
        assert after.result.result(HANGS).answer


# --- the bound


def test_beyond_the_bound_it_is_busy_and_a_place_comes_back(store):
    with Held(store, places=2) as held:
        first, second = (
            held.engine.ask(Question(text=one), lambda text: None) for one in QUESTIONS[:2]
        )
        with pytest.raises(Busy) as told:
            held.engine.ask(Question(text=QUESTIONS[2]), lambda text: None)
        assert 1 <= told.value.seconds <= 60 and told.value.remedy
        first.cancel()
        third = held.engine.ask(Question(text=QUESTIONS[2]), lambda text: None)
        held.go.set()
        assert second.result.result(HANGS) and third.result.result(HANGS)
        assert not first.result.done(), "nothing is done for who hung up"


def test_a_full_server_says_when_to_come_back(model, config):
    with served(settings(config.store, model, serve__places=1)) as server:
        go = threading.Event()
        engine = server.server.config.app.app.state.serving.engine
        begun = threading.Event()

        def hold(session):
            begun.set()
            assert go.wait(HANGS)

        engine.call(hold)
        assert begun.wait(HANGS)
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(server.post, "/ask", {"question": QUESTIONS[0]})
            until(lambda: engine.waiting)
            for path, body in (
                ("/ask", {"question": QUESTIONS[1]}),
                ("/v1/completions", {"model": "m", "prompt": QUESTIONS[1], "stream": True}),
                ("/search", {"question": QUESTIONS[1]}),
            ):
                busy = server.post(path, body)
                assert busy.status == 429 and int(busy.headers["retry-after"]) >= 1
                assert busy.error["type"] == "rate_limit_error" and busy.error["code"] == "busy"
            assert server.get("/health").json["waiting"] == 1
            go.set()
            assert waiting.result(HANGS).status == 200


def test_a_restore_waits_for_places_and_ends_with_the_server(model, config):
    (paper, *_) = [one.document for one in api.documents(config)]

    async def told(here):
        return [one async for one in restoring.stream_document(here, paper)]

    with served(settings(config.store, model, serve__places=1)) as server:
        here = server.server.config.app.app.state.serving
        go, begun = threading.Event(), threading.Event()

        def hold(session):
            begun.set()
            assert go.wait(HANGS)

        here.engine.call(hold)
        assert begun.wait(HANGS)
        here.engine.call(lambda session: None)  # the only place
        with ThreadPoolExecutor() as pool:
            decoding = pool.submit(asyncio.run, told(here))
            until(lambda: here.metrics.value("questions_total", outcome="busy"))
            go.set()
            events = decoding.result(HANGS)
        assert len(events) == paper.chunks + 1 and "event: restored" in events[-1]
        here.ending.signals.append(signal.SIGTERM)
        until(lambda: here.ending.leaving)
        (last,) = asyncio.run(told(here))
        assert "event: error" in last and "the server ends" in last


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_frees_the_place(model, config, stream):
    with served(settings(config.store, model, serve__places=1)) as server:
        go, begun = threading.Event(), threading.Event()
        engine = server.server.config.app.app.state.serving.engine

        def hold(session):
            begun.set()
            assert go.wait(HANGS)

        engine.call(hold)
        assert begun.wait(HANGS)
        gone = http.client.HTTPConnection("127.0.0.1", server.port, timeout=HANGS)
        body = json.dumps({"question": QUESTIONS[0], "stream": stream})
        gone.request("POST", "/ask", body, {"Content-Type": "application/json"})
        until(lambda: engine.waiting)
        gone.close()
        (ticket,) = engine._queue
        until(lambda: ticket.cancelled)
        with ThreadPoolExecutor() as pool:
            other = pool.submit(server.post, "/ask", {"question": QUESTIONS[1]})
            until(lambda: engine.waiting == 2)
            go.set()
            assert other.result(HANGS).status == 200


def test_a_row_that_is_cancelled_speaks_no_more(store):
    session = store.session()
    heard = []
    ready = [
        prepare(session, QUESTIONS[0], on_text=heard.append, cancelled=lambda: True),
        prepare(session, QUESTIONS[1]),
    ]
    response, other = respond(session, ready)
    assert len(response.tokens) <= 1
    (alone,) = respond(session, [prepare(session, QUESTIONS[1])])
    assert other.tokens == alone.tokens


# --- beside and after


def test_an_ingest_does_not_stop_questions(tmp_path, model):
    """A question is asked and answered between two steps of an ingest, which waits for it."""
    config = settings(tmp_path / "store", model)
    api.ingest([written(tmp_path / "docs", {"lamp.md": DOCUMENTS["lamp.md"]})], config)
    with served(config) as server:
        jobs = server.server.config.app.app.state.serving.jobs
        begun, asked = threading.Event(), threading.Event()
        tell = jobs._store._on_progress

        def step(progress):
            begun.set()
            assert asked.wait(HANGS), "the question was not answered while the ingest was"
            tell(progress)

        jobs._store._on_progress = step
        job = server.upload("fan.md", b"The fan is loud.\n\nThe soup is hot.").json
        assert begun.wait(HANGS)
        assert server.get(f"/jobs/{job['id']}").json["state"] == "running"
        assert server.post("/ask", {"question": QUESTIONS[0]}).json["answer"]
        verify = server.post("/verify", {}).json
        assert server.get(f"/jobs/{verify['id']}").json["state"] == "waiting", "one at a time"
        more = [server.upload(name, b"It rains.").json for name in ("a.md", "b.md")]
        assert len({one["id"] for one in more}) == 1, "those that wait are one job"
        asked.set()
        assert server.ended(job["id"])["state"] == "done"
        assert server.ended(verify["id"])["audit"]["ok"]
        joined = server.ended(more[0]["id"])
        assert joined["subjects"] == ["a.md", "b.md"] and joined["ingested"]["files"] == 2
        names = {one["path"] for one in server.get("/documents").json["documents"]}
        assert names == {"lamp.md", "fan.md", "a.md", "b.md"}
        found = server.post("/search", {"question": "fan", "k": 1}).json["found"]
        assert found[0]["source"]["path"] == "fan.md"


def test_an_ingest_is_stopped_by_the_end_and_goes_on_after_it(tmp_path, model):
    config = settings(tmp_path / "store", model)
    with served(config) as server:
        jobs = server.server.config.app.app.state.serving.jobs
        begun, ended = threading.Event(), threading.Event()
        tell = jobs._store._on_progress

        def step(progress):
            begun.set()
            assert ended.wait(HANGS)
            tell(progress)

        jobs._store._on_progress = step
        job = server.upload("fan.md", b"The fan is loud.\n\nThe soup is hot.").json
        assert begun.wait(HANGS)
        jobs.stop()
        ended.set()
        assert server.ended(job["id"])["state"] == "stopped"
        with pytest.raises(Busy):
            jobs.add("verify", [], lambda store: store.verify())
    with served(config) as server:
        assert (
            server.ended(server.upload("b.md", b"It rains.").json["id"])["ingested"]["files"] == 2
        )
    assert api.verify(config).ok
