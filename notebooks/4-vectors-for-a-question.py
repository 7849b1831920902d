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
# # One question, read three ways
#
# A passage can stand in the prompt as its text, or as vectors that an encoder makes of that text in
# one pass: at half of the positions, or at a quarter. With `--read zoomed` they are made when a
# question is asked, and for it: the sentences that share its words get more of the vectors.
#
# We look at what that is for one passage, then ask the documents of the demo three ways: what is
# answered, at how many positions of the prompt, in what time. The model is SmolLM2-135M, on a CPU.

# %%
import html
import json
import re
import shutil
import tempfile
import time
from itertools import accumulate
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML

import rag_memtok as rm
from rag_memtok.memory.windows import equal_windows
from rag_memtok.pipeline import api
from rag_memtok.pipeline.progress import quiet
from rag_memtok.retrieval.relevance import zoomed

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

# %% [markdown]
# ## The documents
#
# The store of the demo: some notes, letters and tables of a firm that dries seeds. Its memories
# hold 32 tokens in a vector, exactly; they are what gives every byte back, and are not read here.

# %%
folder = Path(tempfile.mkdtemp())
config = rm.Config(store=str(folder / "store"))
api.import_(Path("../data/demo.safetensors"), config, trusted=True)
ways = {
    "text": {"read": "text"},
    "a vector for 2 tokens": {"read": "zoomed", "zoom": 2},
    "a vector for 4 tokens": {"read": "zoomed", "zoom": 4},
}
colours = dict(zip(ways, (GREY, RIGHT, WRONG), strict=True))

# %% [markdown]
# ## A passage in windows
#
# An encoder gives one vector for each *window* of neighbouring tokens. Equal windows give "of the"
# as much room as a price. Planned windows are as many, but a token that the model seldom expects
# has a shorter one, and in the sentences that share most words with the question they are shorter
# still. Here are the windows of one passage, four tokens each on average: equal ones, then planned
# for two questions. The darker a window, the fewer tokens share its vector; a dark one has a single
# token.

# %%
QUESTIONS = ("When will the open day be?", "Who was absent?")
COLUMNS, DARKEST = 92, 0.75


def draw(axis, title, pieces, windows):
    """Draws the tokens of a passage, line by line, each window on a ground of its own."""
    ends = set(accumulate(windows))
    lengths = [length for length in windows for _ in range(length)]
    column, line = 0, 0
    for number, (piece, length) in enumerate(zip(pieces, lengths, strict=True), start=1):
        shown = piece.replace("\n", "¶")
        if column + len(shown) > COLUMNS:
            column, line = 0, line + 1
        gap = 0.25 if number in ends else 0.0
        axis.add_patch(
            plt.Rectangle(
                (column, -line - 0.42), len(shown) - gap, 0.84, color=RIGHT, alpha=DARKEST / length,
                linewidth=0,
            )
        )  # fmt: skip
        axis.text(
            column, -line, shown, family="monospace", fontsize=7.5, va="center",
            color="white" if length == 1 else "black",
        )  # fmt: skip
        column += len(shown)
    axis.set(xlim=(0, COLUMNS), ylim=(-line - 0.7, 0.7), title=title)
    axis.axis("off")


with rm.open(folder / "store", trust=True, say=quiet, **ways["a vector for 4 tokens"]) as opened:
    session = opened.session()
    text, source = opened.quotations(QUESTIONS[0])[0]
    tokens = session.lm.encode(text)
    pieces = [session.lm.decode([token]) for token in tokens]
    plans = {"equal windows": equal_windows(len(tokens), 4)} | {
        question: session.encoder.plan([tokens], 4, zoomed(session.lm, [tokens], question))[0]
        for question in QUESTIONS
    }
print(f"{source.path}, {source.lines}: {len(tokens)} tokens")
for title, windows in plans.items():
    assert sum(windows) == len(tokens)
    print(f"{title}: {len(windows)} vectors, of {min(windows)} to {max(windows)} tokens")

# %%
figure, axes = plt.subplots(3, figsize=(9.6, 6.4), layout="constrained")
for axis, (title, windows) in zip(axes, plans.items(), strict=True):
    draw(axis, title, pieces, windows)
plt.show()

# %% [markdown]
# ## Questions
#
# Every second one that is asked about these documents in `data/questions.jsonl`. Three passages are
# found for each, the same ones for every way of reading; each is read in a prompt of its own, and
# the surest answer is kept. From vectors an answer is copied: only what goes on as the passage's
# text does may be said, so that names and numbers are spelt as they are there. ✓ where the right
# answer stands in what was said.

# %%
there = {Path(one.name).name for one in api.documents(config)}
asked = [
    json.loads(line)
    for line in Path("../data/questions.jsonl").read_text(encoding="utf-8").splitlines()
]
questions = [one for one in asked if one["file"] in there][::2]
found, seconds = {}, {}
for way, settings in ways.items():
    with rm.open(folder / "store", trust=True, say=quiet, threads=1, **settings) as opened:
        opened.ask(questions[0]["question"])  # what is loaded stays loaded
        began = time.perf_counter()
        found[way] = [opened.ask(one["question"]) for one in questions]
        seconds[way] = (time.perf_counter() - began) / len(questions)


def right(one, answer):
    """Whether a right answer is in what was said, as whole words."""
    return any(
        re.search(rf"(?<!\w){re.escape(gold)}(?!\w)", answer, re.IGNORECASE)
        for gold in one["answers"]
    )


rows = []
for number, one in enumerate(questions):
    said = [found[way][number].answer for way in ways]
    marked = [f"{'✓ ' if right(one, answer) else ''}{answer}" for answer in said]
    rows.append((one["question"], one["answers"][0], *marked))
lines = ["".join(f"<td>{html.escape(value)}</td>" for value in row) for row in rows]
head = "".join(f"<th>{name}</th>" for name in ("question", "right answer", *ways))
HTML(f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>")

# %%
correct = {
    way: sum(right(one, each.answer) for one, each in zip(questions, found[way], strict=True))
    for way in ways
}
positions = {way: np.mean([each.context_positions for each in found[way]]) for way in ways}
for way in ways:
    print(f"{way:22}: {correct[way]:2} of {len(questions)} right, {positions[way]:4.0f} positions")

# %% [markdown]
# ## What it takes, and what it gives
#
# Positions are those of the passages; the question and the words around it take some seventy more
# in each prompt. On two cores the encoder's pass takes back what the shorter prompt saves: what is
# saved is room, and memory for the model's cache.

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.6, 2.6), layout="constrained", sharey=True)
shown = {
    "right answers": correct,
    "positions of the passages": positions,
    "seconds a question, one thread": seconds,
}
for axis, (title, values) in zip(axes, shown.items(), strict=True):
    bars = axis.barh(list(ways), list(values.values()), color=list(colours.values()))
    kind = "%.1f" if title.startswith("seconds") else "%.0f"
    axis.bar_label(bars, fmt=kind, padding=3)
    axis.set(title=title)
    axis.margins(x=0.15)
axes[0].invert_yaxis()
plt.show()

# %% [markdown]
# A dozen questions about one firm's papers show how it works, not how well. That is measured on
# 653 questions of others, with intervals, beside the best sentences at as many positions:
# docs/results.md.

# %%
shutil.rmtree(folder)
