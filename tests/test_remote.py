"""A server that answers in our model's place.

Its answers are ours, the wrong one is refused, and a failing one is told with what to do.
"""

import json
import shlex
import socket
from dataclasses import replace

import engine_server
import pytest
import random_adapter
import torch
import toy
from engine_server import Engine, cut, replied, serving, status, streamed, stuck
from small import dials, written

from rag_memtok.errors import (
    EngineUnavailable,
    PermissionRefused,
    StoreDamaged,
    UsageError,
    WrongModel,
)
from rag_memtok.model import lora, remote
from rag_memtok.model.connect import ServedAdapter, connect, connect_adapter
from rag_memtok.model.engine import LocalEngine
from rag_memtok.model.inject import inject
from rag_memtok.model.lm import load
from rag_memtok.model.prompts import qa_prompt
from rag_memtok.model.wire import TOKEN, Server, header_token
from rag_memtok.pipeline import api
from rag_memtok.pipeline.answer import answer
from rag_memtok.settings import updated

QUESTION = "Who is the keeper of the lamp?"
LIMIT = 6


@pytest.fixture
def engine(toy_lm):
    """A server's state: the toy's model, no faults."""
    return Engine(toy_lm)


@pytest.fixture
def url(engine):
    """A running server."""
    with serving(engine) as place:
        yield place


def at(url, seconds=600.0, token="", pauses=(0.0, 0.0)):
    return Server(url, seconds, token, pauses)


def prompts(lm, count=3):
    draw = torch.Generator().manual_seed(count)
    sizes = torch.randint(3, 20, (count,), generator=draw).tolist()
    words = [torch.randint(6, 390, (size,), generator=draw).tolist() for size in sizes]
    return [inject(lm, qa_prompt(lm), [one], lm.encode(QUESTION)) for one in words]


def tokens(engine, words, prompt, limit):
    """The answer to one prompt as it is made."""
    return (token for _, token in engine.rows(words, [prompt], limit))


def said_by(engine, words, prompt, limit):
    return list(tokens(engine, words, prompt, limit))


# --- its answers are ours


def test_what_it_says_is_what_is_said_here(toy_lm, engine, url):
    there, here = connect(at(url), toy_lm), LocalEngine(toy_lm)
    words, rows = qa_prompt(toy_lm), prompts(toy_lm, 3)
    for row in rows:
        said = said_by(here, words, row, LIMIT)
        assert said_by(there, words, row, LIMIT) == said and said
    ours, theirs = (one.batch(words, rows, LIMIT) for one in (here, there))
    assert [one.tokens for one in theirs] == [one.tokens for one in ours]
    assert [one.mean_logprob for one in theirs] == pytest.approx(
        [one.mean_logprob for one in ours], 1e-3
    )


def test_several_are_streamed_in_one_request_and_one_may_end_early(toy_lm, engine, url):
    there, words, rows = connect(at(url), toy_lm), qa_prompt(toy_lm), prompts(toy_lm, 3)
    alone = [said_by(LocalEngine(toy_lm), words, row, LIMIT) for row in rows]
    said, asked_for = [[] for _ in rows], len(engine.bodies)
    for row, token in there.rows(words, rows, LIMIT, lambda row: row == 1 and len(said[1]) == 2):
        said[row].append(token)
    assert said == [alone[0], alone[1][:2], alone[2]] and len(engine.bodies) == asked_for + 1


def test_it_stops_where_we_do(toy_lm, engine, url):
    """The frame's end is a stop of ours that the served folder need not know."""
    there, words, (row,) = connect(at(url), toy_lm), qa_prompt(toy_lm), prompts(toy_lm, 1)
    said = said_by(there, words, row, LIMIT)
    kept = {name: getattr(words, name) for name in words.__slots__[:4]}
    ending = type(words)(**kept, end=said[2])
    first = said.index(said[2])
    assert said_by(there, ending, row, LIMIT) == said[:first]
    assert [one.tokens for one in there.batch(ending, [row], LIMIT)] == [tuple(said[:first])]
    assert set(engine.bodies[-1]["stop_token_ids"]) == {said[2], *toy_lm.stop_tokens}


def test_what_is_asked_is_embeddings_alone_greedy_and_salted(toy_lm, engine, url):
    first, second = (connect(at(url), toy_lm) for _ in range(2))
    said_by(first, qa_prompt(toy_lm), prompts(toy_lm, 1)[0], LIMIT)
    assert len(first.salt) >= 43 and first.salt != second.salt
    for body in engine.bodies:
        assert "prompt" not in body and body["temperature"] == 0 and body["model"] == "reader-0"
        assert body["cache_salt"] in (first.salt, second.salt)
    assert engine.bodies[-1]["max_tokens"] == LIMIT and engine.bodies[-1]["stream"]
    sent = engine_server.tensor_of(engine.bodies[-1]["prompt_embeds"][0])
    assert torch.equal(sent, prompts(toy_lm, 1)[0])


def test_what_is_sent_is_no_more_than_the_prompt(toy_lm, engine, url):
    there, whole = connect(at(url), toy_lm), torch.randn(400, toy.WIDTH)
    said_by(there, qa_prompt(toy_lm), whole[:3], 1)
    packed = engine.bodies[-1]["prompt_embeds"][0]
    assert len(packed) < 4 * 10 * toy.WIDTH + 4000  # a view's storage would be 270,000


def test_no_number_is_not_sent(toy_lm, engine, url):
    there, row = connect(at(url), toy_lm), prompts(toy_lm, 1)[0].clone()
    asked, row[1, 3] = len(engine.bodies), float("nan")
    with pytest.raises(StoreDamaged):
        said_by(there, qa_prompt(toy_lm), row, LIMIT)
    assert len(engine.bodies) == asked


def test_the_token_goes_with_every_request_and_is_never_shown(toy_lm, engine, url):
    engine.token = "s3cret"
    for wrong in ("", "other"):
        with pytest.raises(PermissionRefused) as refused:
            connect(at(url, token=wrong), toy_lm)
        assert TOKEN in refused.value.remedy and "other" not in str(refused.value)
    there = connect(at(url, token="s3cret"), toy_lm)
    assert said_by(there, qa_prompt(toy_lm), prompts(toy_lm, 1)[0], LIMIT)
    assert "s3cret" not in repr(there.server)


@pytest.mark.parametrize("token", ["s3cr\net", "s3cr\u20act", "s3cr\u00e9t", "s3cr\x00t"])
def test_a_token_that_no_header_carries_is_refused_and_not_shown(token):
    with pytest.raises(UsageError, match=TOKEN) as refused:
        header_token(token, TOKEN)
    assert "s3cr" not in str(refused.value) + refused.value.remedy


def test_an_address_may_end_as_openai_clients_want_it(toy_lm, engine, url):
    assert connect(at(f"{url}/v1/"), toy_lm).model == "reader-0"
    assert set(engine.paths) == {"/v1/models", "/v1/completions"}


def test_an_answer_that_is_not_wanted_to_its_end_is_let_go(toy_lm, engine, url):
    there = connect(at(url), toy_lm)
    going = tokens(there, qa_prompt(toy_lm), prompts(toy_lm, 1)[0], LIMIT)
    next(going)
    going.close()
    assert said_by(there, qa_prompt(toy_lm), prompts(toy_lm, 1)[0], LIMIT)


# --- which model it has


@pytest.mark.parametrize("kind", ["seed", "class", "adapter"])
def test_another_model_is_refused_before_it_is_asked(toy_lm, tmp_path, kind):
    other = {"seed": ("llama", 1), "class": ("qwen2", 0), "adapter": ("llama", 0)}[kind]
    lm = toy_lm
    if kind == "adapter":  # it serves the base, without the reader
        lm = lora.load_adapter(toy_lm, random_adapter.trained(toy_lm, tmp_path / "adapter"))
    engine = Engine(toy.lm_of(*other))
    with serving(engine) as url, pytest.raises(WrongModel, match="nats apart") as refused:
        connect(at(url), lm)
    assert "export-reader" in refused.value.remedy and len(engine.bodies) == 1


def test_another_width_is_another_model(toy_lm, engine, url):
    engine.faults = [status(400, "`prompt_embeds` hidden_size 576 does not match the model's")]
    with pytest.raises(WrongModel, match="hidden_size"):
        connect(at(url), toy_lm)


def test_the_same_numbers_in_half_precision_are_the_same_model(toy_lm):
    with serving(Engine(toy.lm_of(dtype=torch.bfloat16))) as url:
        assert connect(at(url), toy_lm)


def test_a_server_that_flatters_itself_is_refused(toy_lm, engine, url):
    """Its tokens are the wrong model's, whatever it says of how likely they are."""

    def sure(whole):
        told = whole["choices"][0]["logprobs"]
        told["token_logprobs"] = [-0.01] * len(told["token_logprobs"])
        return whole

    engine.lm, engine.faults = toy.lm_of("llama", 1), [replied(sure)]
    with pytest.raises(WrongModel):
        connect(at(url), toy_lm)


# --- an adapter beside the base


BESIDE = ServedAdapter("abc" * 20, "/somewhere/adapter", 12)


def test_an_adapter_is_taken_by_its_hash_once_the_server_lived_through_several_prompts(toy_lm):
    engine = Engine(toy_lm, name="base", adapters=("other", BESIDE.name))
    with serving(engine) as url:
        there = connect_adapter(at(url), toy_lm, BESIDE)
        words, (row,) = qa_prompt(toy_lm), prompts(toy_lm, 1)
        said = said_by(there, words, row, LIMIT)
        assert said == said_by(LocalEngine(toy_lm), words, row, LIMIT)
    assert BESIDE.name == "adapter-abcabcabcabc" and there.context == engine.length
    assert {body["model"] for body in engine.bodies} == {BESIDE.name}
    lengths = [len(engine_server.tensor_of(one)) for one in engine.bodies[0]["prompt_embeds"]]
    assert len(lengths) == 8 and len(set(lengths)) == 2
    assert len(engine.bodies[1]["prompt_embeds"]) == 1


def test_a_server_that_ends_at_several_prompts_is_asked_once_and_told(toy_lm):
    engine = Engine(toy_lm, adapters=(BESIDE.name,), for_ever=status(500, "EngineCore died"))
    engine.healthy = False
    with (
        serving(engine) as url,
        pytest.raises(EngineUnavailable, match="8 prompts at once") as ended,
    ):
        connect_adapter(at(url), toy_lm, BESIDE)
    assert len(engine.bodies) == 1 and "export-reader" in ended.value.remedy


def test_a_server_without_the_adapter_is_told_how_to_start(toy_lm, url, engine):
    with pytest.raises(WrongModel, match="no adapter adapter-abc.*it has reader-0") as refused:
        connect_adapter(at(url), toy_lm, BESIDE)
    assert f"--lora-modules {BESIDE.name}={BESIDE.folder}" in refused.value.remedy
    spaced = replace(BESIDE, folder="/my readers/one")
    with pytest.raises(WrongModel) as told:
        connect_adapter(at(url), toy_lm, spaced)
    assert f"{BESIDE.name}=/my readers/one" in shlex.split(told.value.remedy)
    assert "--max-lora-rank 16 " in refused.value.remedy  # of rank 12; vLLM takes powers of two
    assert not engine.bodies


def test_another_adapter_under_its_name_is_refused(toy_lm, tmp_path):
    lm = lora.load_adapter(toy_lm, random_adapter.trained(toy_lm, tmp_path / "adapter"))
    engine = Engine(toy_lm, adapters=(BESIDE.name,))
    with serving(engine) as url, pytest.raises(WrongModel, match="nats apart"):
        connect_adapter(at(url), lm, BESIDE)


# --- what goes wrong


def test_nobody_there(toy_lm):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        place = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(EngineUnavailable, match="away or dead.*3 tries") as refused:
            connect(at(place), toy_lm)
    assert "--engine here" in refused.value.remedy and refused.value.exit_code == 17


@pytest.mark.parametrize("streams", [True, False])
def test_silence_has_an_end(toy_lm, engine, url, streams):
    there = connect(at(url), toy_lm)
    hasty = replace(there, server=at(url, seconds=0.2))
    engine.for_ever = stuck
    with pytest.raises(EngineUnavailable, match=r"said nothing for 0\.2 s"):
        asked(hasty, streams)


def asked(there, streams):
    words, (row,) = qa_prompt(there.lm), prompts(there.lm, 1)
    if streams:
        return said_by(there, words, row, LIMIT)
    return list(there.batch(words, [row], LIMIT)[0].tokens)


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("code", [500, 503, 429])
def test_trouble_that_passes_is_not_noticed(toy_lm, engine, url, streams, code):
    there = connect(at(url), toy_lm)
    said = asked(there, streams)
    engine.faults = [status(code), status(code), None]  # the answer, the probe, the probe again
    assert asked(there, streams) == said and not engine.faults


@pytest.mark.parametrize("streams", [True, False])
def test_a_dead_engine_is_tried_a_few_times_and_told(toy_lm, engine, url, streams):
    there, before = connect(at(url), toy_lm), len(engine.bodies)
    engine.for_ever, engine.healthy = status(500), False
    with pytest.raises(EngineUnavailable, match="away or dead: 500: EngineCore") as refused:
        asked(there, streams)
    assert "start it again" in refused.value.remedy and len(engine.bodies) - before == 4
    engine.healthy = True
    with pytest.raises(EngineUnavailable, match="says it is well"):
        asked(there, streams)


@pytest.mark.parametrize("after", range(4))
def test_an_answer_that_breaks_off_goes_on_where_it_was(toy_lm, engine, url, after):
    there = connect(at(url), toy_lm)
    said, pieces = asked(there, True), []
    engine.faults = [cut(after)]
    for token in tokens(there, qa_prompt(toy_lm), prompts(toy_lm, 1)[0], LIMIT):
        pieces.append(token)
    assert pieces == said


def test_what_comes_back_after_a_restart_is_probed(toy_lm, engine, url):
    there = connect(at(url), toy_lm)
    said, pieces = asked(there, True), []

    def restarted(handler, events, whole):
        engine.lm = toy.lm_of("llama", 1)
        cut(2)(handler, events, whole)

    engine.faults = [restarted]
    with pytest.raises(WrongModel):
        for token in tokens(there, qa_prompt(toy_lm), prompts(toy_lm, 1)[0], LIMIT):
            pieces.append(token)
    assert pieces == said[:2]


def test_a_restart_between_two_questions_is_noticed_by_the_model_s_name(toy_lm, engine, url):
    there = connect(at(url), toy_lm)
    engine.lm, engine.name = toy.lm_of("llama", 1), "reader-1"
    with pytest.raises(WrongModel, match="reader-0"):
        asked(there, True)


def words(change):
    """A change of the first choice."""

    def changed(whole):
        change(whole["choices"][0])
        return whole

    return changed


NONSENSE = {
    "page": lambda whole: b"<html>Welcome to nginx!</html>",
    "list": lambda whole: b"[]",
    "empty": lambda whole: {},
    "no choices": lambda whole: {"choices": []},
    "no tokens": words(lambda one: one.update(token_ids=None)),
    "text": words(lambda one: one.update(token_ids="1902")),
    "beyond": words(lambda one: one.update(token_ids=[10**6] * len(one["token_ids"]))),
    "below": words(lambda one: one.update(token_ids=[-1] * len(one["token_ids"]))),
    "true": words(lambda one: one.update(token_ids=[True] * len(one["token_ids"]))),
    "nan": words(lambda one: one["logprobs"].update(token_logprobs=[float("nan")] * LIMIT)),
    "nulls": words(lambda one: one["logprobs"].update(token_logprobs=[None] * LIMIT)),
    "no weights": words(lambda one: one.update(logprobs=None)),
    "too long": lambda whole: b"x" * (1 << 25),
    "too deep": lambda whole: b"[" * 100_000,
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_called_so(toy_lm, engine, url, name):
    there = connect(at(url), toy_lm)
    engine.faults = [replied(NONSENSE[name])]
    with pytest.raises(EngineUnavailable, match="no sense"):
        asked(there, False)


STREAMED = {
    "no tokens": lambda events: [{"choices": [{"finish_reason": None}]}],
    "beyond": lambda events: [engine_server.event_of(0, 10**6, None)],
    "no choices": lambda events: [{"text": "1902"}],
    "more than asked for": lambda events: [engine_server.event_of(0, 70, None)] * (LIMIT + 1),
}


@pytest.mark.parametrize("name", STREAMED)
def test_streamed_nonsense_is_called_so(toy_lm, engine, url, name):
    there = connect(at(url), toy_lm)
    engine.faults = [streamed(STREAMED[name])]
    with pytest.raises(EngineUnavailable, match="no sense"):
        asked(there, True)


def test_a_page_in_place_of_a_stream(toy_lm, engine, url):
    there = connect(at(url), toy_lm)
    engine.faults = [replied(lambda whole: b"<html>\x1b[31mWelcome</html>\n")]
    with pytest.raises(EngineUnavailable, match="no sense") as refused:
        asked(there, True)
    assert "\x1b" not in str(refused.value)  # nothing that a terminal would obey


def test_another_answer_than_it_began_is_not_put_together(toy_lm, engine, url):
    there = connect(at(url), toy_lm)
    other = streamed(lambda events: [engine_server.event_of(0, 300, None)] * 3)
    engine.faults = [cut(2), None, other]  # the answer, the probe, the answer again
    with pytest.raises(EngineUnavailable, match="not the one it began"):
        asked(there, True)


def test_an_error_within_a_stream_is_tried_again(toy_lm, engine, url):
    there = connect(at(url), toy_lm)
    said = asked(there, True)
    dying = streamed(lambda events: [events[0], {"error": {"message": "EngineDeadError"}}])
    engine.faults = [dying]
    assert asked(there, True) == said
    ended = streamed(lambda events: [events[0], engine_server.event_of(0, 70, "abort")])
    engine.faults = [ended]
    assert asked(there, True) == said


REFUSALS = {
    "flag": (400, engine_server.EMBEDS, EngineUnavailable, "no prompt embeddings", remote.FLAG),
    "long": (400, "This model's maximum context length is 9", UsageError, "too long", "--k"),
    "other": (422, "what?", EngineUnavailable, "refuses", "vLLM"),
    "no such path": (404, "Not Found", EngineUnavailable, "refuses", "vLLM"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_told_with_its_remedy(toy_lm, engine, url, name):
    code, message, kind, said, remedy = REFUSALS[name]
    there, engine.for_ever = connect(at(url), toy_lm), status(code, message)
    for streams in (True, False):
        with pytest.raises(kind, match=said) as refused:
            asked(there, streams)
        assert remedy in refused.value.remedy


# --- the command line


@pytest.fixture(scope="module")
def store(tmp_path_factory, model_folder):
    """A store of a few short documents."""
    folder = tmp_path_factory.mktemp("remote")
    config = dials(folder / "store", model_folder)
    api.ingest([written(folder / "docs")], config)
    return config


@pytest.mark.parametrize("passages", ["together", "apart"])
@pytest.mark.parametrize("read", ["text", "memory", "decode"])
def test_a_store_is_asked_through_it_as_here(store, engine, url, read, passages):
    engine.lm = load(store.model)
    here = updated(store, {"ask.read": read, "ask.passages": passages, "retrieve.k": 4})
    there = updated(here, {"ask.engine": "vllm", "ask.url": url.removeprefix("http://")})
    streams = [[], []]
    ours, theirs = (
        api.ask(QUESTION, config, told.append)
        for config, told in zip((here, there), streams, strict=True)
    )
    assert theirs.answer == ours.answer and streams[0] == streams[1]
    assert (theirs.sources, theirs.prompt_positions) == (ours.sources, ours.prompt_positions)


def test_its_length_bounds_what_is_put_into_a_prompt(store, engine, url):
    engine.lm, told = load(store.model), []
    asking = updated(store, {"ask.engine": "vllm", "ask.url": url, "ask.read": "text"})
    with api.session(asking, told.append) as session:
        assert session.engine.context == engine.length
        whole = answer(session, QUESTION)
        length = whole.prompt_positions + asking.ask.max_new_tokens - 1
        short = replace(session, remote=replace(session.remote, context=length))
        assert not told and 0 < len(answer(short, QUESTION).sources) < len(whole.sources)
        assert f"context of {length} positions" in told[0]


def test_the_reader_that_answers_is_the_one_the_server_has_to_have(store, tmp_path):
    lm = load(store.model)
    folder = random_adapter.trained(lm, tmp_path / "adapter", kind="text")
    asking = updated(store, {"ask.engine": "vllm", "ask.read": "text", "ask.adapter": str(folder)})
    with serving(Engine(lm)) as url, pytest.raises(WrongModel):
        api.ask(QUESTION, updated(asking, {"ask.url": url}))
    with serving(Engine(lora.load_adapter(lm, folder))) as url:
        config = updated(asking, {"ask.url": url})
        with api.session(config) as session:
            found = answer(session, QUESTION)
        assert found.reader == "text + adapter"
    probing = updated(asking, {"ask.probe_lora": True})
    name = f"adapter-{lora.read_manifest(folder).adapter_sha256[:12]}"
    with serving(Engine(lora.load_adapter(lm, folder), adapters=(name,))) as url:
        with api.session(updated(probing, {"ask.url": url})) as session:
            assert session.remote.model == name
            assert answer(session, QUESTION).answer == found.answer
    with pytest.raises(UsageError, match="no adapter is on"):
        api.ask(QUESTION, updated(probing, {"ask.adapter": "none"}))


def test_from_the_command_line(store, engine, url, command_line, tmp_path, monkeypatch):
    engine.lm, engine.token = load(store.model), "s3cret"
    words = ("ask", QUESTION, "--store", store.store, "--engine", "vllm", "--url", url, "--json")
    code, out, err = command_line(*words)
    assert code == 23 and TOKEN in err
    monkeypatch.setenv(TOKEN, "s3cr\u20act")
    code, out, err = command_line(*words)
    assert code == 2 and TOKEN in err and "s3cr" not in out + err
    monkeypatch.setenv(TOKEN, "s3cret\n")
    code, out, err = command_line(*words)
    ours = api.ask(QUESTION, updated(store, {"ask.max_new_tokens": 64}))
    assert code in (0, 7) and json.loads(out)["answer"] == ours.answer
    code, out, err = command_line(*words, "--probe-lora")
    assert code == 2 and "no adapter is on" in err
    code, out, err = command_line("ask", QUESTION, "--store", store.store, "--probe-lora")
    assert code == 2 and "ask.engine" in err
    code, out, err = command_line(*words, "--url", "http://me:s3cret@127.0.0.1")
    assert code == 2 and "ask.url" in err
