"""What of a chunk comes back from the vectors that recite it, from those that are read, from both.

Run it as `python -m benchmarks.fidelity --adapter FOLDER --chunks 16`: FOLDER has an encoder and
the reader of its vectors, as `training.memory_reader` writes them. Each chunk of the sample
documents gets its memory, E, as `ingest` writes it (--tokens-per-vector), and its readable vectors,
R, for each of --windows. Both stand in one prompt as R before E. The model recites in the template
of the memories; the reader of R is asked to repeat, as it is taught to.

A line for each: the share of the tokens that come right with those before them given, the end's
among them, and the chunks of which all do.

Cost on two cores, with a model of 135M parameters: 7 s a chunk to write it, and a pass for a line.
"""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from benchmarks.measure import guarded, heartbeat, numbers, put_table, samples, texts_of
from rag_memtok import config
from rag_memtok.config import Memorize
from rag_memtok.datatypes import Memory
from rag_memtok.evaluation.evaluate import encoder_in
from rag_memtok.memory.batch import make_task
from rag_memtok.memory.codec import codec_named
from rag_memtok.memory.encoder import encode_readable, unpack_readable
from rag_memtok.memory.optimize import memorize
from rag_memtok.memory.reconstruct import margins_in_one_pass
from rag_memtok.model import lora
from rag_memtok.model.lm import LM, load
from rag_memtok.model.prompts import Template, cue, template_named

CODEC = "float16"
Vectors = Float[np.ndarray, "M d"]


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A chunk's tokens, its memory, and its readable vectors for one window."""

    tokens: tuple[int, ...]
    recited: Vectors
    readable: Vectors


def written(lm: LM, template: Template, arguments: Namespace) -> dict[tuple[int, ...], Vectors]:
    """The memory of each chunk, as it comes back from its bytes."""
    settings = Memorize(
        template=template.name, codec=CODEC, steps=arguments.steps, batch=arguments.batch,
        seconds_per_chunk=0.0,
    )  # fmt: skip
    codec = codec_named(CODEC)
    texts = samples(lm, texts_of(arguments.texts), (arguments.length,), arguments.chunks)
    tasks = [make_task(one.key, tuple(one.tokens), arguments.tokens_per_vector) for one in texts]
    return {
        one.task.tokens: codec.unpack(codec.pack(one.vectors), one.vectors.shape)
        for one in memorize(lm, template, tasks, settings, on_step=heartbeat("memories"))
    }


Prompt = Callable[[Chunk, Chunk], Vectors]
"""What stands in the prompt for a chunk; the second is another one of the run."""


def nothing(chunk: Chunk, _: Chunk) -> Vectors:
    """No vectors at all: what the model guesses."""
    return chunk.recited[:0]


RECITED: dict[str, Prompt] = {
    "E": lambda chunk, _: chunk.recited,
    "R and E": lambda chunk, _: np.concatenate([chunk.readable, chunk.recited]),
    "another chunk's R and E": lambda chunk, other: np.concatenate([other.readable, chunk.recited]),
    "another chunk's E": lambda _, other: other.recited,
    "R": lambda chunk, _: chunk.readable,
    "nothing": nothing,
}
REPEATED: dict[str, Prompt] = {
    "R": lambda chunk, _: chunk.readable,
    "another chunk's R": lambda _, other: other.readable,
    "nothing": nothing,
}
HEAD = ("in the prompt", "how", "tokens right, %", "chunks with all right")


def lines(
    lm: LM, template: Template, how: str, prompts: dict[str, Prompt], chunks: Sequence[Chunk]
) -> list[list[str]]:
    """The table's lines of what `lm` says behind each of `prompts`."""
    found = []
    for name, prompt in prompts.items():
        right = [
            [
                margin > 0
                for margin in margins_in_one_pass(
                    lm, template, Memory(prompt(chunk, other)), chunk.tokens
                )
            ]
            for chunk, other in zip(chunks, [*chunks[1:], chunks[0]], strict=True)
        ]
        share = np.mean([one for chunk in right for one in chunk])
        whole = sum(map(all, right))
        found.append([name, how, f"{100 * share:.1f}", f"{whole} of {len(chunks)}"])
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Writes the memories, encodes the chunks, and prints a table for each window."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--texts", type=Path, help="a folder of yours: a file for each kind")
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--length", type=int, default=128, help="tokens of a chunk (128)")
    parser.add_argument("--tokens-per-vector", type=int, default=32, help="of the memories (32)")
    parser.add_argument("--windows", type=numbers, default=(2, 4), help="of R (2,4)")
    parser.add_argument("--template", default="bare", help="that memories are written in (bare)")
    parser.add_argument("--steps", type=int, default=500, help="the most of a chunk (500)")
    parser.add_argument("--batch", type=int, default=8, help="chunks written together (8)")
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args(words)
    lm = load(config.Model(id=arguments.model, threads=arguments.threads))
    encoder, reader = encoder_in(arguments.adapter, lm), lora.load_adapter(lm, arguments.adapter)
    if encoder is None:
        raise SystemExit(f"{arguments.adapter} has no encoder")
    template = template_named(arguments.template, lm)
    memories = written(lm, template, arguments)
    for window in arguments.windows:
        chunks = [
            Chunk(tokens, vectors, unpack_readable(encode_readable(encoder, tokens, window)))
            for tokens, vectors in memories.items()
        ]
        rows = lines(lm, template, "recited by the model", RECITED, chunks)
        rows += lines(reader, cue(lm), "repeated by the reader of R", REPEATED, chunks)
        title = f"R of {window} tokens a vector, E of {arguments.tokens_per_vector}"
        put_table(f"{title}; {lm.identity.id}", (HEAD, rows))


if __name__ == "__main__":
    guarded(main)
