"""The prompt of a question: a memory stands where a document stands."""

import numpy as np
import pytest
import torch
import toy
from hypothesis import given
from hypothesis import strategies as st

from rag_memtok.config import Memorize
from rag_memtok.memory.optimize import Task, memorize
from rag_memtok.memory.reconstruct import build_prompt
from rag_memtok.model.generate import KVDecoder
from rag_memtok.model.inject import (
    Sourced,
    answer_batch,
    count_fitting,
    inject,
    most_confident,
)
from rag_memtok.model.prompts import (
    WORDINGS,
    QAPrompt,
    build_qa_prompt,
    qa_prompt,
    source_line,
    template_named,
)

texts = st.lists(st.integers(6, 390), max_size=6)
passages_of = st.lists(texts, min_size=1, max_size=4)


@given(passages=passages_of, question=texts, chosen=st.sets(st.integers(0, 3)))
def test_the_prompt_is_its_parts_whatever_form_a_passage_has(toy_lm, passages, question, chosen):
    words = qa_prompt(toy_lm)
    tokens = [*words.opening, *passages[0]]
    for passage in passages[1:]:
        tokens += [*words.between, *passage]
    tokens += [*words.question, *question, *words.closing]
    expected = toy_lm.embed(tokens)
    forms = [
        toy_lm.embed(passage).numpy() if number in chosen else passage
        for number, passage in enumerate(passages)
    ]
    found = inject(toy_lm, words, forms, question)
    assert torch.equal(found, expected)
    assert len(found) == words.overhead + sum(map(len, forms)) + len(words.between) * (
        len(forms) - 1
    ) + len(question)


def test_vectors_go_in_as_they_are(toy_lm):
    vectors = np.random.default_rng(0).standard_normal((3, toy.WIDTH)).astype(np.float32)
    words = qa_prompt(toy_lm)
    found = inject(toy_lm, words, [vectors], [70])
    assert np.array_equal(found[len(words.opening) : len(words.opening) + 3].numpy(), vectors)


def test_a_passage_stands_behind_its_source(toy_lm):
    vectors = np.random.default_rng(0).standard_normal((3, toy.WIDTH)).astype(np.float32)
    words = qa_prompt(toy_lm)
    line = source_line(toy_lm, words, "lamp.md")
    for content in (vectors, (70, 71)):
        passage = Sourced(line, content)
        found = inject(toy_lm, words, [passage, passage], [80])
        start, size = len(words.opening), len(line) + len(content)
        assert len(passage) == size
        assert torch.equal(found[start : start + len(line)], toy_lm.embed(line))
        inner = torch.as_tensor(vectors) if content is vectors else toy_lm.embed(content)
        assert torch.equal(found[start + len(line) : start + size], inner)
        assert (
            count_fitting(
                toy.CONTEXT, words, [passage], [80], toy.CONTEXT - words.overhead - 1 - size
            )
            == 1
        )
        assert (
            count_fitting(toy.CONTEXT, words, [passage], [80], toy.CONTEXT - words.overhead - size)
            == 0
        )


def test_a_cue_memory_is_read_where_it_was_written(toy_lm):
    from rag_memtok.datatypes import Memory

    template, words = template_named("cue", toy_lm), build_qa_prompt(toy_lm, WORDINGS["plain"])
    memory = Memory(np.ones((2, toy.WIDTH), dtype=np.float32))
    written, read = (
        build_prompt(toy_lm, template, memory),
        inject(toy_lm, words, [memory.vectors], []),
    )
    assert torch.equal(written[: len(template.prefix) + 2], read[: len(words.opening) + 2])


@given(
    lengths=st.lists(st.integers(0, 200), min_size=1, max_size=5),
    question=st.integers(0, 100),
    answer=st.integers(1, 100),
)
def test_as_many_passages_fit_as_leave_room_for_the_answer(toy_lm, lengths, question, answer):
    words = qa_prompt(toy_lm)
    passages, asked = [(70,) * length for length in lengths], (80,) * question
    count = count_fitting(toy.CONTEXT, words, passages, asked, answer)

    def positions(number):
        return len(inject(toy_lm, words, passages[:number], asked)) + answer

    assert count == 0 or positions(count) <= toy.CONTEXT
    assert count == len(passages) or positions(count + 1) > toy.CONTEXT


def test_the_last_position_of_the_context_is_used(toy_lm):
    words = qa_prompt(toy_lm)
    room = toy.CONTEXT - words.overhead - 5 - 7
    assert count_fitting(toy.CONTEXT, words, [(70,) * room], (80,) * 5, 7) == 1
    assert count_fitting(toy.CONTEXT, words, [(70,) * (room + 1)], (80,) * 5, 7) == 0


@pytest.fixture(scope="module")
def speaking(toy_lm):
    """An LM's soft prompt after which it says five words and then ends."""
    tokens = (70, 90, 110, 130, 150)
    template = template_named("bare", toy_lm)
    (written,) = memorize(toy_lm, template, [Task("x", tokens, 2)], Memorize(seconds_per_chunk=0.0))
    assert written.wrong == 0
    return torch.cat([toy_lm.embed(template.prefix), torch.from_numpy(written.vectors)]), tokens


def ending(end):
    return QAPrompt(opening=(), between=(), question=(), closing=(), end=end)


def test_an_answer_is_greedy_and_ends_at_a_stop_token(toy_lm, speaking):
    soft, tokens = speaking
    assert tuple(toy.answer_tokens(toy_lm, ending(5), soft, 20)) == tokens
    for limit in (1, 3, 5):
        assert tuple(toy.answer_tokens(toy_lm, ending(5), soft, limit)) == tokens[:limit]


def test_the_end_of_a_turn_ends_an_answer_too(toy_lm, speaking):
    soft, tokens = speaking
    assert tuple(toy.answer_tokens(toy_lm, ending(tokens[3]), soft, 20)) == tokens[:3]


def test_an_answer_is_lazy(toy_lm, speaking):
    soft, tokens = speaking
    going = toy.answer_tokens(toy_lm, ending(5), soft, 20)
    assert next(going) == tokens[0] == int(KVDecoder(toy_lm, [soft]).logits[0].argmax())


def test_how_sure_an_answer_was_is_the_mean_of_its_tokens_and_its_end(toy_lm, speaking):
    soft, tokens = speaking
    whole = torch.cat([soft, toy_lm.embed(tokens)])
    known = toy_lm.logits(toy_lm.hidden(whole[None])[0]).log_softmax(-1)[len(soft) - 1 :]
    end = max(toy_lm.stop_tokens, key=lambda stop: known[-1, stop])
    nats = [float(known[place, token]) for place, token in enumerate((*tokens, end))]
    for limit, counted in ((20, nats), (3, nats[:3])):
        (said,) = answer_batch(toy_lm, ending(end), [soft], limit)
        assert said.tokens == tokens[:limit] and said.mean_logprob == pytest.approx(
            sum(counted) / len(counted), abs=1e-4
        )


def test_the_surest_answer_is_kept_unless_its_passage_stands_far_behind():
    def kept(*sureness):
        return most_confident([("words", one) for one in sureness])

    assert kept(-2.0) == 0 and kept(-1.0, -1.0, -1.0) == 0
    assert kept(-1.0, -0.2) == 1 and kept(-1.0, -0.4) == 0  # log 2 is 0.69
    assert kept(-3.0, -3.0, -1.5) == 2 and kept(-2.5, -3.0, -1.5) == 0  # log 3 is 1.1


def test_the_answer_of_a_passage_with_the_questions_words_is_kept_before_a_surer_one():
    surer = [("July", -0.1), ("March", -0.9)]
    assert most_confident(surer) == most_confident(surer, [1.0, 1.0]) == 0
    assert most_confident(surer, [0.2, 1.2]) == 1 and most_confident(surer, [0.2, 0.6]) == 0
    assert most_confident([("July", -3.0), ("not in the documents", -0.1)], [0.0, 9.0]) == 0


def test_that_one_passage_does_not_say_counts_only_if_none_does():
    assert (
        most_confident([("Not in the documents.", -0.01), ("", -0.01), ("18 kilograms", -3.0)]) == 2
    )
    assert most_confident([("Not in the documents.", -0.01), ("not in the documents", -0.02)]) == 0
    assert most_confident([("not in the document room", -0.1), ("Not indeed", -2.0)]) == 1
