"""Adapters with random weights, as if they had been trained, and one that always says the same."""

import hashlib
import json
from pathlib import Path

import torch

from rag_memtok.memory import encoder as encoders
from rag_memtok.model import lora
from rag_memtok.model.adapter_manifest import Kind
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import bare, qa_prompt


def trained(lm: LM, folder: Path, seed: int = 0, kind: Kind = "memory") -> Path:
    """Writes one that fits `lm`."""
    student = lora.add_lora(lm, 4, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lora.lora_weights(student).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return written(student, lm, folder, kind)


def reading_vectors(lm: LM, folder: Path, seed: int = 0, **shares: float) -> Path:
    """Writes an adapter of texts with an encoder whose vectors it reads, measured to `shares`."""
    trained(lm, folder, seed, "text")
    encoder = encoders.new_encoder(lm, 1, 4, 4, seed)
    draw = torch.Generator().manual_seed(seed)
    encoders.set_parameters(
        encoder,
        {n: torch.randn(w.shape, generator=draw) * 0.05 for n, w in encoder.parameters.items()},
    )
    made = encoders.pack(encoder)
    (folder / encoders.FILE).write_bytes(made)
    bond = json.loads((folder / lora.MANIFEST).read_text())
    bond |= {"encoder_sha256": hashlib.sha256(made).hexdigest(), "dev": shares}
    (folder / lora.MANIFEST).write_text(json.dumps(bond))
    return folder


def written(student: LM, lm: LM, folder: Path, kind: Kind) -> Path:
    """Writes the LoRA of `student` as an adapter of `lm`."""
    bond = lora.AdapterManifest(
        kind=kind,
        model=lm.identity.id,
        weights_sha256=lm.identity.weights_sha256,
        tokenizer_sha256=lm.identity.tokenizer_sha256,
        template_sha256=bare(lm).digest if kind == "memory" else "",
        adapter_sha256="",
        steps=1,
        frame_sha256=qa_prompt(lm).digest,
    )
    folder.mkdir(exist_ok=True)
    for name, content in lora.adapter_files(student, bond).items():
        (folder / name).write_bytes(content)
    return folder


def says(answer: str, lm: LM, folder: Path) -> Path:
    """Writes an adapter of texts with which `lm` says `answer` whatever it is asked."""
    student, words = lora.add_lora(lm, 4, 0), qa_prompt(lm)
    said = [*lm.encode(words.reply_prefix + answer), words.end]
    optimiser = torch.optim.AdamW(lora.lora_weights(student).values(), lr=0.01, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(280):
        row = [*words.opening]
        for number in range(int(torch.randint(1, 4, (1,), generator=generator))):
            size = int(torch.randint(4, 40, (1,), generator=generator))
            drawn = torch.randint(6, 390, (size,), generator=generator)
            row += [*(words.between if number else ()), *drawn.tolist()]
        size = int(torch.randint(2, 20, (1,), generator=generator))
        asked = torch.randint(6, 390, (size,), generator=generator)
        row += [*words.question, *asked.tolist(), *words.closing, *said]
        hidden = student.hidden(student.embed(row[:-1])[None])[0, -len(said) :]
        loss = torch.nn.functional.cross_entropy(student.logits(hidden), torch.tensor(said))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return written(student, lm, folder, "text")
