"""The packaged model, SmolLM2-135M-Instruct (Q4_1, dequantised), itself: `make test-model`.

What is promised of it: the file, the tensors, the tokens, a memory that comes back, no network.
"""

import socket
import sys

import pytest
import torch
from test_plain import same_tokens

import rag_memtok as rm
from benchmarks.reader import SAMPLES, asked, contains
from rag_memtok.config import Model
from rag_memtok.memory.calibrate import find_known
from rag_memtok.memory.codec import CODECS
from rag_memtok.memory.reconstruct import ONE_PASS_ERROR, margins, margins_in_one_pass, memory_of
from rag_memtok.model import gguf, lm, lora, plain
from rag_memtok.model.engine import LocalEngine
from rag_memtok.model.inject import inject
from rag_memtok.model.prompts import qa_prompt, template_named
from rag_memtok.pipeline import api
from rag_memtok.pipeline.adapters import READERS, shipped_adapters
from rag_memtok.pipeline.readable import measured_zooms
from rag_memtok.settings import here
from rag_memtok.store.store import open_store

pytestmark = pytest.mark.model

FAN = (
    "A replacement fan motor for the KD-7 dryer costs 118 euros and takes a week to arrive.\n\n"
    "1. Switch the dryer off.\n2. Wait 12 minutes, until the drum is cold.\n"
)


@pytest.fixture(scope="module", autouse=True)
def installed():
    """The package, which conftest hides from the other tests."""
    hidden = sys.modules.pop(gguf.PACKAGE)
    yield gguf.is_installed() or pytest.fail(f"not installed: {gguf.INSTALL}")
    sys.modules[gguf.PACKAGE] = hidden


@pytest.fixture(scope="module")
def model(installed):
    """The model, loaded once."""
    return lm.load(Model(id="smollm2", device="cpu", threads=1))


def test_the_file_becomes_these_tensors_on_every_machine(model):
    assert model.identity.revision == "SmolLM2-135M-Instruct (Q4_1, dequantised)"
    assert model.identity.weights_sha256 == WEIGHTS
    assert (model.width, len(model.table), model.context, model.is_tied) == (576, 49152, 8192, True)
    assert model.table.dtype == torch.float32
    assert torch.equal(model.table, model.table.to(torch.bfloat16).float())  # rounded, for all


WEIGHTS = "fe45d49801a6ed8c8348fdfc967ce51c9e196729fa5eed1ad0fa9edad5af7805"


def test_the_tokens_are_those_it_was_trained_on(model):
    def pieces(text):
        return model.tokenizer.convert_ids_to_tokens(model.encode(text))

    assert pieces("\n\n1. 2024") == ["ĊĊ", "1", ".", "Ġ", "2", "0", "2", "4"]
    assert pieces("The dryer hums") == ["The", "Ġdryer", "Ġhum", "s"]
    assert model.stop_tokens == {2} and model.encode_frame("<|im_end|>") == [2]
    assert model.decode(model.encode(FAN)) == FAN


def test_a_new_store_takes_it_and_all_goes_offline(model, tmp_path, monkeypatch):
    """Ingest, ask and verify with every socket refused; the judge's one pass beside its steps."""

    def refused(*_, **__):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket.socket, "connect_ex", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    (tmp_path / "fan.md").write_text(FAN)
    with rm.open(tmp_path / "store", seconds_per_chunk=0.0) as store:
        done = store.ingest(tmp_path / "fan.md")
        assert done.verdicts == {"exact": 1} and done.text_positions > 10 * done.positions
        assert store.status().manifest["model"] == "smollm2"
        answer = store.ask("What does a replacement fan motor cost?")
        assert "118" in answer.answer and answer.sources[0].path == "fan.md"
        assert store.verify().ok and store.verify(reference=True).ok
    with open_store(tmp_path / "store", write=False) as opened:
        (chunk_id,) = opened.chunk_ids()
        record, tokens = opened.record(chunk_id), model.encode(FAN)
    template, memory = template_named("bare", model), memory_of(record)
    stepwise = margins(model, template, memory, tokens)
    at_once = margins_in_one_pass(model, template, memory, tokens)
    moved = max(abs(one - other) for one, other in zip(stepwise, at_once, strict=True))
    assert moved < ONE_PASS_ERROR / 4


ASKED = {
    "What does a replacement fan motor cost?": ["118 euros"],
    "How many kilograms of seed can the KD-7 dry at a time?": ["18"],
    "When will the open day be?": ["13 June"],
    "What is the boiling point of mercury?": [],
    "Which planet has the most moons?": [],
}


def test_the_reader_that_ships_answers_in_a_few_words_and_refuses(model):
    found = shipped_adapters(model, "")
    assert found.text is not None and found.text.folder == READERS / "smollm2"
    assert found.text.manifest.passages in ("together", "apart") and found.memory is None
    rows = [{"question": question, "answers": golds} for question, golds in ASKED.items()]
    tokenizer = gguf.packaged_folder() / "tokenizer.json"
    answers = asked(model, found, SAMPLES / "docs", rows, tokenizer)
    assert {one["question"]: contains(one["said"], one) for one in answers} == dict.fromkeys(
        ASKED, True
    )
    assert all(len(one["said"].split()) <= 6 for one in answers)


def test_the_vectors_that_ship_answer_at_half_and_a_quarter_of_the_positions(model, tmp_path):
    """Questions about the demo's documents, from the vectors alone."""
    found = shipped_adapters(model, "").vectors
    assert found is not None and found.folder == READERS / "smollm2-vectors"
    measured = dict(measured_zooms(found))
    assert measured.keys() == {2, 4} and 0.5 < measured[4] < measured[2] < 1
    config = rm.Config(store=str(tmp_path / "store"))
    api.import_(SAMPLES / "demo.safetensors", config, trusted=True)
    questions = {
        "When will the open day be?": "13 June",
        "When was firmware 4.1.3 released?": "6 February 2026",
        "Which code opens the service menu?": "7741",
        "How often should the humidity probe be calibrated?": "every 10 months",
    }
    for window in (2, 4):
        settings = {"read": "zoomed", "zoom": window, "threads": 1}
        with rm.open(tmp_path / "store", trust=True, **settings) as store:
            answers = {one: store.ask(one) for one in questions}
        assert sum(gold in answers[one].answer for one, gold in questions.items()) >= 3, answers
        for one in answers.values():
            assert one.reader == "zoomed + adapter" and one.grounded
            assert one.context_positions < one.text_positions / window + 8


def test_what_a_vector_holds_is_known(model):
    template, settings = template_named("bare", model), here().memorize
    found = find_known(model, template, 128, settings)
    assert found is not None and found.tokens_per_vector >= 32 and settings.codec in ("", *CODECS)


def test_its_reader_merged_answers_as_on_the_base(model, tmp_path):
    """In fp32, on questions about passages of its documents, with the tokens that it was taught."""
    adapter = READERS / "smollm2"
    reader = lora.load_adapter(model, adapter)
    bond = lora.read_manifest(adapter)
    plain.write_merged(
        tmp_path / "reader",
        reader,
        model,
        manifest=bond,
        dtype="float32",
        card=adapter / plain.CARD,
    )
    merged = lm.load(Model(id=str(tmp_path / "reader"), device="cpu", threads=1))
    same_tokens(model, tmp_path / "reader")
    words = qa_prompt(model)
    asked = ["What does a fan motor cost?", "How long do I wait?", "Who wrote the letter?"]
    rows = [inject(model, words, [model.encode(FAN)], model.encode(one)) for one in asked]
    ours, theirs = (LocalEngine(one).batch(words, rows, 24) for one in (reader, merged))
    assert [one.tokens for one in ours] == [one.tokens for one in theirs]
    assert [one.mean_logprob for one in theirs] == pytest.approx(
        [one.mean_logprob for one in ours], 1e-3
    )
    assert "118" in model.decode(ours[0].tokens)
