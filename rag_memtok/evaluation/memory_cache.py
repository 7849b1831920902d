"""Texts -> judged memories, each written once and kept in a folder: what an evaluation reads.

Questions are none of this file's business: it is printed above the file that reads them, and what
it is given are tokens.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from rag_memtok.config import Memorize
from rag_memtok.datatypes import Memory, OnProgress, Pin, Verdict
from rag_memtok.memory.batch import make_task
from rag_memtok.memory.optimize import memorize
from rag_memtok.memory.recipes import recipe_named, recipe_of
from rag_memtok.memory.reconstruct import memory_of
from rag_memtok.memory.step import OptimizedMemory
from rag_memtok.memory.workers import judge_record
from rag_memtok.model.lm import LM
from rag_memtok.model.prompts import Template
from rag_memtok.pipeline.progress import Reporter
from rag_memtok.store.files import write_whole

FORMAT = "2"
# dials that a memory depends on
WHAT_DECIDES = ("steps", "batch", "draft", "seconds_per_chunk", "codec", "tau", "seed")
Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A memory as it was judged, its verdict, and what writing it took."""

    memory: Memory
    verdict: Verdict
    steps: int
    seconds: float


def written(
    lm: LM,
    template: Template,
    texts: Mapping[str, Tokens],
    settings: Memorize,
    folder: Path | None,
    on_progress: OnProgress,
) -> dict[str, Kept]:
    """Returns a judged memory for each of `texts`, by its key.

    Those that `folder` has are read from it, the others written and kept there.

    Args:
        texts: tokens by chunk id.
        settings: complete: template, codec and tokens_per_vector say what they are.

    Cost: what `memorize` and `judge` cost, once for each text, model, template and settings.
    """
    names = {key: name_of(lm, template, settings, tokens) for key, tokens in texts.items()}
    found = {
        key: kept
        for key, name in names.items()
        if folder and (kept := kept_in(folder / name)) is not None
    }
    missing = {key: tokens for key, tokens in texts.items() if key not in found}
    stage = f"memories at {settings.tokens_per_vector} tokens a vector"
    reporter = Reporter(on_progress, len(texts), stage, ready=len(found))
    reporter.tell()
    for key, kept in _written(lm, template, missing, settings):
        found[key] = kept
        if folder:
            keep(folder / names[key], kept)
        reporter.advance()
    return {key: found[key] for key in texts}


def _written(
    lm: LM, template: Template, texts: Mapping[str, Tokens], settings: Memorize
) -> Iterator[tuple[str, Kept]]:
    tasks = [make_task(key, tokens, settings.tokens_per_vector) for key, tokens in texts.items()]
    for one in memorize(lm, template, tasks, settings):
        yield one.task.key, judged(lm, template, settings, one)


def judged(lm: LM, template: Template, settings: Memorize, one: OptimizedMemory) -> Kept:
    """Packs, reads back and judges, as an ingest does."""
    record = judge_record(lm, template, settings, one)
    return Kept(memory_of(record), record.verdict, one.steps, one.seconds)


def name_of(lm: LM, template: Template, settings: Memorize, tokens: Tokens) -> str:
    """The file name of a memory: everything it depends on, hashed.

    Of the objective only its name counts, the recipe's.
    """
    identity, recipe = lm.identity, recipe_named(recipe_of(settings))
    dials = [recipe_of(settings), *(getattr(settings, name) for name in WHAT_DECIDES)]
    dials += [
        getattr(recipe, field.name)
        for field in fields(recipe)
        if not callable(getattr(recipe, field.name))
    ]
    vectors = make_task("", tokens, settings.tokens_per_vector).vectors
    whole = (
        FORMAT,
        identity.weights_sha256,
        identity.tokenizer_sha256,
        identity.dtype,
        template.digest,
        dials,
        vectors,
        tokens,
    )
    return hashlib.sha256(repr(whole).encode()).hexdigest() + ".safetensors"


def keep(path: Path, kept: Kept) -> None:
    """Writes a memory as a file that is whole or not there.

    Vectors are in fp32 as they were judged, the rest is metadata.
    """
    about = {
        "pins": [asdict(pin) for pin in kept.memory.pins],
        "verdict": {**asdict(kept.verdict), "margin": repr(kept.verdict.margin)},
        "steps": kept.steps,
        "seconds": kept.seconds,
    }
    vectors: Float[np.ndarray, "M d"] = np.ascontiguousarray(kept.memory.vectors, dtype=np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, save({"vectors": vectors}, {"about": json.dumps(about), "format": FORMAT}))


def kept_in(path: Path) -> Kept | None:
    """The memory in a file, or None.

    None is where there is none, or what is there is not whole: it is written again.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            vectors, about = file.get_tensor("vectors"), json.loads(file.metadata()["about"])
        pins = tuple(Pin(**pin) for pin in about["pins"])
        verdict = Verdict(**{**about["verdict"], "margin": float(about["verdict"]["margin"])})
        kept = Kept(Memory(vectors, pins), verdict, about["steps"], about["seconds"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    return kept if np.isfinite(vectors).all() and not math.isnan(verdict.margin) else None
