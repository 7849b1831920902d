"""Question -> Hits: dense hits and word hits, fused by what they score.

Dense hits come from keys, word hits from FTS5 tables, of the texts and of the names of files with
headings both. Cosines and BM25, relative to the best, are added by weight.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from logging import getLogger

import numpy as np
from jaxtyping import Float

from rag_memtok.config import Retrieve
from rag_memtok.datatypes import Hit
from rag_memtok.errors import StoreDamaged
from rag_memtok.retrieval.embedder import Embedder
from rag_memtok.retrieval.index import Index
from rag_memtok.retrieval.within import documents_within
from rag_memtok.store.store import Store
from rag_memtok.store.terms import STOP_WORDS, query_words, terms_of

DEPTH = 50  # hits of each kind that are fused, at least
WORDED = 500  # chunks of which words and names are weighed
FOLLOW_UP = 2  # content words: a question of no more may lean on the one before it
NAME_SHARE = 0.3  # of a word in a name, beside one in the text: measured, benchmarks/log.md

log = getLogger(__name__)


def content_words(question: str) -> tuple[str, ...]:
    """The runs of letters and digits in a question that say what it is about, lower-cased.

    English and Spanish function words are left out.
    """
    return tuple(
        dict.fromkeys(
            word for word in re.findall(r"[^\W_]+", question.lower()) if word not in STOP_WORDS
        )
    )


def search_query(question: str, before: str) -> str:
    """The query to search with for `question`.

    A question with few words of its own ("And its price?") is looked for together with the one
    before it.
    """
    return (
        f"{before} {question}" if before and len(content_words(question)) <= FOLLOW_UP else question
    )


def search(
    store: Store, index: Index, embedder: Embedder, question: str, settings: Retrieve
) -> tuple[Hit, ...]:
    """The `settings.k` best chunks of a question, best first; none if nothing is relevant.

    Nothing is relevant if no content word of the question is in any kept text or name, and no
    cosine reaches the embedder's threshold. A chunk that no document has is never found.

    Raises:
        UsageError: the store has nothing of `settings.within`.
    """
    depth = max(DEPTH, 10 * settings.k)
    documents = documents_within(store, settings.within) if settings.within else None
    among = None
    if documents is not None:
        among = store.numbers_of([(document.root, document.file) for document in documents])
    words = search_words(store, query_words(question), depth, among)
    key = embedder.encode([question], query=True)[0]
    cosines = search_keys(index, key, words, depth, among)
    if not words and max(cosines.values(), default=-1.0) < embedder.threshold:
        return ()
    weight = settings.dense_weight if settings.dense_weight >= 0 else embedder.dense_weight
    places = (
        None if documents is None else {(document.root, document.path) for document in documents}
    )
    hits = make_hits(store, fuse(cosines, words, weight), cosines, places)
    return tuple(islice(drop_contained(store, hits), settings.k))


def make_hits(
    store: Store,
    scores: Mapping[int, float],
    cosines: Mapping[int, float],
    places: Collection[tuple[str, str]] | None,
) -> Iterator[Hit]:
    """Hits of the chunks in `scores`, by number, that have a place; in this order.

    Args:
        places: (root, path) of the documents that count; None: all.
    """
    for number, score in scores.items():
        for chunk_id in store.ids_of([number]).values():
            occurrences = tuple(
                occurrence
                for occurrence in store.occurrences([chunk_id])[chunk_id]
                if places is None or (occurrence.root, occurrence.path) in places
            )
            if occurrences:
                yield Hit(chunk_id, score, cosines.get(number), occurrences)


def drop_contained(store: Store, hits: Iterable[Hit]) -> Iterator[Hit]:
    """The hits without those that say, word for word, no more than a better one.

    What differs in one word or number stays: that word may be the answer.
    """
    better = list[str]()
    for hit in hits:
        try:
            terms = f" {terms_of(store.text(hit.chunk_id) or '')} "
        except StoreDamaged:
            terms = ""
        if not terms.strip() or not any(terms in other for other in better):
            better.append(terms)
            yield hit


def search_keys(
    index: Index,
    key: Float[np.ndarray, " e"],
    words: Collection[int],
    count: int,
    among: Collection[int] | None,
) -> dict[int, float]:
    """The cosines of dense hits, best first, and those of `words` with a key of a line.

    A chunk's cosine is the greater of its text's and its line's: of the nearest of the names of its
    files, each with the headings above it there. Measured in benchmarks/log.md.
    """
    cosines = dict(index.nearest(key, count, among))
    if index.lines is not None:
        below = index.lines.nearest(key, count, among)
        cosines |= index.nearest(key, len(below), below.keys() - cosines.keys()) if below else ()
        for number, cosine in index.lines.cosines_of(key, {*cosines, *words}).items():
            cosines[number] = max(cosine, cosines.get(number, -1.0))
    return dict(sorted(cosines.items(), key=lambda item: -item[1]))


def search_words(
    store: Store, words: Sequence[str], count: int, among: Collection[int] | None = None
) -> dict[int, float]:
    """The store's word hits, best first: BM25 in the texts, and a share of that in the names.

    A name is of many chunks, and says less of each. None, with a warning, where a word index is
    damaged: it is but a cache, and the keys still answer.
    """
    try:
        limit = WORDED if among is None else -1  # SQLite's for all
        scores = store.search_words(words, limit)
        for number, score in store.search_names(words, limit).items():
            scores[number] = scores.get(number, 0.0) + NAME_SHARE * score
    except StoreDamaged as error:
        log.warning("searching by keys alone: %s", error)
        return {}
    allowed = [item for item in scores.items() if among is None or item[0] in among]
    return dict(sorted(allowed, key=lambda item: -item[1])[:count])


def fuse(
    cosines: Mapping[int, float], words: Mapping[int, float], dense_weight: float
) -> dict[int, float]:
    """Each number's fused score, 0 to 1, best first.

    It is the weighted sum of its cosine and its BM25 relative to the best one. Equal scores are in
    the order of the dense hits, then of the word hits. Measured against reciprocal rank in
    benchmarks/log.md. Source: Bruch et al. 2023, convex combination.
    """
    best = max(words.values(), default=0.0) or 1.0
    scores = {
        number: dense_weight * max(cosines.get(number, 0.0), 0.0)
        + (1 - dense_weight) * words.get(number, 0.0) / best
        for number in (*cosines, *words)
    }
    return dict(sorted(scores.items(), key=lambda item: -item[1]))
