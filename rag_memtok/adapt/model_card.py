"""An adapter's card: what it is, what it was trained on, what it measured, what it cannot do."""

from rag_memtok.model.lora import AdapterManifest

LIMITS = """
- It is bound to these weights, this tokenizer and memories of this template; with others it is
  refused.
- It is on for answering alone. Memories are written and verified by the frozen model, and no
  verdict depends on it.
- The measurements are of one run, on chunks set aside of the same material: on other material it
  may be worse.
- It was trained on the chunks' text and may repeat it: handle it as you handle the documents. When
  chunks are removed from the store it is marked as stale and no longer taken by itself; train it
  again.
- Half-precision weights, no claim for other arithmetic than that of the run.
"""


def card(bond: AdapterManifest) -> str:
    """The card as Markdown, with the front matter that hubs read."""
    dev, of = bond.dev, lambda count: bond.trained_on.get(count, 0)
    company = (
        "alone, as this model reads best" if of("together") == 1 else "among up to five, shuffled"
    )
    what = "memories (soft tokens)" if bond.kind == "memory" else "text passages"
    rows = [("the frozen model, reading the text", "text")]
    rows += [(f"the frozen model, reading {what}", "before")] if bond.kind == "memory" else []
    rows += [(f"with this adapter, reading {what}", "after")]
    table = "\n".join(
        f"| {name} | {100 * dev[f'{key}_alone']:.1f} | {100 * dev[key]:.1f} |" for name, key in rows
    )
    return f"""---
library_name: peft
base_model: {bond.model.split(" ")[0]}
tags: [lora, rag-memtok]
---
# A reader of {what}

A LoRA for {bond.model} (weights {bond.weights_sha256[:16]}), trained by `rag-memtok adapt` to
answer from {what} as the same model, frozen, answers from the text.

## Data
{of("chunks")} chunks. Lessons: {of("model")} with the frozen model's own answer to the text
(distilled: its words, and its 20 likeliest at each), {of("gold")} with a known answer,
{of("absent")} about another chunk, {of("unrelated")} without a document. Each prompt has its chunk
{company}. {bond.steps} steps.

## Measured
On {of("chunks_aside")} chunks that were set aside before training and never trained on;
{of("questions_aside")} questions, one to five chunks in the prompt. Loss over
{of("lessons_aside")} lessons: {dev["loss_before"]:.3f} before, {dev["loss_after"]:.3f} after.

| reader | F1, one chunk in the prompt | F1, one to five |
|---|--:|--:|
{table}

F1 is against the known answers; where there are none, against the frozen model's own answer to the
chunk's text alone.

## Limits
{LIMITS.strip()}
"""
