"""Keys -> FAISS, and the cached index file. The only home of faiss.

Beside it are the keys of file names and headings (lines.py).
"""

import hashlib
import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

import faiss
import numpy as np
from jaxtyping import Float, Int

from rag_memtok.errors import WrongModel
from rag_memtok.retrieval.embedder import Embedder
from rag_memtok.retrieval.lines import FEW, Lines, open_lines
from rag_memtok.store.files import is_regular_file, write_whole
from rag_memtok.store.store import INDEX, Store

PADDING = -1  # FAISS's id for "no more"
EXACT = 200_000  # keys up to which a question is compared with every one
HEADER = 2**16  # bytes that its first line may have
SAMPLE = 64  # keys for each list that the lists' centres are found from
TRIED, NEIGHBOURS, RECALL = 256, 10, 0.98  # keys tried, and what of their nearest must be found

log = getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """The keys of a store, searchable by cosine: up to EXACT of them exactly.

    `lines` are those of file names and headings.
    """

    keys: faiss.IndexIDMap2
    lines: Lines | None = None

    def nearest(
        self, key: Float[np.ndarray, " e"], count: int, among: Collection[int] | None = None
    ) -> tuple[tuple[int, float], ...]:
        """The numbers and cosines of the `count` nearest chunks, best first.

        They are fewer where there are fewer chunks.

        Args:
            among: the numbers of the chunks that are looked at; None: all.

        Raises:
            WrongModel: the store's keys are of another width.
        """
        if not self.keys.ntotal or not key.any():
            return ()
        if self.keys.d != len(key):
            raise WrongModel(
                f"the store's keys have width {self.keys.d}, the embedder's {len(key)}",
                remedy="name the store's --embedder",
            )
        parameters = None
        if among is not None:
            selector = faiss.IDSelectorBatch(np.fromiter(among, dtype=np.int64))
            parameters = search_parameters(self.keys, selector)
        cosines, numbers = self.keys.search(
            np.ascontiguousarray(key[None], dtype=np.float32), count, params=parameters
        )
        return tuple(
            (int(number), float(cosine))
            for number, cosine in zip(numbers[0], cosines[0], strict=True)
            if number != PADDING
        )


def set_threads(count: int) -> None:
    """Sets how many threads FAISS uses.

    Two on a busy two-core machine can be six times slower than one.
    """
    faiss.omp_set_num_threads(count)


def open_index(store: Store, embedder: Embedder | None = None, most: int = FEW) -> Index:
    """The index of the store as it is now: the cached one if it is of this state, else a new one.

    A new one is cached if that can be.

    Args:
        embedder: the store's; without it the index has no keys of file names and headings.
        most: so many of these are encoded here, if they have no key yet.

    Cost: where the cache is of no use, reads all keys and places.
    """
    return Index(open_keys(store), None if embedder is None else open_lines(store, embedder, most))


def open_keys(store: Store) -> faiss.IndexIDMap2:
    """The keys of the store's chunks, cached."""
    bound = {"store": store.store_id, "state": store.state}
    path = store.folder / INDEX
    if (cached := read_index(path, bound)) is not None:
        return cached
    log.info("%s is missing, damaged or of another state: built anew", path)
    keys = build(*store.keys())
    if store.state != bound["state"]:  # a writer came between: the keys may be newer than the state
        return keys
    payload = faiss.serialize_index(keys).data
    header = json.dumps({**bound, "sha256": hashlib.sha256(payload).hexdigest()})
    try:  # not faiss.write_index: on a full disk that returns without an error
        write_whole(path, (header.encode() + b"\n", payload))
        if store.state != bound["state"]:  # a removal, which saw no file yet
            path.unlink(missing_ok=True)
    except OSError as error:
        log.info("%s is kept in memory only: %s", path, error)
    return keys


def search_parameters(
    index: faiss.IndexIDMap2, selector: faiss.IDSelector
) -> faiss.SearchParameters:
    """FAISS's parameters to search the selected keys alone, every one of them."""
    lists = faiss.downcast_index(index.index)
    if isinstance(lists, faiss.IndexIVF):
        return faiss.SearchParametersIVF(sel=selector, nprobe=lists.nlist)  # type: ignore[call-arg]
    return faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]


def build(
    numbers: Int[np.ndarray, " N"], keys: Float[np.ndarray, "N e"], exact: int = EXACT
) -> faiss.IndexIDMap2:
    """An index of keys under the chunks' own numbers, so that no second list falls out of step.

    With more than `exact` keys they are in lists by their nearest centre, of which a question looks
    at the nearest few: at so many that the nearest keys are found as RECALL says, measured on the
    keys themselves.
    """
    keys = np.ascontiguousarray(keys, dtype=np.float32)
    if len(numbers) <= exact:
        index = faiss.IndexIDMap2(faiss.IndexFlatIP(max(keys.shape[1], 1)))
        if len(numbers):
            index.add_with_ids(keys, numbers)
        return index
    lists = train_lists(keys)
    index = faiss.IndexIDMap2(lists)
    index.add_with_ids(keys, numbers)
    tried = keys[:: max(1, len(keys) // TRIED)]
    while lists.nprobe < lists.nlist and recall(lists, keys, tried) < RECALL:
        lists.nprobe = min(2 * lists.nprobe, lists.nlist)
    return index


def train_lists(keys: Float[np.ndarray, "N e"]) -> faiss.IndexIVFFlat:
    """An empty index whose lists have their centres where the keys are."""
    width, count = keys.shape[1], round(4 * math.sqrt(len(keys)))
    lists = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, count, faiss.METRIC_INNER_PRODUCT)
    lists.train(np.ascontiguousarray(keys[:: max(1, len(keys) // (SAMPLE * count))]))
    return lists


def recall(
    index: faiss.Index, keys: Float[np.ndarray, "N e"], tried: Float[np.ndarray, "Q e"]
) -> float:
    """The share of the NEIGHBOURS nearest keys that an index finds, a key itself not counted.

    Args:
        tried: keys that are asked for.
    """
    found = index.search(tried, NEIGHBOURS + 1)[1][:, 1:]  # [Q, NEIGHBOURS]
    nearest = faiss.knn(tried, keys, NEIGHBOURS + 1, metric=faiss.METRIC_INNER_PRODUCT)[1][:, 1:]
    pairs = zip(found, nearest, strict=True)
    return sum(len(np.intersect1d(row, right)) for row, right in pairs) / nearest.size


def read_index(path: Path, bound: dict[str, str]) -> faiss.IndexIDMap2 | None:
    """The cached index; None unless it is whole and of this store and state.

    FAISS itself would load a damaged one.
    """
    if not is_regular_file(path):
        return None
    try:
        with path.open("rb") as file:
            header = json.loads(file.readline(HEADER))
            payload = np.fromfile(file, dtype=np.uint8)
        if header != {**bound, "sha256": hashlib.sha256(payload.data).hexdigest()}:
            return None
        index = faiss.deserialize_index(payload)
        return index if isinstance(index, faiss.IndexIDMap2) else None
    except (OSError, ValueError, RuntimeError):
        return None
