"""A static embedder of ten words, as a folder."""

import json

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

WORDS = ["[UNK]", "lamp", "warranty", "battery", "soup", "onion", "años", "the", "is", "what"]
VECTORS = np.random.default_rng(0).standard_normal((len(WORDS), 16), dtype=np.float32)


def write_embedder(folder, dials=None, weights=VECTORS):
    """A folder as sentence-transformers saves a StaticEmbedding with a Normalize."""
    static = folder / "0_StaticEmbedding"
    static.mkdir(parents=True)
    (folder / "1_Normalize").mkdir()
    tokenizer = Tokenizer(
        WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(static / "tokenizer.json"))
    save_file({"embedding.weight": weights}, static / "model.safetensors")
    modules = "sentence_transformers.sentence_transformer.modules"
    kinds = (
        ("0_StaticEmbedding", "static_embedding.StaticEmbedding"),
        ("1_Normalize", "normalize.Normalize"),
    )
    entries = [
        {"idx": idx, "name": str(idx), "path": path, "type": f"{modules}.{kind}"}
        for idx, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    if dials:
        (folder / "retriever.json").write_text(json.dumps(dials))
    return folder
