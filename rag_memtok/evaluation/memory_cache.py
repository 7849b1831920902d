"""Texts -> judged memories, each written once and kept in a folder: what an evaluation reads.

Questions are none of this file's business: CONTRIBUTING prints it above all others of this folder,
so that it can import none of them, and what it is given are tokens.
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
# settings that a memory depends on
HASHED_SETTINGS = ("steps", "batch", "draft", "seconds_per_chunk", "codec", "tau", "seed")
Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class CachedMemory:
    """A memory as it was judged, its verdict, and the steps and seconds it took."""

    memory: Memory
    verdict: Verdict
    steps: int
    seconds: float


def optimize_cached(
    lm: LM,
    template: Template,
    texts: Mapping[str, Tokens],
    settings: Memorize,
    folder: Path | None,
    on_progress: OnProgress,
) -> dict[str, CachedMemory]:
    """A judged memory for each of `texts`, by its key.

    Those that `folder` has are read from it, the others optimized and saved there.

    Args:
        texts: tokens by chunk id.
        settings: complete: template, codec and tokens_per_vector say what they are.

    Cost: what `memorize` and `judge` cost, once for each text, model, template and settings.
    """
    names = {key: cache_name(lm, template, settings, tokens) for key, tokens in texts.items()}
    memories = {
        key: cached
        for key, name in names.items()
        if folder and (cached := load_memory(folder / name)) is not None
    }
    missing = {key: tokens for key, tokens in texts.items() if key not in memories}
    stage = f"memories at {settings.tokens_per_vector} tokens a vector"
    reporter = Reporter(on_progress=on_progress, total=len(texts), stage=stage, ready=len(memories))
    reporter.tell()
    for key, cached in _optimize(lm, template, missing, settings):
        memories[key] = cached
        if folder:
            save_memory(folder / names[key], cached)
        reporter.advance()
    return {key: memories[key] for key in texts}


def _optimize(
    lm: LM, template: Template, texts: Mapping[str, Tokens], settings: Memorize
) -> Iterator[tuple[str, CachedMemory]]:
    tasks = [make_task(key, tokens, settings.tokens_per_vector) for key, tokens in texts.items()]
    for optimized in memorize(lm, template, tasks, settings):
        yield optimized.task.key, judge_memory(lm, template, settings, optimized)


def judge_memory(
    lm: LM, template: Template, settings: Memorize, optimized: OptimizedMemory
) -> CachedMemory:
    """Packs a memory, reads it back and judges it, as an ingest does."""
    record = judge_record(lm, template, settings, optimized)
    return CachedMemory(memory_of(record), record.verdict, optimized.steps, optimized.seconds)


def cache_name(lm: LM, template: Template, settings: Memorize, tokens: Tokens) -> str:
    """The file name of a memory: everything it depends on, hashed.

    Of the objective only its name counts, the recipe's.
    """
    identity, recipe = lm.identity, recipe_named(recipe_of(settings))
    values = [recipe_of(settings), *(getattr(settings, name) for name in HASHED_SETTINGS)]
    values += [
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
        values,
        vectors,
        tokens,
    )
    return hashlib.sha256(repr(whole).encode()).hexdigest() + ".safetensors"


def save_memory(path: Path, cached: CachedMemory) -> None:
    """Writes a memory as a file that is whole or not there.

    Vectors are in fp32 as they were judged, the rest is metadata.
    """
    metadata = {
        "pins": [asdict(pin) for pin in cached.memory.pins],
        "verdict": {**asdict(cached.verdict), "margin": repr(cached.verdict.margin)},
        "steps": cached.steps,
        "seconds": cached.seconds,
    }
    vectors: Float[np.ndarray, "M d"] = np.ascontiguousarray(
        cached.memory.vectors, dtype=np.float32
    )
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(path, save({"vectors": vectors}, {"about": json.dumps(metadata), "format": FORMAT}))


def load_memory(path: Path) -> CachedMemory | None:
    """The memory in a file, or None.

    None is where there is none, or what is there is not whole: it is written again.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            vectors, metadata = file.get_tensor("vectors"), json.loads(file.metadata()["about"])
        pins = tuple(Pin(**pin) for pin in metadata["pins"])
        verdict = Verdict(**{**metadata["verdict"], "margin": float(metadata["verdict"]["margin"])})
        cached = CachedMemory(
            Memory(vectors, pins), verdict, metadata["steps"], metadata["seconds"]
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    return cached if np.isfinite(vectors).all() and not math.isnan(verdict.margin) else None
