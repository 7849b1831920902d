"""A question's key beside those of file names and headings -> the chunks that stand under them."""

import sys
from collections.abc import Collection
from dataclasses import dataclass
from logging import getLogger

import numpy as np
from jaxtyping import Float

from rag_memtok.retrieval.embedder import Embedder
from rag_memtok.store.line_keys import LineKeys
from rag_memtok.store.store import Store

FEW = 1_000  # lines that are encoded by what only reads a store: 6 s of a core with minilm
EVERY = sys.maxsize

log = getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Lines:
    """The lines of a store, searchable by cosine: every one is looked at."""

    known: LineKeys

    def nearest(
        self, key: Float[np.ndarray, " e"], count: int, among: Collection[int] | None = None
    ) -> dict[int, float]:
        """The `count` chunks under the nearest lines, of all or `among` some, with the cosines."""
        found = dict[int, float]()
        if not key.any():
            return found
        cosines = self._cosines(key)
        for line in np.argsort(-cosines, kind="stable"):
            start, end = self.known.starts[line : line + 2]
            for number in self.known.chunks[start:end].tolist():
                if among is None or number in among:
                    found.setdefault(number, float(cosines[line]))
                if len(found) == count:
                    return found
        return found

    def cosines_of(
        self, key: Float[np.ndarray, " e"], numbers: Collection[int]
    ) -> dict[int, float]:
        """Of each of these chunks the cosine of the nearest of its lines."""
        cosines, found = self._cosines(key), dict[int, float]()
        places = np.flatnonzero(np.isin(self.known.chunks, np.fromiter(numbers, dtype=np.int64)))
        lines = np.searchsorted(self.known.starts, places, side="right") - 1
        for number, cosine in zip(
            self.known.chunks[places].tolist(), cosines[lines].tolist(), strict=True
        ):
            found[number] = max(found.get(number, -1.0), cosine)
        return found

    def _cosines(self, key: Float[np.ndarray, " e"]) -> Float[np.ndarray, " L"]:
        if self.known.keys.shape[1] != len(key):  # there are none
            return np.zeros(0, dtype=np.float32)
        return self.known.keys @ key


def open_lines(store: Store, embedder: Embedder, most: int = FEW) -> Lines:
    """The lines of a store as it is now, searchable; says so where some have no key."""
    known = store.line_keys(
        embedder.digest, lambda texts: embedder.encode(texts, query=False), most
    )
    if known.lacking:
        log.warning(
            "%d file names and headings of %s have no key: a question finds them by its words "
            "alone; rag-memtok ingest PATH --store %s adds them",
            known.lacking,
            store.folder,
            store.folder,
        )
    return Lines(known)
