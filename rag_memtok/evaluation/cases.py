"""Questions -> samples: the chunks that hold their answers, and distractors.

Every baseline is given the same.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rag_memtok.datatypes import Chunk
from rag_memtok.documents.split import split
from rag_memtok.errors import UsageError
from rag_memtok.evaluation.memory_cache import Tokens
from rag_memtok.evaluation.metrics import normalize
from rag_memtok.evaluation.questions import Question
from rag_memtok.model.lm import LM
from rag_memtok.retrieval.embedder import Embedder
from rag_memtok.retrieval.search import content_words

PLACES = ("first", "middle", "last")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Corpus:
    """Questions with their gold chunks, and every chunk of their documents by its id.

    `gold` is the id of each question's chunk; `others` the ids of chunks without its answer, the
    likeliest to be retrieved first; `before` how many of these would be retrieved before the gold
    chunk; `wrong` one of them, drawn at random. `whole` says whether the gold chunk has the answer
    in one piece.
    """

    questions: tuple[Question, ...]
    asked: tuple[Tokens, ...]
    texts: dict[str, str]
    tokens: dict[str, Tokens]
    gold: tuple[str, ...]
    others: tuple[tuple[str, ...], ...]
    before: tuple[int, ...]
    wrong: tuple[str, ...]
    whole: tuple[bool, ...]

    @property
    def read(self) -> list[str]:
        """The ids of the chunks that some question needs: gold, wrong, or among the others.

        Only these are written.
        """
        needed = {*self.gold, *self.wrong, *(other for others in self.others for other in others)}
        return [chunk_id for chunk_id in self.texts if chunk_id in needed]


@dataclass(frozen=True, slots=True)
class Sample:
    """A question (by its index) with the chunks that are read for it, best first.

    `place` is the gold chunk's among them.
    """

    question: int
    ids: tuple[str, ...]
    place: int


def build_corpus(
    lm: LM,
    embedder: Embedder | None,
    questions: Sequence[Question],
    capacity: int,
    most: int,
    seed: int,
) -> Corpus:
    """Cuts the questions' documents as an ingest does, and finds each question's chunk.

    It finds at most `most` distractors for each, too.

    Args:
        embedder: distractors are the nearest to the question by its keys; None draws them at
            random.
        capacity: the most tokens of a chunk.

    Raises:
        UsageError: fewer than two chunks, or texts that the tokenizer does not give back.
    """
    texts: dict[str, str] = {}
    documents = dict.fromkeys(document for question in questions for document in question.documents)
    cut = {
        document: split(document, capacity, lambda text: len(lm.encode(text)))
        for document in documents
    }
    question_chunks = [
        [chunk for document in question.documents for chunk in cut[document]]
        for question in questions
    ]
    for chunk in (chunk for chunks in question_chunks for chunk in chunks):
        texts.setdefault(chunk.id, chunk.text)
    tokens = {chunk_id: tuple(lm.encode(text)) for chunk_id, text in texts.items()}
    lossy = [chunk_id for chunk_id, some in tokens.items() if lm.decode(some) != texts[chunk_id]]
    if len(texts) < 2 or lossy:
        what = (
            f"{len(lossy)} chunks do not come back from the tokenizer"
            if lossy
            else "there are fewer than two chunks to read"
        )
        raise UsageError(
            what,
            remedy="leave those rows out" if lossy else "give questions about more than one text",
        )
    ranked = rank_chunks(embedder, [question.question for question in questions], texts, seed)
    gold_chunks = [
        find_gold(question, chunks) if chunks else (order[0], False)
        for question, chunks, order in zip(questions, question_chunks, ranked, strict=True)
    ]
    gold = tuple(chunk_id for chunk_id, _ in gold_chunks)
    plain = {chunk_id: f" {normalize(text)} " for chunk_id, text in texts.items()}
    without = [
        without_answer(question, one, order, plain)
        for question, one, order in zip(questions, gold, ranked, strict=True)
    ]
    return Corpus(
        questions=tuple(questions),
        asked=tuple(tuple(lm.encode(question.question)) for question in questions),
        texts=texts,
        tokens=tokens,
        gold=gold,
        others=tuple(tuple(some[:most]) for some in without),
        before=tuple(
            sum(order.index(other) < order.index(one) for other in some[:most])
            for one, order, some in zip(gold, ranked, without, strict=True)
        ),
        wrong=tuple(
            random.Random(f"{seed}:{number}").choice(some) for number, some in enumerate(without)
        ),
        whole=tuple(whole for _, whole in gold_chunks),
    )


def find_gold(question: Question, chunks: Sequence[Chunk]) -> tuple[str, bool]:
    """The id of the chunk that holds the answer, and whether it does so in one piece.

    Of several that do, and where none does, the one that shares most words with question and
    answer.
    """
    words = set(content_words(" ".join([question.question, *question.answers])))

    def fits(chunk: Chunk) -> tuple[bool, int]:
        return has_answer(question, chunk), len(words & set(content_words(chunk.text)))

    best = max(chunks, key=fits)
    return best.id, has_answer(question, best)


def has_answer(question: Question, chunk: Chunk) -> bool:
    """Whether one of the answers stands in the chunk: at its place, where that is known."""
    if question.starts:
        places = zip(question.starts, question.answers, strict=True)
        return any(
            chunk.start <= start and start + len(answer) <= chunk.end for start, answer in places
        )
    return any(answer in chunk.text for answer in question.answers)


def rank_chunks(
    embedder: Embedder | None, questions: Sequence[str], texts: dict[str, str], seed: int
) -> list[list[str]]:
    """The ids of all chunks for each question: the nearest first, or shuffled."""
    ids = list(texts)
    if embedder is None:
        return [
            random.Random(f"{seed}:{number}:others").sample(ids, len(ids))
            for number in range(len(questions))
        ]
    keys, asked = (
        embedder.encode(list(texts.values()), query=False),
        embedder.encode(questions, query=True),
    )
    order = np.argsort(-(asked @ keys.T), axis=1, kind="stable")
    return [[ids[index] for index in row] for row in order]


def without_answer(
    question: Question, gold: str, order: Sequence[str], plain: dict[str, str]
) -> list[str]:
    """The chunks of `order` but the gold one, and but those that hold an answer too, word for word.

    If all do, all but the gold one.

    Args:
        plain: the texts, normalised, a space at both ends.
    """
    others = [chunk_id for chunk_id in order if chunk_id != gold]
    golds = [f" {normalize(answer)} " for answer in question.answers]
    return [
        chunk_id for chunk_id in others if not any(answer in plain[chunk_id] for answer in golds)
    ] or others


def gold_samples(corpus: Corpus) -> list[Sample]:
    """Every question with its gold chunk alone."""
    return [Sample(number, (gold,), 0) for number, gold in enumerate(corpus.gold)]


def concatenated_samples(corpus: Corpus, k: int) -> list[Sample]:
    """Every question with its gold chunk among k - 1 others.

    There are fewer others where there are no more; the gold chunk is first, in the middle or last,
    in turn.
    """
    return place_gold(corpus, k, lambda number, last: (0, last // 2, last)[number % len(PLACES)])


def retrieved_samples(corpus: Corpus, k: int) -> list[Sample]:
    """The same chunks for every question, the gold one where the retriever puts it.

    The gold one is last where it would not be found.
    """
    return place_gold(corpus, k, lambda number, last: min(corpus.before[number], last))


def place_gold(corpus: Corpus, k: int, place_of: Callable[[int, int], int]) -> list[Sample]:
    """Every question with its gold chunk among k - 1 others.

    The gold chunk is at the place that `place_of` gives for the question's number and the last
    place.
    """
    samples = []
    for number, (gold, others) in enumerate(zip(corpus.gold, corpus.others, strict=True)):
        distractors = others[: k - 1]
        place = place_of(number, len(distractors))
        samples.append(Sample(number, (*distractors[:place], gold, *distractors[place:]), place))
    return samples


def place_name(number: int) -> str:
    """The place where `concatenated_samples` puts the gold chunk of a question."""
    return PLACES[number % len(PLACES)]


def without_last(sample: Sample) -> Sample:
    """The sample without the least likely of its distractors."""
    dropped = len(sample.ids) - 1 if sample.place != len(sample.ids) - 1 else len(sample.ids) - 2
    return Sample(
        sample.question,
        (*sample.ids[:dropped], *sample.ids[dropped + 1 :]),
        sample.place - (dropped < sample.place),
    )
