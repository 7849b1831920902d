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
# # One chunk becomes a memory
#
# A language model reads text as a row of vectors, one for each token. Nothing says that these
# vectors must be those of real words. Here we look for a few vectors that no word has, **memory
# tokens**, such that the model, frozen, says one particular text when it has read them.
#
# We watch one chunk become such a memory, see how little noise it stands, and how a memory that is
# not quite right is made right with pins. Everything runs on the embedded model, on a CPU, in about
# a minute.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import TwoSlopeNorm

from rag_memtok.config import Memorize, Model
from rag_memtok.datatypes import Memory
from rag_memtok.memory.batch import Task, init_pooled, lay_out
from rag_memtok.memory.codec import CODECS
from rag_memtok.memory.optimize import memorize
from rag_memtok.memory.recipes import RECIPES, margin_hinge
from rag_memtok.memory.reconstruct import decode, decode_batch, judge
from rag_memtok.model import lm, prompts

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

model = lm.load(Model())
template = prompts.bare(model)  # [BOS] [memory] -> text [end]
print(
    f"{model.parameters / 1e6:.1f} million parameters, {len(model.table)} words, vectors of "
    f"{model.width} numbers"
)

# %% [markdown]
# ## The chunk
#
# One paragraph of the sample handbook. Ten vectors are to hold it: about four tokens in each.

# %%
handbook = Path("../data/docs/handbook.md").read_text(encoding="utf-8")
text = next(
    paragraph for paragraph in handbook.split("\n\n") if paragraph.startswith("Fill the water trap")
)
task = Task(key="one chunk", tokens=tuple(model.encode(text)), vectors=10)
words = [model.decode([token]) for token in task.tokens] + ["(end)"]
print(f"{len(task.tokens)} tokens: {'|'.join(words)}")

# %% [markdown]
# ## Writing
#
# The text is laid out once: BOS, ten empty places, the text. The position *before* each token
# predicts it, and the last position predicts the end. What is trained is what goes into the ten
# places, and nothing else: the model's own weights never change.
#
# We ask less than usual. Cross-entropy pushes every token towards probability 1, for ever. To say a
# text word for word it is enough that each right token is *ahead of every other word*. So we
# measure its lead, the **margin** in logits, and the loss is `relu(0.5 - margin)`, squared: a token
# that leads by 0.5 costs nothing, and the vectors are spent on those that do not.

# %%
recipe, objective = RECIPES["margin"], margin_hinge(0.5, power=2.0)
layout = lay_out(model, template, [task])
vectors = init_pooled(model, task)[None].requires_grad_(
    True
)  # start: the chunk's own token embeddings, averaged over ten stretches
optimiser = torch.optim.Adam([vectors], betas=recipe.betas)
tried, losses, margins = [], [], []

for step in range(300):
    hidden = model.hidden(layout.inputs(vectors))[layout.scored]
    loss, margin = objective(model, hidden, layout.targets, torch.zeros(len(layout.targets)))
    tried.append(vectors.detach()[0].clone())
    losses.append(float(loss.mean().detach()))
    margins.append(margin.numpy())
    if margin.min() >= recipe.margin:
        break
    (vectors.grad,) = torch.autograd.grad(loss.mean(), vectors)
    torch.nn.utils.clip_grad_norm_([vectors], recipe.clip)
    unit = float(
        vectors.detach().square().mean().sqrt()
    )  # the rate is relative to the vectors as they are: they may grow
    optimiser.param_groups[0]["lr"] = recipe.lr_at(step, 300) * unit
    optimiser.step()

margins = np.stack(margins)  # step x token
print(f"after {step} steps every token leads, the weakest by {margins[-1].min():.2f} logits")

# %% [markdown]
# ## The loss falls, the tokens turn right
#
# Most tokens turn right early. The last few take as long as all the others together, because every
# step for them moves vectors that the others lean on.

# %%
wrong = (margins <= 0).sum(1)
figure, (above, below) = plt.subplots(2, 1, figsize=(7.6, 4.8), sharex=True, layout="constrained")
above.semilogy(losses, color=RIGHT)
above.set(title="The loss falls", ylabel="mean loss (logits)")
below.fill_between(range(len(wrong)), wrong, step="mid", color=WRONG, alpha=0.85, linewidth=0)
below.set(
    title=f"Wrong tokens, of {len(words)}",
    xlabel="step",
    ylabel="tokens",
    xlim=(0, len(wrong) - 1),
    ylim=(0, None),
)
for axis in (above, below):
    axis.grid(alpha=0.25)
plt.show()

# %% [markdown]
# ## Token by token
#
# The same run, one row for each token of the text. Blue leads, red is behind, white is undecided;
# the blue side has the finer scale, since nothing pushes a token that leads by 0.5 any further. A
# dot marks the step from which a token stays right. Those that come last are words that the model,
# left to itself, would not have said there.

# %%
settled = [
    int(np.flatnonzero(column <= 0)[-1]) + 1 if (column <= 0).any() else 0 for column in margins.T
]
figure, axis = plt.subplots(figsize=(7.6, 8.2), layout="constrained")
picture = axis.imshow(
    margins.T, aspect="auto", cmap="RdBu", norm=TwoSlopeNorm(0, -6, 1.5), interpolation="nearest"
)
axis.plot(settled, range(len(words)), "o", color="black", markersize=3)
axis.set_yticks(
    range(len(words)),
    [word.replace(" ", "\N{OPEN BOX}") for word in words],
    fontsize=8,
    family="monospace",
)
axis.set(
    title="Lead of the right token over the best other word",
    xlabel="step",
    ylabel="token of the chunk, in order of the text",
)
axis.spines[:].set_visible(False)
figure.colorbar(
    picture,
    ax=axis,
    label="margin (logits)",
    shrink=0.6,
    extend="both",
    ticks=[-6, -4, -2, 0, 0.5, 1, 1.5],
)
plt.show()
last = sorted(range(len(words)), key=settled.__getitem__)[-5:]
print(
    "the last to settle:", ", ".join(f"{words[token]!r} at step {settled[token]}" for token in last)
)

# %% [markdown]
# ## Noise
#
# How exact do the vectors have to be? We add Gaussian noise, from a ten-thousandth of their own
# size (root mean square) to the whole of it, twelve draws for each level, and let the model decode
# freely, each token fed with those it has said before. One wrong token can send those after it
# astray.

# %%
memory = tried[-1]
levels, draws = np.logspace(-4, 0, 17), 12
size = float(memory.square().mean().sqrt())
noise = (
    torch.randn(len(levels), draws, *memory.shape, generator=torch.Generator().manual_seed(0))
    * size
)
noisy = memory + noise * torch.tensor(levels, dtype=torch.float32)[:, None, None, None]
texts = decode_batch(
    model,
    template,
    [Memory(one.numpy()) for one in noisy.flatten(0, 1)],
    limit=len(task.tokens) + 1,
)

right = [
    sum(said == true for said, true in zip(tokens, task.tokens, strict=False)) / len(task.tokens)
    for tokens in texts
]
shares = np.reshape(right, (len(levels), draws))
exact = np.reshape([tokens == task.tokens for tokens in texts], (len(levels), draws)).mean(1)

codec = CODECS["float16"]
rounded = codec.unpack(codec.pack(memory.numpy()), tuple(memory.shape))
rounding = np.sqrt(np.mean((rounded - memory.numpy()) ** 2)) / size

# %%
percent = levels * 100
figure, axis = plt.subplots(figsize=(7.6, 4.2), layout="constrained")
axis.plot(
    percent,
    shares.mean(1) * 100,
    color=RIGHT,
    marker="o",
    markersize=4,
    label="tokens right, mean of the draws",
)
axis.fill_between(
    percent,
    shares.min(1) * 100,
    shares.max(1) * 100,
    color=RIGHT,
    alpha=0.15,
    linewidth=0,
    label="worst to best draw",
)
axis.plot(
    percent, exact * 100, color=WRONG, marker="s", markersize=4, label="draws that decode exactly"
)
axis.axvline(rounding * 100, color=GREY, linestyle="--", linewidth=1)
axis.annotate(
    "rounding to float16",
    (rounding * 100, 4),
    xytext=(5, 0),
    textcoords="offset points",
    color=GREY,
)
axis.set(title="What noise on the vectors does to the decode", xscale="log", ylim=(0, 103))
axis.set(xlabel="noise (% of the vectors' root mean square)", ylabel="share (%)")
axis.legend(frameon=False, loc="center left", bbox_to_anchor=(0.15, 0.4))
axis.grid(alpha=0.25)
plt.show()

# %% [markdown]
# Up to some percent of noise nothing happens: every right token is far enough ahead. Soon after
# that the text is gone. Rounding to 16 bits lies far to the left, and still the rule is that **a
# memory is judged after it has been packed and read back**, never before.

# %% [markdown]
# ## The judge, and pins
#
# The judge decodes what was stored, one token at a time, with the true token fed at each position.
# Where the model's first choice is not the true token it notes a *correction pin*: (position,
# token). Where the true token leads by 0.1 logits or less it notes a *safety pin*, so that another
# machine's rounding cannot tip it. `decode` then has only vectors and pins, and is exact by
# induction: as long as all so far is right, its context is the one that was judged.
#
# Any vectors at all come back exactly with enough pins, so the two kinds are counted, and a chunk
# that needs corrections for more than 5 % of its tokens is called `assisted`, not a memory. Here
# are the vectors of our run from its start to its end.

# %%
moments = sorted({0, step // 4, step // 2, 3 * step // 4, step})
pins_at = []
print("step   verdict    correction  safety   weakest lead   decoded from vectors and pins")
for moment in moments:
    stored = codec.unpack(codec.pack(tried[moment].numpy()), tuple(memory.shape))
    pinned, verdict = judge(model, template, Memory(stored), task.tokens, tau=Memorize().tau)
    said = decode(model, template, pinned, limit=len(task.tokens))
    pins_at.append(pinned.pins)
    same = "the text, exactly" if said.tokens == task.tokens and said.ended else "something else"
    print(
        f"{moment:4d}   {verdict.kind:9s} {verdict.corrections:8d} {verdict.safeties:9d} "
        f"{verdict.margin:11.2f}       {same}"
    )

# %%
figure, axis = plt.subplots(figsize=(7.6, 3.4), layout="constrained")
for kind, colour in [("correction", WRONG), ("safety", GREY)]:
    places = [
        (pin.position, row) for row, pins in enumerate(pins_at) for pin in pins if pin.kind == kind
    ]
    axis.scatter(
        *zip(*places, strict=True) if places else ([], []),
        marker="s",
        s=48,
        color=colour,
        label=f"{kind} pin",
    )
axis.set_yticks(range(len(moments)), moments)
axis.set_xticks(
    range(len(words)),
    [word.replace(" ", "\N{OPEN BOX}") for word in words],
    fontsize=8,
    family="monospace",
    rotation=90,
)
axis.set(
    title="Where pins are needed",
    xlabel="token of the chunk",
    ylabel="step at which\nwriting is stopped",
)
axis.set(xlim=(-0.7, len(words) - 0.3), ylim=(len(moments) - 0.5, -0.5))
axis.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2)
axis.grid(alpha=0.25)
plt.show()

# %% [markdown]
# ## The same in one call
#
# `memorize` does for many chunks at once what the loop above did for one, with another start and a
# loss whose power changes on the way; `judge` and `decode` are what `rag-memtok ingest` and
# `rag-memtok verify` run.

# %%
written = next(memorize(model, template, [task], Memorize(seconds_per_chunk=0)))
packed = codec.pack(written.vectors)
final, verdict = judge(
    model,
    template,
    Memory(codec.unpack(packed, written.vectors.shape)),
    task.tokens,
    tau=Memorize().tau,
)
said = decode(model, template, final, limit=len(task.tokens))
print(f"verdict: {verdict.kind}, {len(final.pins)} pins, weakest lead {verdict.margin:.2f} logits")
print(
    f"{task.vectors} positions of a prompt instead of {len(task.tokens)}; {len(packed):,} bytes "
    f"instead of {len(text.encode()):,}"
)
print(f"decoded: {model.decode(said.tokens)}")

# %%
assert said.ended and model.decode(said.tokens) == text

# %% [markdown]
# A memory takes far more *bytes* than its text. What it saves is positions: the prompt, its cache
# and its prefill. And the vectors found here are good for one thing, to be decoded: a frozen model
# cannot yet *answer* from them directly.
