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
# # A store, and questions to it
#
# Three short documents become memories in a store. Then questions are asked, and the chunks that
# are found are put into prompts in three ways, by three *readers*:
#
# - `memory`: the vectors themselves, as soft tokens. The fewest positions.
# - `decode`: the memories, decoded to text first. What a store without text can always do.
# - `text`: the text that was kept. Plain retrieval-augmented generation, to compare with.
#
# Mind the model: the embedded one has some ten million parameters and is for demonstration. It
# holds memories like a large one, if fewer tokens in each vector, but it is a poor reader, even of
# plain text. What can be seen here is how the parts work together, and what the readers cost; not
# how good answers get.

# %%
import html
import json
import shutil
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML

import rag_memtok as rm
from rag_memtok.errors import NoUsableMemory
from rag_memtok.pipeline.progress import quiet
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


def table(names, rows):
    """Rows of values as a table; what comes from documents and models is escaped."""
    lines = [
        "".join(f'<td style="text-align: left">{html.escape(str(value))}</td>' for value in row)
        for row in rows
    ]
    head = "".join(f'<th style="text-align: left">{name}</th>' for name in names)
    return HTML(f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>")


# %% [markdown]
# ## Three documents
#
# Two tokens a vector, where the default for this model is twelve: with more vectors fewer steps are
# enough for most chunks.

# %%
folder = Path(tempfile.mkdtemp())
for name in ("testbench.toml", "letter-oskelund.txt", "release-notes.md"):
    shutil.copy(Path("../data/docs") / name, folder)

quick = {"tokens_per_vector": 2, "steps": 100, "k": 2, "max_new_tokens": 20, "threads": 1}
quick["model"] = "mini"
store = rm.open(folder / "store", say=quiet, **quick)  # quiet: the model introduces itself
done = store.ingest(folder)
print(
    f"{done.files} files, {done.chunks} chunks, {done.positions} vectors instead of "
    f"{done.text_positions} tokens"
)
print("verdicts:", ", ".join(f"{count} {kind}" for kind, count in sorted(done.verdicts.items())))

# %% [markdown]
# ## What is in the store
#
# One row for each chunk, as it was judged: decoded from its stored bytes, and pinned where the
# decode would be wrong or nearly so. Any vectors are lossless with enough pins, so how many there
# are is what tells a memory from none.

# %%
rows = []
with open_store(folder / "store", write=False) as opened:
    for document in opened.documents():
        for place in opened.document_chunks(document.root, document.path):
            record, text = opened.record(place.chunk_id), opened.text(place.chunk_id)
            verdict = record.verdict
            pins = f"{verdict.corrections} + {verdict.safeties}"
            sizes = (len(text.encode()), len(record.packed))
            rows.append(
                (
                    place.path,
                    place.locator,
                    verdict.kind,
                    record.tokens,
                    record.shape[0],
                    pins,
                    f"{verdict.margin:.2f}",
                    *sizes,
                )
            )
names = (
    "document",
    "where",
    "verdict",
    "tokens",
    "vectors",
    "pins (corrections + safety)",
    "weakest lead",
    "bytes of text",
    "of vectors",
)
table(names, rows)

# %% [markdown]
# A memory takes a fraction of the *positions* of its text, and many times its *bytes*. It saves
# prompt, prefill and cache, not disk.
#
# ## Questions, and three readers
#
# Six questions that the documents answer. Retrieval is the same for all readers: word search and a
# small static embedder, fused by score. The two best chunks are read, each in a prompt of its own,
# and the answer that the model is surest of is kept: this model answers better from one passage
# than from two (`passages = "together"` puts both into one prompt). Cited is the passage that the
# answer comes from.

# %%
asked = [
    json.loads(line)
    for line in Path("../data/questions.jsonl").read_text(encoding="utf-8").splitlines()
]
ours = {path.name for path in folder.iterdir()}
questions = [one for one in asked if one["file"] in ours][:6]
readers = ("memory", "decode", "text")
answers = {}
for reader in readers:
    with rm.open(folder / "store", read=reader, **quick) as opened:
        for one in questions:
            answers[one["question"], reader] = opened.ask(one["question"])


def right(one, found):
    """Whether the gold answer is in what was said."""
    return any(gold.lower() in found.answer.lower() for gold in one["answers"])


rows = []
for one in questions:
    found = [answers[one["question"], reader] for reader in readers]
    place = found[-1].sources[0]
    said = [f"{'✓ ' if right(one, each) else ''}{each.answer}" for each in found]
    where = f"{'✓ ' if place.path == one['file'] else ''}{place.path}, {place.lines}"
    rows.append((one["question"], one["answers"][0], where, *said))
table(("question", "right answer", "source of the text's answer", *readers), rows)

# %%
hits = sum(answers[one["question"], "text"].sources[0].path == one["file"] for one in questions)
print(f"the source of the text's answer is of the right document: {hits} of {len(questions)}")
for reader in readers:
    print(
        f"reader {reader:6s}: "
        f"{sum(right(one, answers[one['question'], reader]) for one in questions)} of "
        f"{len(questions)} right"
    )
assert all(
    answers[one["question"], "decode"].answer == answers[one["question"], "text"].answer
    for one in questions
)
print("decode answered word for word as text did")

# %% [markdown]
# What this shows, and what it does not:
#
# - **Retrieval needs no language model**, and finds the right document, if not always the right
#   lines first.
# - **`decode` answers word for word as `text` does**, right or wrong. That is what *lossless* buys:
#   a store that holds no text at all gives the model the very tokens to read.
# - **Vectors trained for one thing, to be decoded, are of no use as context** to a frozen model
#   (Sastre & Rosá 2025 say so of theirs). So `--read auto` takes `decode` for such a store, and
#   says why. Memories written with `ingest --write readable` are read four fifths as well as the
#   text: six questions cannot show that, the 600 in docs/results.md do.

# %%
found = store.ask(questions[0]["question"])
print(f"reader {found.reader}: {found.reader_reason}")

# %% [markdown]
# ## What it takes
#
# Positions of the prompt that the two chunks take, question by question. `decode` takes those of
# `text`, and the decode itself beforehand.

# %%
figure, axis = plt.subplots(figsize=(7.6, 4.2), layout="constrained")
middle = np.arange(len(questions))
for shift, (reader, colour) in enumerate(zip(readers, (RIGHT, WRONG, GREY), strict=True)):
    positions = [answers[one["question"], reader].context_positions for one in questions]
    bars = axis.barh(
        middle + (shift - 1) * 0.27, positions, height=0.25, color=colour, label=reader
    )
    axis.bar_label(bars, padding=3, fontsize=8, color=colour)
axis.set_yticks(middle, [one["question"] for one in questions], fontsize=9)
axis.invert_yaxis()
axis.set(title="Context positions of the two best chunks", xlabel="positions")
axis.margins(x=0.12)
axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
axis.set_axisbelow(True)
axis.grid(axis="x", alpha=0.25)
plt.show()

# %% [markdown]
# ## A question that nothing answers
#
# Where no content word of a question is in the store, and nothing is near it in meaning, no answer
# is made up.

# %%
try:
    store.ask("Wie tief ist der Marianengraben?")
except NoUsableMemory as refusal:
    print(f"refused: {refusal}")

# %%
store.close()
shutil.rmtree(folder)
