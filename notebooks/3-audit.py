# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # An audit, and a second opinion
#
# A store says that its memories give their documents back. `rag-memtok verify` proves it or names
# what is broken. But it is our own program that says so. So here is, too, a checker of seventy
# lines that knows nothing of this package: it reads the store with sqlite3, decodes with torch and
# transformers, and compares hashes.
#
# We write a small store, break it in two ways, and see who notices.

# %%
import hashlib
import shutil
import sqlite3
import struct
import tempfile
from contextlib import closing
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rag_memtok as rm
from rag_memtok.config import Model
from rag_memtok.datatypes import Memory
from rag_memtok.memory.codec import CODECS
from rag_memtok.memory.reconstruct import decode_batch
from rag_memtok.model import lm, prompts
from rag_memtok.pipeline.progress import quiet
from rag_memtok.store.schema import insert
from rag_memtok.store.store import open_store

RIGHT, WRONG, GREY = "#1f6f8b", "#c8553d", "#777777"
plt.rcParams.update(
    {
        "figure.dpi": 90,
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
    }
)

folder = Path(tempfile.mkdtemp())
shutil.copy("../data/docs/testbench.toml", folder)


def store_in(name):
    """Two tokens a vector: six times the vectors of the default, so that few steps are enough."""
    quick = {"model": "mini", "tokens_per_vector": 2, "steps": 100, "threads": 1}
    return rm.open(folder / name, say=quiet, **quick)


done = store_in("whole").ingest(folder / "testbench.toml")
print(
    f"{done.chunks} chunks, {done.positions} vectors for {done.text_positions} tokens; verdicts: "
    f"{dict(done.verdicts)}"
)

# %% [markdown]
# ## The audit of a whole store
#
# `verify` decodes every memory from its vectors and pins alone, joins the chunks of each document,
# and compares both with the hashes that were noted when the text was at hand. The text that the
# store keeps for reading is a draft of which nothing is believed: no verdict depends on it.


# %%
def tell(found):
    """What `rag-memtok verify` prints, shortened."""
    print(f"{found.sentence} (exit code {found.exit_code})")
    print(
        f"verdicts: {dict(found.counts)}; documents identical: {found.documents_proven} of "
        f"{found.documents}"
    )
    for finding in found.findings:
        print(f"  {finding.kind}: {finding.subject}: {finding.reason.replace(f'{folder}/', '')}")


tell(store_in("whole").verify())

# %% [markdown]
# ## One byte
#
# Now one byte of one memory changes, as a bad disk or a bad cable would do it. SQLite does not
# mind: the file is still a perfect database.

# %%
shutil.copytree(folder / "whole", folder / "flipped")
with closing(sqlite3.connect(folder / "flipped" / "store.db")) as db, db:
    ((packed,),) = db.execute("SELECT packed FROM vectors WHERE chunk = 2").fetchall()
    sizes = np.abs(np.frombuffer(packed, dtype="<f2"))
    place = (
        2 * int(np.where(sizes < 1, sizes, 0).argmax()) + 1
    )  # upper byte of the largest number under 1, which becomes some 65,000
    db.execute(
        "UPDATE vectors SET packed = ? WHERE chunk = 2",
        (packed[:place] + bytes([packed[place] ^ 0x40]) + packed[place + 1 :],),
    )
    print(
        f"byte {place} of {len(packed)} changed; SQLite's integrity check says: "
        f"{db.execute('PRAGMA integrity_check').fetchone()[0]}"
    )
tell(store_in("flipped").verify())

# %% [markdown]
# Every row of the store carries a sha256 of its own, so the damage is found and named before
# anything is decoded; the other chunks still prove themselves. Ingesting the file again would write
# the damaged memory anew.
#
# Is that more than is needed, if the decode would tell anyway? It would not always. Here each of
# the sixteen bits of a few numbers of that memory is flipped, one at a time, and the memory
# decoded.

# %%
model = lm.load(Model())
template = prompts.bare(model)
with open_store(folder / "whole", write=False) as store:
    record = store.record(store.chunk_ids()[1])
codec = CODECS[record.codec]
numbers = np.random.default_rng(0).choice(record.shape[0] * record.shape[1], 6, replace=False)
flipped = []
for bit in range(16):
    for number in numbers:
        words = np.frombuffer(record.packed, dtype="<u2").copy()
        words[number] ^= 1 << bit
        flipped.append(Memory(codec.unpack(words.tobytes(), record.shape), record.pins))
original = decode_batch(
    model, template, [Memory(codec.unpack(record.packed, record.shape), record.pins)], record.tokens
)[0]
said = [
    text
    for start in range(0, len(flipped), 32)
    for text in decode_batch(model, template, flipped[start : start + 32], record.tokens)
]
survived = np.array([text == original for text in said]).reshape(16, len(numbers)).mean(1)

figure, axis = plt.subplots(figsize=(7.6, 2.8), layout="constrained")
axis.bar(range(16), 100 * survived, color=RIGHT)
axis.bar(range(16), 100 * (1 - survived), bottom=100 * survived, color=WRONG)
axis.set(
    title="One flipped bit: does the memory still decode to its text?",
    xlabel="bit of a 16-bit number",
    ylabel="of six numbers (%)",
)
axis.set_xticks(
    range(16),
    [*range(10), *(f"{bit}\nexponent" if bit == 12 else bit for bit in range(10, 15)), "15\nsign"],
)
axis.legend(["decodes exactly", "does not"], frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# Most flips change nothing that the decode can see. A checksum sees them all: what is stored is
# what was judged, or it is called damaged.
#
# ## A memory that is wrong, with the right checksum
#
# The other way round: a bug in the writer would leave a wrong memory with a right checksum. We
# forge one, with the package's own `insert`. Checksums alone (`verify --quick`) find nothing. Only
# decoding does.

# %%
shutil.copytree(folder / "whole", folder / "forged")
with open_store(folder / "forged", write=False) as store:
    store_id, record = store.store_id, store.record(store.chunk_ids()[2])
vectors = codec.unpack(record.packed, record.shape).copy()
vectors[len(vectors) // 2 :] = 0
with closing(sqlite3.connect(folder / "forged" / "store.db")) as db, db:
    insert(db, store_id, "vectors", (3, record.codec, *record.shape, codec.pack(vectors)))

print("quick: ", store_in("forged").verify(quick=True).sentence)
tell(store_in("forged").verify())

# %% [markdown]
# `rag-memtok verify --report audit.html` writes the same as a page, with what was decoded beside
# what was stored, token by token.
#
# ## The second opinion
#
# What the checker relies on is the on-disk format 2, and nothing else:
#
# - `manifest` (key, value): `format`, and `template` (here `bare`: BOS, vectors, text, end);
#   `weights_sha256`, `tokenizer_sha256`, `dtype` say which model it has to be.
# - `chunks` (number, id, tokens, tokens_sha256): `id` is the sha256 of the text in UTF-8, `tokens`
#   how many tokens it has, `tokens_sha256` is over their ids as little-endian 32-bit numbers,
#   without BOS and end.
# - `vectors` (chunk, codec, rows, width, packed): row after row of `float16` or `float32` numbers,
#   little-endian. Codec `text`: `packed` is the text itself, where a tokenizer would lose something
#   of it.
# - `pins` (chunk, packed): nine bytes for each: position and token (32 bits each), kind (0
#   correction, 1 safety), little-endian. Position 0 is the first token, position `tokens` the end.
# - `occurrences` (document, ordinal, chunk) and `documents` (number, path, sha256): the chunks by
#   `ordinal`, joined, are the document, and its `sha256` is over its text in UTF-8. Names are
#   bytes.
#
# The table `texts` is not read. Greedy decoding in fp32, eager attention, batch 1: at each position
# the pin, if there is one, else the model's first choice, until the end token.

# %%
NUMBERS = {"float16": "<f2", "float32": "<f4"}


def check(database, model_folder):
    """Returns which chunks and which documents come back exactly.

    Uses sqlite3, numpy, torch and transformers only.
    """
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    lm = AutoModelForCausalLM.from_pretrained(
        model_folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    embed = lm.get_input_embeddings()

    def recite(vectors, pins, limit):
        inputs = torch.cat(
            [embed(torch.tensor([tokenizer.bos_token_id])), torch.from_numpy(vectors)]
        )[None]
        said, cache = [], None
        while len(said) <= limit:
            output = lm(inputs_embeds=inputs, past_key_values=cache, use_cache=True)
            token = pins.get(len(said), int(output.logits[0, -1].argmax()))
            if token == tokenizer.eos_token_id:
                return said
            said.append(token)
            inputs, cache = embed(torch.tensor([[token]])), output.past_key_values
        return said

    texts, chunks, documents = {}, {}, {}
    with (
        closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db,
        torch.inference_mode(),
    ):
        manifest = dict(db.execute("SELECT key, value FROM manifest"))
        assert (manifest["format"], manifest["template"]) == ("2", "bare"), (
            "another format or template"
        )
        for number, name, count, digest in db.execute(
            "SELECT number, id, tokens, tokens_sha256 FROM chunks"
        ).fetchall():
            codec, rows, width, packed = db.execute(
                "SELECT codec, rows, width, packed FROM vectors WHERE chunk = ?", (number,)
            ).fetchone()
            if codec == "text":
                texts[number], same = packed.decode(), True
            else:
                (pinned,) = db.execute(
                    "SELECT packed FROM pins WHERE chunk = ?", (number,)
                ).fetchone()
                pins = {
                    position: token for position, token, kind in struct.iter_unpack("<IIB", pinned)
                }
                vectors = (
                    np.frombuffer(packed, NUMBERS[codec]).reshape(rows, width).astype(np.float32)
                )
                tokens = recite(vectors, pins, count)
                texts[number] = tokenizer.decode(
                    tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
                )
                same = hashlib.sha256(np.array(tokens, "<u4").tobytes()).hexdigest() == digest
            chunks[name] = same and hashlib.sha256(texts[number].encode()).hexdigest() == name
        for number, path, digest in db.execute(
            "SELECT number, path, sha256 FROM documents"
        ).fetchall():
            places = db.execute(
                "SELECT chunk FROM occurrences WHERE document = ? ORDER BY ordinal", (number,)
            )
            whole = "".join(texts[chunk] for (chunk,) in places)
            documents[path.decode()] = hashlib.sha256(whole.encode()).hexdigest() == digest
    return chunks, documents


# %% [markdown]
# Both on all three stores, chunk by chunk. The checker has no checksums, so the flipped byte is to
# it a memory that says something else.

# %%
print(f"{'store':9s} {'chunk':9s} {'verify':10s} {'checker':10s}")
for store in ("whole", "flipped", "forged"):
    audit = store_in(store).verify()
    chunks, documents = check(folder / store / "store.db", lm.EMBEDDED)
    for one in audit.recited:
        print(
            f"{store:9s} {one.chunk_id[:8]:9s} {one.verdict.kind:10s} "
            f"{'comes back' if chunks[one.chunk_id] else 'does not'}"
        )
    assert {one.chunk_id: one.verdict.proven for one in audit.recited} == chunks
    assert [proof is True for _, proof in audit.proofs] == list(documents.values())
print("they agree on every chunk and every document")

# %% [markdown]
# Two programs that share nothing but torch and transformers come to the same verdicts. What neither
# proves is that another machine's arithmetic decodes the same. That is what margins and safety pins
# are for, and the checker can be run there.

# %%
shutil.rmtree(folder)
