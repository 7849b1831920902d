"""Makes the golden store of the present format: `python tests/golden/make_store.py`.

Once a format: it must open for ever. While the format is a draft it is made anew with each.
"""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import toy  # noqa: E402
from random_adapter import reading_vectors  # noqa: E402

from rag_memtok.config import Config  # noqa: E402
from rag_memtok.model.lm import load  # noqa: E402
from rag_memtok.pipeline import api  # noqa: E402
from rag_memtok.settings import updated  # noqa: E402
from rag_memtok.store.formats import DRAFT, FORMAT  # noqa: E402
from rag_memtok.store.store import open_store  # noqa: E402

HEADINGS = "Harbour > The lamp"
DOCUMENTS = {
    "harbour.md": "# Harbour\r\n\r\nThe lamp of the harbour was repaired on 14 March; "
    "its keeper, Aldo Ruiz, wrote a letter to the pilots.\r\n",
    "notas.txt": "La empanada lleva cebolla, huevo y aceitunas; se hornea media hora a 200 grados. "
    "¿Quién la probó? 🥟\n",
    "again.txt": "La empanada lleva cebolla, huevo y aceitunas; se hornea media hora a 200 grados. "
    "¿Quién la probó? 🥟\n",
}


def main() -> None:
    """Writes model, reader with its encoder, documents and store into tests/golden/stores/format-N.

    It goes by way of a folder whose name says nothing of this machine.
    """
    folder, made = HERE / "stores" / f"format-{FORMAT}", Path("/tmp/golden")
    if DRAFT:
        shutil.rmtree(folder, ignore_errors=True)
    assert not folder.exists(), f"{folder} exists, and is never made again"
    words = toy.tokenizer()
    toy.llama(len(words)).to(torch.float16).save_pretrained(made / "model")
    words.save_pretrained(made / "model")
    (made / "docs").mkdir()
    for name, text in DOCUMENTS.items():
        (made / "docs" / name).write_bytes(text.encode())
    dials = {
        "store": str(made / "store"),
        "model.id": str(made / "model"),
        "model.threads": 1,
        "documents.chunk_tokens": 32,
        "ask.adapter": str(made / "reader"),
        "memorize.tokens_per_vector": 4,
        "memorize.readable": 4,
        "memorize.seconds_per_chunk": 0,
    }
    config = updated(Config(), dials)
    reading_vectors(load(config.model), made / "reader")
    done = api.ingest([made / "docs"], config)
    furnish(made / "store")
    for name in (".gitignore", "index.faiss", "lines.keys", "lock"):
        (made / "store" / name).unlink()
    shutil.move(made, folder)
    print(done)


def furnish(folder: Path) -> None:
    """Gives a document headings."""
    with open_store(folder, write=True) as store:
        (document,) = (one for one in store.documents() if one.path == "harbour.md")
        places = store.document_chunks(document.root, document.path)
        headed = [replace(one, headings=HEADINGS) for one in places]
        store.replace_file(document.root, document.file, [document], headed)


if __name__ == "__main__":
    main()
