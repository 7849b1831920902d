"""text -> key; keys -> FAISS; dense hits and word hits, fused -> Hit.

Dense hits come from the keys through FAISS, word hits from the store's FTS5 table; a hit adds weight / (rank_constant + rank) to its chunk.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from rag_memtok.config import Retrieve
from rag_memtok.datatypes import Hit
from rag_memtok.errors import InputRefused, ModelUnavailable, StoreDamaged, WrongModel
from rag_memtok.store.files import regular, write_whole
from rag_memtok.store.store import INDEX, Store

MINI = Path(__file__).parent.parent / "mini" / "retriever"
DIALS = "retriever.json"  # beside the weights: {"threshold": 0.3, "dense_weight": 0.3}
THRESHOLD = 0.2  # where an embedder records none: sentence encoders give unrelated texts about 0 to 0.15
DENSE_WEIGHT = 0.3  # of an embedder that records none
DATA = (".json", ".txt", ".safetensors", ".model")  # what an embedder is made of; its digest is over these
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")  # what may run code when it is loaded
DEPTH = 50  # hits of each kind that are fused, at least

PADDING = -1  # FAISS's id for "no more"

STOP_WORDS = frozenset(
    """
    a about after all also am an and any are as at be because been before being but by can could did do does doing for from get had has
    have he her here him his how i if in into is it its just may me might more most must my no not of on or our out over please she
    should so some such tell than that the their them then there these they this those to too under until up us very was we were what
    when where whether which while who whom whose why will with would you your
    al algo algun alguna ante aquel aquella aqui asi aun aunque cada como con cual cuales cuando cuanta cuantas cuanto cuantos de del
    desde donde dos el ella ellas ellos en entre era eran es esa esas ese eso esos esta estaba estan estas este esto estos fue fueron
    ha haber habia hace hacen hacer han hasta hay la las le les lo los mas me mi mis mucho muy ni nos nosotros o os otra otro para pero
    poco por porque puede pueden que quien quienes se sea segun ser si sin sobre son su sus tambien te tiene tienen todo todos tu tus
    un una unas uno unos usted ustedes y ya yo él más sí según también aquí así aún algún había está están éste ésta qué quién quiénes
    cuál cuáles cuándo cuánto cuánta cuántos cuántas cómo dónde dime
    """.split()
)

log = getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Embedder:
    """Turns texts into keys. Keys of two embedders cannot be compared: `digest`, over its files, says which one made them.

    `threshold` is the cosine under which a dense hit alone is nothing relevant; `dense_weight` the weight that measured best with it.
    """

    id: str
    digest: str
    width: int
    threshold: float
    dense_weight: float
    function: Callable[[list[str], bool], np.ndarray]

    def encode(self, texts: Sequence[str], query: bool) -> Float[np.ndarray, "N e"]:
        """Returns a row of length 1 per text, in fp32; zeros for a text without tokens. `query`: these are questions, not documents."""
        if not texts:
            return np.zeros((0, self.width), dtype=np.float32)
        rows = np.asarray(self.function(list(texts), query), dtype=np.float32)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def load_embedder(name: str) -> Embedder:
    """Loads "mini" (the embedded one), a folder in the format of sentence-transformers, or a hub id.

    A static embedding is read here; anything else needs sentence-transformers, which takes 4-12 s to import.

    Raises:
        ModelUnavailable: it is not there, or cannot be read.
        InputRefused: it holds pickles or code.
    """
    folder = MINI if name == "mini" else Path(name).expanduser()
    if not folder.is_dir():
        folder = download(name)
    if not any((folder / file).is_file() for file in ("modules.json", "config.json")):
        raise ModelUnavailable(f"{folder} holds no model of sentence-transformers", remedy="name a folder that exists, or a hub id")
    try:
        refuse_code(folder)
        dials, static = read_json(folder / DIALS, {}), static_folder(folder)
        function, width = load_static(static) if static else load_sentence_transformer(folder)
        threshold, weight = float(dials.get("threshold", THRESHOLD)), float(dials.get("dense_weight", DENSE_WEIGHT))
        return Embedder(name, digest(folder), width, threshold, weight, function)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelUnavailable(f"the embedder {name!a} cannot be loaded: {error}", remedy="name another --embedder") from error


def download(name: str) -> Path:
    """Returns the folder of a hub id, its data files only.

    Raises:
        ModelUnavailable: it looks like a path, or the hub does not give it.
    """
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name in (".", "..", "mini"):
        raise ModelUnavailable(f"there is no embedder at {name!a}", remedy="name a folder that exists, or a hub id")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, allow_patterns=[f"*{suffix}" for suffix in DATA]))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelUnavailable(f"the embedder {name!a} is not at hand: {reason}", remedy="download it where there is a network") from error


def refuse_code(folder: Path) -> None:
    """Raises InputRefused if loading the folder could run code of its own."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in PICKLES and not any(path.parent.glob("*.safetensors")):  # which would be read instead
            raise InputRefused(f"{path} could run code when it is loaded", remedy="use a model saved as .safetensors")
    for module in read_json(folder / "modules.json", []):
        if not str(module["type"]).startswith("sentence_transformers."):
            raise InputRefused(
                f"{folder} needs code of its own: {module['type']!a}", remedy="use one of sentence-transformers' own modules"
            )
    if "auto_map" in read_json(folder / "config.json", {}):
        raise InputRefused(f"{folder} needs code of its own (auto_map)", remedy="use a model of an architecture that transformers knows")


def read_json(path: Path, otherwise: Any) -> Any:
    """The content of a JSON file, `otherwise` if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else otherwise


def digest(folder: Path) -> str:
    """The sha256 over everything in the folder that can change a key."""
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in DATA and path.name != DIALS):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        whole.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return whole.hexdigest()


def static_folder(folder: Path) -> Path | None:
    """Where the weights are, if the model is but a mean of token vectors; None if it needs more than `load_static`."""
    modules = read_json(folder / "modules.json", [])
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    prompts = read_json(folder / "config_sentence_transformers.json", {}).get("prompts", {})
    if kinds[:1] != ["StaticEmbedding"] or kinds[1:] not in ([], ["Normalize"]) or any(prompts.values()):
        return None
    return folder / modules[0]["path"]


def load_static(folder: Path) -> tuple[Callable[[list[str], bool], np.ndarray], int]:
    """Returns what sentence-transformers' StaticEmbedding computes, and its width, without importing it."""
    weights = load_file(folder / "model.safetensors")["embedding.weight"].astype(np.float32)
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises nothing more precise
        raise ValueError(f"{folder / 'tokenizer.json'}: {error}") from error
    tokenizer.no_padding()

    def encode(texts: list[str], query: bool) -> np.ndarray:
        empty = np.zeros(weights.shape[1], dtype=np.float32)
        rows = (encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False))
        return np.stack([weights[ids].mean(axis=0) if ids else empty for ids in rows])

    return encode, weights.shape[1]


def load_sentence_transformer(folder: Path) -> tuple[Callable[[list[str], bool], np.ndarray], int]:
    """Returns any sentence-transformers model's encoder, and its width. It runs on the CPU, one text is a batch row."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", trust_remote_code=False, local_files_only=True)

    def encode(texts: list[str], query: bool) -> np.ndarray:
        function = model.encode_query if query else model.encode_document
        return np.asarray(function(texts, convert_to_numpy=True, show_progress_bar=False))

    return encode, encode([""], False).shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """The keys of a store, searchable by cosine, exactly."""

    keys: faiss.IndexIDMap2

    def nearest(self, key: Float[np.ndarray, " e"], count: int) -> tuple[tuple[int, float], ...]:
        """The numbers and cosines of the `count` nearest chunks, best first; fewer where there are fewer.

        Raises:
            WrongModel: the store's keys are of another width.
        """
        if not self.keys.ntotal or not key.any():
            return ()
        if self.keys.d != len(key):
            raise WrongModel(f"the store's keys have width {self.keys.d}, the embedder's {len(key)}", remedy="name the store's --embedder")
        cosines, numbers = self.keys.search(np.ascontiguousarray(key[None], dtype=np.float32), count)
        return tuple((int(number), float(cosine)) for number, cosine in zip(numbers[0], cosines[0], strict=True) if number != PADDING)


def set_threads(count: int) -> None:
    """Lets FAISS use `count` threads. Two on a busy two-core machine can be six times slower than one."""
    faiss.omp_set_num_threads(count)


def open_index(store: Store) -> Index:
    """Returns the index of the store as it is now: the cached one if it is of this state, else a new one, which is cached if that can be.

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
    """Makes an index of keys under the chunks' own numbers, so that there is no second list to fall out of step."""
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(max(keys.shape[1], 1)))
    if len(numbers):
        index.add_with_ids(np.ascontiguousarray(keys, dtype=np.float32), numbers)
    return index


def read_index(path: Path, bound: dict[str, str]) -> faiss.IndexIDMap2 | None:
    """Returns the cached index, None unless it is whole and of this store and state. FAISS itself would load a damaged one."""
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


def content_words(question: str) -> tuple[str, ...]:
    """The runs of letters and digits in a question that say what it is about, lower-cased; English and Spanish function words left out."""
    return tuple(dict.fromkeys(word for word in re.findall(r"[^\W_]+", question.lower()) if word not in STOP_WORDS))


def search(store: Store, index: Index, embedder: Embedder, question: str, settings: Retrieve) -> tuple[Hit, ...]:
    """Returns the `settings.k` best chunks, best first; none if nothing is relevant.

    Nothing is relevant if no content word of the question is in any kept text and no cosine reaches the embedder's threshold. A chunk that
    no document has is never found.
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
    hits = [Hit(ids[number], score, cosines.get(number), places[ids[number]]) for number, score in scores.items() if number in ids]
    return tuple(hit for hit in hits if hit.occurrences)[: settings.k]


def search_words(store: Store, terms: Sequence[str], count: int) -> tuple[int, ...]:
    """The store's word hits; none, with a warning, where the word index is damaged: it is but a cache, and the keys still answer."""
    try:
        return store.search_words(terms, count)
    except StoreDamaged as error:
        log.warning("searching by keys alone: %s", error)
        return ()


def fuse(dense: Sequence[int], words: Sequence[int], dense_weight: float, rank_constant: int) -> dict[int, float]:
    """Returns each number's score by reciprocal rank, best first; equal scores in the order of the dense hits, then of the word hits."""
    scores = dict.fromkeys((*dense, *words), 0.0)
    for numbers, weight in ((dense, dense_weight), (words, 1 - dense_weight)):
        for rank, number in enumerate(numbers, start=1):
            scores[number] += weight / (rank_constant + rank)
    return dict(sorted(scores.items(), key=lambda item: -item[1]))
