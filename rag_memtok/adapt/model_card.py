"""An adapter's card: what it is, what it was trained on, what it measured, what it cannot do."""

from collections import Counter

from rag_memtok.model.adapter_manifest import SHIPPED_READER, AdapterManifest

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


def render_card(manifest: AdapterManifest) -> str:
    """The card as Markdown, with the front matter that hubs read."""
    dev, counts = manifest.dev, Counter(manifest.trained_on)
    beside = (
        "alone, as this model reads best"
        if counts["together"] == 1
        else "among up to five, shuffled"
    )
    passages = "memories (soft tokens)" if manifest.kind == "memory" else "text passages"
    readers = {"text": "the frozen model, reading the text"}
    if SHIPPED_READER in dev:
        readers[SHIPPED_READER] = "with the adapter that ships with it, reading the text"
    if manifest.kind == "memory":
        readers["before"] = f"the frozen model, reading {passages}"
    readers["after"] = f"with this adapter, reading {passages}"
    table = "\n".join(
        f"| {name} | {100 * dev[f'{key}_alone']:.1f} | {100 * dev[key]:.1f} |"
        for key, name in readers.items()
    )
    return f"""---
library_name: peft
base_model: {manifest.model.split(" ")[0]}
tags: [lora, rag-memtok]
---
# A reader of {passages}

A LoRA for {manifest.model} (weights {manifest.weights_sha256[:16]}), trained by `rag-memtok
adapt` to answer from {passages} as the same model, frozen, answers from the text.

## Data
{counts["chunks"]} chunks. Examples: {counts["model"]} with the frozen model's own answer to the
text (distilled: its tokens, and its 20 likeliest at each), {counts["gold"]} with a known answer,
{counts["absent"]} about another chunk, {counts["unrelated"]} without a chunk. Each prompt has its
chunk {beside}. {manifest.steps} steps.

## Measured
On {counts["chunks_aside"]} chunks that were set aside before training and never trained on;
{counts["questions_aside"]} questions, one to five chunks in the prompt. Loss over
{counts["lessons_aside"]} examples: {dev["loss_before"]:.3f} before, {dev["loss_after"]:.3f} after.

| reader | F1, one chunk in the prompt | F1, one to five |
|---|--:|--:|
{table}

F1 is against the known answers; where there are none, against the frozen model's own answer to the
chunk's text alone.

## Limits
{LIMITS.strip()}
"""
