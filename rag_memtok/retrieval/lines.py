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

    line_keys: LineKeys

    def nearest(
        self, key: Float[np.ndarray, " e"], count: int, among: Collection[int] | None = None
    ) -> dict[int, float]:
        """The `count` chunks under the nearest lines, best first, with the cosines.

        Args:
            among: the numbers of the chunks that may be among them; None: all.
        """
        nearest = dict[int, float]()
        if not key.any():
            return nearest
        cosines = self._cosines(key)
        for line in np.argsort(-cosines, kind="stable"):
            start, end = self.line_keys.starts[line : line + 2]
            for number in self.line_keys.chunks[start:end].tolist():
                if among is None or number in among:
                    nearest.setdefault(number, float(cosines[line]))
                if len(nearest) == count:
                    return nearest
        return nearest

    def cosines_of(
        self, key: Float[np.ndarray, " e"], numbers: Collection[int]
    ) -> dict[int, float]:
        """The cosine of the nearest line of each of these chunks, by the chunk's number."""
        cosines, best = self._cosines(key), dict[int, float]()
        places = np.flatnonzero(
            np.isin(self.line_keys.chunks, np.fromiter(numbers, dtype=np.int64))
        )
        lines = np.searchsorted(self.line_keys.starts, places, side="right") - 1
        for number, cosine in zip(
            self.line_keys.chunks[places].tolist(), cosines[lines].tolist(), strict=True
        ):
            best[number] = max(best.get(number, -1.0), cosine)
        return best

    def _cosines(self, key: Float[np.ndarray, " e"]) -> Float[np.ndarray, " L"]:
        if self.line_keys.keys.shape[1] != len(key):  # there are none
            return np.zeros(0, dtype=np.float32)
        return self.line_keys.keys @ key


def open_lines(store: Store, embedder: Embedder, most: int = FEW) -> Lines:
    """The lines of a store as it is now, searchable; says so where some have no key.

    Args:
        most: so many are encoded here, if they have no key yet.
    """
    line_keys = store.line_keys(
        embedder.digest, lambda texts: embedder.encode(texts, query=False), most
    )
    if line_keys.lacking:
        log.warning(
            "%d file names and headings of %s have no key: a question finds them by its words "
            "alone; rag-memtok ingest PATH --store %s adds them",
            line_keys.lacking,
            store.folder,
            store.folder,
        )
    return Lines(line_keys)
