"""Makes the golden store of the present format: `python tests/golden/make_store.py`.

Once a format: it must open for ever.
"""

import shutil
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import toy  # noqa: E402

from rag_memtok.config import Config  # noqa: E402
from rag_memtok.pipeline import api  # noqa: E402
from rag_memtok.settings import updated  # noqa: E402
from rag_memtok.store.formats import FORMAT  # noqa: E402

DOCUMENTS = {
    "harbour.md": "# Harbour\r\n\r\nThe lamp of the harbour was repaired on 14 March; "
    "its keeper, Aldo Ruiz, wrote a letter to the pilots.\r\n",
    "notas.txt": "La empanada lleva cebolla, huevo y aceitunas; se hornea media hora a 200 grados. "
    "¿Quién la probó? 🥟\n",
    "again.txt": "La empanada lleva cebolla, huevo y aceitunas; se hornea media hora a 200 grados. "
    "¿Quién la probó? 🥟\n",
}


def main() -> None:
    """Writes model, documents and store into tests/golden/stores/format-N.

    It goes by way of a folder whose name says nothing of this machine.
    """
    folder, made = HERE / "stores" / f"format-{FORMAT}", Path("/tmp/golden")
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
    }
    done = api.ingest(
        [made / "docs"],
        updated(
            Config(), dials | {"memorize.tokens_per_vector": 4, "memorize.seconds_per_chunk": 0}
        ),
    )
    for name in (".gitignore", "index.faiss", "lock"):
        (made / "store" / name).unlink()
    shutil.move(made, folder)
    print(done)


if __name__ == "__main__":
    main()
