"""Answers copied from a text: what may follow, whole words, numbers, letters of several tokens."""

import pytest
import torch
import toy

from rag_memtok.model.copying import Copied, copied_from
from rag_memtok.model.generate import KVDecoder
from rag_memtok.model.inject import answer_batch, answer_rows, decode_greedily, inject
from rag_memtok.model.prompts import REFUSAL, qa_prompt

TEXT = "The lamp, old  as it is,\ncost 3,415 euros in March; 415 of them were lent. Año 1998."


@pytest.fixture(scope="module", params=["llama", "qwen3", "gpt2"])
def lm(request):
    return toy.lm_of(request.param)


def said_by(lm, source: Copied, wanted: str) -> tuple[str, bool]:
    """As much of `wanted` as may be said, and whether it may end there."""
    said: list[int] = []
    for token in lm.encode(wanted):
        if token not in source.after(said)[0]:
            break
        said.append(token)
    return lm.decode(said), source.after(said)[1]


@pytest.mark.parametrize(
    "wanted",
    [
        "lamp",
        " lamp",
        "old as it is",
        "3,415 euros",
        "415",
        "March; 415 of them",
        "Año 1998",
        "1998.",
    ],
)
def test_words_of_the_text_may_be_said_and_end(lm, wanted):
    assert said_by(lm, copied_from(lm, TEXT), wanted) == (wanted, True)


def test_a_refusal_may_be_said_and_ends_at_its_end(lm):
    source = copied_from(lm, TEXT)
    assert said_by(lm, source, REFUSAL) == (REFUSAL, True)
    assert said_by(lm, source, REFUSAL[:6]) == (REFUSAL[:6], False)


@pytest.mark.parametrize("wanted", ["3,4155", "Marching", "lamps", "euros at"])
def test_what_the_text_does_not_say_is_not_said(lm, wanted):
    said, _ = said_by(lm, copied_from(lm, TEXT), wanted)
    assert wanted.startswith(said) and said.strip() != wanted
    assert said.strip() in " ".join(TEXT.split())


def test_nothing_begins_or_ends_within_a_word_or_a_number(lm):
    source = copied_from(lm, TEXT)
    assert source.text[3] == " " and 1 in source.inside and 3 not in source.inside
    comma = source.text.index("3,415")
    assert {comma + 1, comma + 2, comma + 4} <= source.inside and comma + 5 not in source.inside
    assert not said_by(lm, source, "3")[1] and not said_by(lm, source, "lam")[1]
    beginnings = {lm.decode([token]).lstrip() for token in source.after([])[0]}
    assert "l" in beginnings and not beginnings & {"amp", "uros"}


def test_nothing_said_yet_is_no_answer(lm):
    assert not copied_from(lm, TEXT).after([])[1]


def test_a_character_of_several_tokens_is_said_token_by_token(lm):
    text = next(c for c in "\u4e16\u00f1\u20ac\U0001f33e" if c not in lm.spellings)
    pieces, source = lm.encode(text), copied_from(lm, f"x {text} y")
    assert len(pieces) > 1
    for count in range(len(pieces)):
        tokens, may_end = source.after(pieces[:count])
        assert pieces[count] in tokens and not may_end
        if count:
            assert list(tokens) == [pieces[count]]
    assert source.after(pieces)[1]


@pytest.mark.parametrize("text", ["", "   ", "\ufffd"])
def test_an_odd_text_leaves_the_refusal(lm, text):
    assert said_by(lm, copied_from(lm, text), REFUSAL) == (REFUSAL, True)


def test_answers_are_copied_row_by_row(lm):
    words = qa_prompt(lm)
    prompts = [
        inject(lm, words, [lm.encode(TEXT)], lm.encode(asked)) for asked in ("When?", "Who?")
    ]
    source, limit = copied_from(lm, TEXT), 12
    free, both = (answer_batch(lm, words, prompts, limit, copied=c) for c in ((), (source, None)))
    assert both[1].tokens == free[1].tokens
    assert both[1].mean_logprob == pytest.approx(free[1].mean_logprob, abs=1e-4)
    said = lm.decode(both[0].tokens).strip()
    assert said in source.text or REFUSAL.startswith(said)
    streamed: list[list[int]] = [[], []]
    for row, token in answer_rows(lm, words, prompts, limit, copied=(source, None)):
        streamed[row].append(token)
    assert [tuple(one) for one in streamed] == [one.tokens for one in both]


def test_what_is_copied_is_the_likeliest_of_what_may_follow_and_as_sure_as_it_was(lm):
    words = qa_prompt(lm)
    prompt = inject(lm, words, [lm.encode(TEXT)], lm.encode("When?"))
    source, said = copied_from(lm, TEXT), list[int]()
    stops, logprobs = sorted(lm.stop_tokens | {words.end}), list[float]()
    for _, (token,), logits in decode_greedily(KVDecoder(lm, [prompt]), words, 8, copied=[source]):
        tokens, may_end = source.after(said)
        allowed = [*tokens, *(stops if may_end or not tokens else ())]
        best = allowed[int(logits[0, allowed].argmax())]
        assert token == (None if best in stops else best)
        logprobs.append(float(logits[0].log_softmax(-1)[best]))
        if token is not None:
            said.append(token)
    (whole,) = answer_batch(lm, words, [prompt], 8, copied=[source])
    assert whole.tokens == tuple(said)
    assert whole.mean_logprob == pytest.approx(sum(logprobs) / len(logprobs), abs=1e-4)
    assert torch.isfinite(torch.tensor(logprobs)).all()
