"""Question -> Hits: dense hits and word hits, fused by rank.

Dense hits come from the keys through FAISS, word hits from the store's FTS5 table; a hit adds
weight / (rank_constant + rank) to its chunk.
"""

import re
from collections.abc import Sequence
from logging import getLogger

from rag_memtok.config import Retrieve
from rag_memtok.datatypes import Hit
from rag_memtok.errors import StoreDamaged
from rag_memtok.retrieval.embedder import Embedder
from rag_memtok.retrieval.index import Index
from rag_memtok.store.store import Store

DEPTH = 50  # hits of each kind that are fused, at least

STOP_WORDS = frozenset(
    """
    a about after all also am an and any are as at be because been before being but by can could did
    do does doing for from get had has have he her here him his how i if in into is it its just may
    me might more most must my no not of on or our out over please she should so some such tell than
    that the their them then there these they this those to too under until up us very was we were
    what when where whether which while who whom whose why will with would you your
    al algo algun alguna ante aquel aquella aqui asi aun aunque cada como con cual cuales cuando
    cuanta cuantas cuanto cuantos de del desde donde dos el ella ellas ellos en entre era eran es
    esa esas ese eso esos esta estaba estan estas este esto estos fue fueron ha haber habia hace
    hacen hacer han hasta hay la las le les lo los mas me mi mis mucho muy ni nos nosotros o os otra
    otro para pero poco por porque puede pueden que quien quienes se sea segun ser si sin sobre son
    su sus tambien te tiene tienen todo todos tu tus un una unas uno unos usted ustedes y ya yo él
    más sí según también aquí así aún algún había está están éste ésta qué quién quiénes cuál cuáles
    cuándo cuánto cuánta cuántos cuántas cómo dónde dime
    """.split()
)

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


def search(
    store: Store, index: Index, embedder: Embedder, question: str, settings: Retrieve
) -> tuple[Hit, ...]:
    """Returns the `settings.k` best chunks, best first; none if nothing is relevant.

    Nothing is relevant if no content word of the question is in any kept text and no cosine reaches
    the embedder's threshold. A chunk that no document has is never found.
    """
    depth = max(DEPTH, 10 * settings.k)
    dense = index.nearest(embedder.encode([question], query=True)[0], depth)
    words = search_words(store, content_words(question), depth)
    if not words and (not dense or dense[0][1] < embedder.threshold):
        return ()
    cosines = dict(dense)
    weight = settings.dense_weight if settings.dense_weight >= 0 else embedder.dense_weight
    scores = fuse([number for number, _ in dense], words, weight, settings.rank_constant)
    ids = store.ids_of(scores)
    places = store.occurrences(ids.values())
    hits = [
        Hit(ids[number], score, cosines.get(number), places[ids[number]])
        for number, score in scores.items()
        if number in ids
    ]
    return tuple(hit for hit in hits if hit.occurrences)[: settings.k]


def search_words(store: Store, terms: Sequence[str], count: int) -> tuple[int, ...]:
    """The store's word hits; none, with a warning, where the word index is damaged.

    The index is but a cache, and the keys still answer.
    """
    try:
        return store.search_words(terms, count)
    except StoreDamaged as error:
        log.warning("searching by keys alone: %s", error)
        return ()


def fuse(
    dense: Sequence[int], words: Sequence[int], dense_weight: float, rank_constant: int
) -> dict[int, float]:
    """Returns each number's score by reciprocal rank, best first.

    Equal scores are in the order of the dense hits, then of the word hits.
    """
    scores = dict.fromkeys((*dense, *words), 0.0)
    for numbers, weight in ((dense, dense_weight), (words, 1 - dense_weight)):
        for rank, number in enumerate(numbers, start=1):
            scores[number] += weight / (rank_constant + rank)
    return dict(sorted(scores.items(), key=lambda item: -item[1]))
