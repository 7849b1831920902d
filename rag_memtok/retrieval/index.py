"""Keys -> FAISS, and the cached index file. The only home of faiss."""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

import faiss
import numpy as np
from jaxtyping import Float, Int

from rag_memtok.errors import WrongModel
from rag_memtok.store.files import regular, write_whole
from rag_memtok.store.store import INDEX, Store

PADDING = -1  # FAISS's id for "no more"

log = getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """The keys of a store, searchable by cosine, exactly."""

    keys: faiss.IndexIDMap2

    def nearest(
        self, key: Float[np.ndarray, " e"], count: int, among: Collection[int] | None = None
    ) -> tuple[tuple[int, float], ...]:
        """The numbers and cosines of the `count` nearest chunks, of all or `among` some.

        The best is first; they are fewer where there are fewer chunks.

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
        some = None
        if among is not None:
            chosen = faiss.IDSelectorBatch(np.fromiter(among, dtype=np.int64))
            some = faiss.SearchParameters(sel=chosen)  # type: ignore[call-arg]
        cosines, numbers = self.keys.search(
            np.ascontiguousarray(key[None], dtype=np.float32), count, params=some
        )
        return tuple(
            (int(number), float(cosine))
            for number, cosine in zip(numbers[0], cosines[0], strict=True)
            if number != PADDING
        )


def set_threads(count: int) -> None:
    """Lets FAISS use `count` threads.

    Two on a busy two-core machine can be six times slower than one.
    """
    faiss.omp_set_num_threads(count)


def open_index(store: Store) -> Index:
    """Returns the index of the store as it is now.

    It is the cached one if it is of this state, else a new one, which is cached if that can be.

    Cost: where the cache is of no use, reads all keys.
    """
    bound = {"store": store.store_id, "state": store.state}
    path = store.folder / INDEX
    if (cached := read_index(path, bound)) is not None:
        return Index(cached)
    log.info("%s is missing, damaged or of another state: built anew", path)
    keys = build(*store.keys())
    if store.state != bound["state"]:  # a writer came between: the keys may be newer than the state
        return Index(keys)
    payload = faiss.serialize_index(keys).tobytes()
    header = json.dumps({**bound, "sha256": hashlib.sha256(payload).hexdigest()})
    try:  # not faiss.write_index: on a full disk that returns without an error
        write_whole(path, header.encode() + b"\n" + payload)
    except OSError as error:
        log.info("%s is kept in memory only: %s", path, error)
    return Index(keys)


def build(numbers: Int[np.ndarray, " N"], keys: Float[np.ndarray, "N e"]) -> faiss.IndexIDMap2:
    """Makes an index of keys under the chunks' own numbers.

    So there is no second list to fall out of step.
    """
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(max(keys.shape[1], 1)))
    if len(numbers):
        index.add_with_ids(np.ascontiguousarray(keys, dtype=np.float32), numbers)
    return index


def read_index(path: Path, bound: dict[str, str]) -> faiss.IndexIDMap2 | None:
    """Returns the cached index, None unless it is whole and of this store and state.

    FAISS itself would load a damaged one.
    """
    if not regular(path):
        return None
    try:
        first, _, payload = path.read_bytes().partition(b"\n")
        header = json.loads(first)
        if header != {**bound, "sha256": hashlib.sha256(payload).hexdigest()}:
            return None
        index = faiss.deserialize_index(np.frombuffer(payload, dtype=np.uint8))
        return index if isinstance(index, faiss.IndexIDMap2) else None
    except (OSError, ValueError, RuntimeError):
        return None
