"""What a trip needs before it starts.

That is the model, the template and the embedder; for a new store how much a vector holds, and the
cost.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rag_memtok.config import Config, Memorize, Model
from rag_memtok.memory.batch import make_task
from rag_memtok.memory.calibrate import Calibration, calibrate, find_known, seconds_per_chunk
from rag_memtok.memory.codec import codec_named
from rag_memtok.memory.recipes import recipe_named, recipe_of, steps_of
from rag_memtok.memory.workers import per_process_config
from rag_memtok.model import lm
from rag_memtok.model.gguf import INSTALL
from rag_memtok.model.prompts import Template, template_named
from rag_memtok.pipeline.manifest import complete_config, require_same
from rag_memtok.retrieval.embedder import Embedder, load_embedder
from rag_memtok.retrieval.index import set_threads
from rag_memtok.store.files import folder_of

GUESSED_TOKENS_PER_VECTOR = 8  # for an estimate, before a calibration
PATIENCE = 10  # minutes: what takes longer is said with the ways out
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class Components:
    """Model, template and embedder, loaded once."""

    lm: lm.LM
    template: Template
    embedder: Embedder


Load = Callable[[Config], Components]
LoadLM = Callable[[Model], lm.LM]


def load(settings: Config, load_lm: LoadLM = lm.load) -> Components:
    """Loads everything that completed settings name.

    Raises:
        UsageError: no such codec, recipe or template.
        ModelUnavailable, InputRefused, DeviceUnavailable: see `lm.load`.
    """
    codec_named(settings.memorize.codec)
    recipe = recipe_named(recipe_of(settings.memorize))
    model = load_lm(settings.model)
    # FAISS and torch share one pool: without a number both keep what they have
    if settings.model.threads:
        set_threads(settings.model.threads)
    template = template_named(recipe.template or settings.memorize.template, model)
    finding = settings.retrieve
    embedder = load_embedder(finding.embedder, recorded=finding.recorded)
    return Components(model, template, embedder)


def load_decoder(
    manifest: Mapping[str, str], config: Config, load_lm: LoadLM = lm.load
) -> tuple[lm.LM, Template]:
    """Loads the model and the template that a store's memories are decoded with.

    Raises:
        WrongModel: `config` names another model than the store's.
        ModelUnavailable, InputRefused, DeviceUnavailable: see `lm.load`.
    """
    settings = complete_config(config, manifest)
    model = load_lm(settings.model)
    template = template_named(settings.memorize.template, model)
    require_same(manifest, model, template)
    return model, template


def introduce_model(model: lm.LM, seconds: float) -> str:
    """A line on the embedded model, to be read before it is used."""
    return (
        f"{model.identity.revision} is a small demonstration model "
        f"({model.parameters / 1e6:.1f}M parameters); a real one: {INSTALL}, then --model smollm2. "
        f"A chunk will take about {seconds:.1f} s here."
    )


def estimate_seconds(
    model: lm.LM, template: Template, chunks: Sequence[Sequence[int]], settings: Config
) -> float:
    """Estimated seconds for the longest of `chunks` here.

    Cost: three real steps, of which the second is timed.
    """
    longest = max(chunks, key=len, default=())
    if not longest:
        return 0.0
    recorded = find_known(model, template, settings.documents.chunk_tokens, settings.memorize)
    per_vector = settings.memorize.tokens_per_vector or (
        recorded.tokens_per_vector if recorded else GUESSED_TOKENS_PER_VECTOR
    )
    vectors = make_task("", tuple(longest), per_vector).vectors
    steps = usual_steps(model, template, settings) or steps_of(settings.memorize)
    return seconds_per_chunk(
        model, template, longest, vectors=vectors, steps=steps, settings=settings.memorize
    )


def warn_if_long(
    model: lm.LM, template: Template, chunks: Sequence[Sequence[int]], settings: Config, say: Say
) -> None:
    """Says how long the writing of `chunks` will take, if it is more than a minute.

    Cost: three steps of a full batch, where there are more chunks than one batch has.
    """
    if len(chunks) <= settings.memorize.batch:
        return
    each = estimate_seconds(model, template, chunks, per_process_config(settings))
    minutes = each * math.ceil(len(chunks) / settings.memorize.processes) / 60
    if minutes > 1:
        ways = ""
        if minutes > PATIENCE:
            ways = (
                "; quicker: less at a time (--exclude), fewer --steps, a GPU, more --processes "
                "where there are more cores. Ctrl-C keeps what is done"
            )
        say(f"{len(chunks)} chunks to write, about {minutes:.0f} min here{ways}")


def usual_steps(model: lm.LM, template: Template, settings: Config) -> int:
    """The steps that are known to make a chunk exact; if readable, all; 0: it is not known.

    Known of more tokens a vector holds for fewer, which need no more steps; not the other way.
    """
    memorize = settings.memorize
    recorded = find_known(model, template, settings.documents.chunk_tokens, memorize)
    if recorded is None or memorize.tokens_per_vector > recorded.tokens_per_vector:
        return 0
    return expected_steps(memorize, recorded)


def expected_steps(settings: Memorize, recorded: Calibration | None) -> int:
    """The expected steps of a chunk: as many as are known to make it exact; if readable, all."""
    if recorded is None or recipe_named(recipe_of(settings)).distillation:
        return steps_of(settings)
    return min(steps_of(settings), recorded.steps)


def choose_calibration(
    model: lm.LM, template: Template, chunks: Sequence[Sequence[int]], settings: Config, say: Say
) -> Calibration:
    """The tokens per vector: as the settings say, as known for this model, else as measured now."""
    if settings.memorize.tokens_per_vector:
        return Calibration(settings.memorize.tokens_per_vector, "given", 0)
    if recorded := find_known(model, template, settings.documents.chunk_tokens, settings.memorize):
        return recorded
    say(
        "finding out how many tokens a vector of this model can hold; --tokens-per-vector skips "
        "this"
    )
    chosen = calibrate(model, template, chunks, settings.memorize, say)
    if chosen.tokens_per_vector <= 2:
        say("at 2 tokens a vector a memory is little more than the text's own embeddings")
    return chosen


def store_folder(config: Config) -> Path:
    """The store's folder.

    Raises:
        UsageError: a store where a folder of collections is meant, or the other way round.
    """
    return folder_of(Path(config.store), config.collection)
