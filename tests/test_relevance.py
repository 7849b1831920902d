"""What of a chunk a question is about."""

import pytest
import toy

from rag_memtok.retrieval.relevance import ZOOM, relevance, sentence_of_each, split, zoomed

TEXT = "The lamp was lit. Its keeper, Ana Ruiz, wrote a letter. Rain fell\nall day."
QUESTION = "Who was the keeper that wrote it?"


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_every_token_is_of_the_sentence_that_it_ends_in(kind):
    lm = toy.lm_of(kind)
    tokens = lm.encode(TEXT)
    numbers = sentence_of_each(lm, tokens)
    assert sorted(numbers) == numbers
    for number, sentence in enumerate(split(TEXT)):
        own = [token for token, one in zip(tokens, numbers, strict=True) if one == number]
        assert sentence.strip(" .\n") in lm.decode(own) + sentence[-3:]


def test_the_sentences_with_most_of_the_questions_words_count_most():
    lm = toy.lm_of("llama")
    other = "A letter came from the lamp shop."
    texts = [lm.encode(TEXT), lm.encode(other)]
    first, second = zoomed(lm, texts, QUESTION)
    numbers = sentence_of_each(lm, texts[0])
    assert {weight for weight, one in zip(first, numbers, strict=True) if one == 1} == {ZOOM[0]}
    assert {weight for weight, one in zip(first, numbers, strict=True) if one != 1} == {1.0}
    assert set(second) == {1.0}
    assert set(zoomed(lm, texts, "What came by letter?")[1]) == {ZOOM[0]}


def test_a_question_about_nothing_there_zooms_into_nothing():
    lm = toy.lm_of("llama")
    assert set(zoomed(lm, [lm.encode(TEXT)], "How old is Rome?")[0]) == {1.0}
    assert zoomed(lm, [[]], QUESTION) == [[]]


def test_a_text_fits_a_question_as_its_best_sentence_does():
    sentences = [relevance(QUESTION, one) for one in split(TEXT)]
    assert relevance(QUESTION, TEXT) == max(sentences) == sentences[1] > sentences[0]
    assert relevance("How old is Rome?", TEXT) == relevance(QUESTION, "") == 0.0
    heading = "Keeper, wrote"
    assert relevance(QUESTION, heading) == 0.0 < relevance(QUESTION, f"{heading} often")
