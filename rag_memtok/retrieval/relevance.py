"""What of a chunk a question is about: its sentences, by the words they share with the question."""

import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from rag_memtok.model.lm import LM
from rag_memtok.retrieval.search import content_words

SENTENCE = re.compile(r".+?(?:[.!?]+(?=\s|$)\s*|\n+|$)", re.DOTALL)
# of two sentences with the same words of the question: score = shared / words ** this
SHORTER_IS_BETTER = 0.3
# how much more a token counts in the sentence that shares most with the question, and in the next
ZOOM = (16.0, 2.0)


def split(text: str) -> list[str]:
    """The sentences and lines of a text; joined they are the text."""
    return SENTENCE.findall(text)


def overlap(asked: set[str], sentence: str) -> float:
    """The score of a sentence: words shared with the question, for its length.

    One that says nothing beside them answers nothing: a heading, often.
    """
    words = set(content_words(sentence))
    if words <= asked:
        return 0.0
    return len(asked & words) / max(1, len(sentence.split())) ** SHORTER_IS_BETTER


def relevance(question: str, text: str) -> float:
    """How well a text fits a question: the score of its best sentence."""
    asked = set(content_words(question))
    return max((overlap(asked, sentence) for sentence in split(text)), default=0.0)


def zoomed(lm: LM, texts: Sequence[Sequence[int]], question: str) -> list[list[float]]:
    """How much each token of some chunks counts for a question: 1, in the best sentences more.

    The sentences of all of them are compared; one without a word of the question counts as any.
    """
    factors = dict(zip(_best_sentences(lm, texts, question), ZOOM, strict=False))
    return [
        [factors.get((number, place), 1.0) for place in sentence_of_each(lm, tokens)]
        for number, tokens in enumerate(texts)
    ]


def in_best_sentence(lm: LM, texts: Sequence[Sequence[int]], question: str) -> list[list[bool]]:
    """Whether each token of some chunks is of the sentence that fits a question best."""
    best = _best_sentences(lm, texts, question)[:1]
    return [
        [(number, place) in best for place in sentence_of_each(lm, tokens)]
        for number, tokens in enumerate(texts)
    ]


def _best_sentences(lm: LM, texts: Sequence[Sequence[int]], question: str) -> list[tuple[int, int]]:
    """The sentences with words of a question, best first, each by its text's number and its own."""
    asked = set(content_words(question))
    scores = {
        (number, place): overlap(asked, sentence)
        for number, tokens in enumerate(texts)
        for place, sentence in enumerate(split(lm.decode(tokens)))
    }
    return sorted((one for one in scores if scores[one] > 0), key=lambda one: -scores[one])


def sentence_of_each(lm: LM, tokens: Sequence[int]) -> list[int]:
    """The number of the sentence that each token ends in."""
    ends = list(accumulate(map(len, split(lm.decode(tokens)))))
    lengths = [len(lm.decode(tokens[: place + 1])) for place in range(len(tokens))]
    return [min(bisect_left(ends, length), max(0, len(ends) - 1)) for length in lengths]
