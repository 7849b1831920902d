"""An LM with its adapter merged, as a plain model folder: what any server loads.

DIR/   config.json generation_config.json model.safetensors
tokenizer.json tokenizer_config.json chat_template.jinja
merged.json   what it was made of (Merged): written last
README.md     its card; READER.md, the adapter's own
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from rag_memtok.errors import UsageError
from rag_memtok.model.adapter_manifest import AdapterManifest
from rag_memtok.model.lm import LM
from rag_memtok.model.lora import merge_lora
from rag_memtok.model.prompts import qa_prompt
from rag_memtok.packages import sha256_of

MADE_OF, CARD, READER_CARD, WEIGHTS = "merged.json", "README.md", "READER.md", "model.safetensors"
HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """The contents of a folder: base, adapter and merged weights, each by its sha256."""

    name: str
    base: str
    base_sha256: str
    adapter_sha256: str
    kind: str
    tokenizer_sha256: str
    frame_sha256: str
    weights_sha256: str
    dtype: str


def write_merged(
    folder: Path, reader: LM, base: LM, *, manifest: AdapterManifest, dtype: str, card: Path
) -> Merged:
    """Writes `reader`, which is `base` with the adapter of `manifest` on, into a new folder.

    Args:
        dtype: what the sums are rounded to; float32 leaves them as they are.
        card: the adapter's own card, which goes along if there is one.

    Raises:
        UsageError: something is there already.

    Cost: the weights once more in memory, and on the disk.
    """
    require_new(folder)
    folder = folder.resolve()  # "." has no name to call a draft by
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f"{folder.name}.{os.getpid()}.new")
    draft.mkdir()
    try:
        _write_model(draft, reader, dtype)
        merged = _describe(draft, base, manifest, dtype)
        (draft / CARD).write_text(_card(merged), encoding="utf-8")
        if card.is_file():
            shutil.copyfile(card, draft / READER_CARD)
        (draft / MADE_OF).write_text(json.dumps(asdict(merged), indent=1), encoding="utf-8")
        if folder.exists():  # and is empty; who stands in it is not to lose it
            for path in sorted(draft.iterdir(), key=lambda path: path.name == MADE_OF):
                path.rename(folder / path.name)
        else:
            draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return merged


def require_new(folder: Path) -> None:
    """Refuses a folder in which there is something.

    Raises:
        UsageError: there is.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"there is something in {folder}", remedy="name a new folder")


def _write_model(folder: Path, reader: LM, dtype: str) -> None:
    """Weights, configuration and tokenizer, as transformers and servers look for them."""
    model: Any = reader.model
    drop = {HEAD} if reader.is_tied else set()
    weights = {
        name: value.to("cpu", getattr(torch, dtype)).contiguous()
        for name, value in sorted(merge_lora(reader).items())
        if name not in drop
    }
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    described = model.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "rag_memtok_id"):  # another's, now
        described.pop(key, None)
    described |= {"architectures": [type(model).__name__], "dtype": dtype}
    (folder / "config.json").write_text(json.dumps(described, indent=1, sort_keys=True))
    model.generation_config.save_pretrained(folder)
    reader.tokenizer.save_pretrained(folder)
    _name_any_class(folder / "tokenizer_config.json")


def _name_any_class(path: Path) -> None:
    """Lets every transformers load the tokenizer as it is written.

    The name of its class before version 5 is known to later ones, too, and none of them puts
    rules of its own (digits, spaces) in the place of those in tokenizer.json.
    """
    described = json.loads(path.read_text(encoding="utf-8"))
    for key in ("backend", "is_local", "local_files_only"):  # of this machine, not of the tokenizer
        described.pop(key, None)
    described |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(described, indent=1, sort_keys=True), encoding="utf-8")


def _describe(folder: Path, base: LM, manifest: AdapterManifest, dtype: str) -> Merged:
    weights = sha256_of(folder / WEIGHTS)
    tokenizer = base.identity.tokenizer_sha256
    name = hashlib.sha256(f"{weights} {tokenizer}".encode()).hexdigest()[:12]
    return Merged(
        name=f"reader-{name}",
        base=base.identity.title,
        base_sha256=base.identity.weights_sha256,
        adapter_sha256=manifest.adapter_sha256,
        kind=manifest.kind,
        tokenizer_sha256=tokenizer,
        frame_sha256=qa_prompt(base).digest,
        weights_sha256=weights,
        dtype=dtype,
    )


def _card(merged: Merged) -> str:
    rounded = "" if merged.dtype == "float32" else f", rounded to {merged.dtype}"
    return f"""---
tags: [rag-memtok, merged]
---
# {merged.name}: {merged.base} with its reader merged

A base model with a LoRA added to its weights in float32{rounded}: the model that answers when
`rag-memtok ask --engine vllm` asks a server. It answers as the base does with the adapter on, in
the frame that the adapter was trained in. It writes and verifies no memories: they are the base's.

| | sha256 |
|---|---|
| base | {merged.base_sha256} |
| adapter, of {"memories" if merged.kind == "memory" else "texts"} | {merged.adapter_sha256} |
| tokenizer | {merged.tokenizer_sha256} |
| frame | {merged.frame_sha256} |
| model.safetensors ({merged.dtype}) | {merged.weights_sha256} |

The licences are those of the base and of the adapter, whose card is {READER_CARD} where it has one.
What the adapter was trained on may be found in what it says: handle the folder as you handle that.
"""
